"""The snippets of the API reference on remote execution, as written, against a server in another process."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import nnzoo
import speaking
from nnzoo import CONFIG, LanguageModel
from reference_values import Theirs
from remote_server import Server
from snippets import assert_close

DEEP = 42  # layers: the reference speaks of layers[40]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client's folder, without weights, under the name that the server has."""
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(
        speaking.folder("llama", DEEP), folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
    )
    return folder


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server([str(speaking.folder("llama", DEEP))])
    yield server.url
    server.stop()


def run(snippet: str, url: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a snippet leaves behind; its "meta-llama/..." is the checkpoint."""
    served = str(speaking.folder("llama", DEEP))
    monkeypatch.setenv("NDIF_HOST", url)

    def client(name: str) -> LanguageModel:
        model = LanguageModel(checkpoint)
        monkeypatch.setattr(model, "_checkpoint", _named(model._checkpoint, served))
        return model

    scope = {"LanguageModel": client, "model": client("a model")}
    exec(compile(snippet, "<a snippet of the API reference>", "exec"), scope)
    assert scope["model"]._native is None, "no weight was read"  # type: ignore[attr-defined]
    return scope


def _named(checkpoint: Any, name: str) -> Any:
    from dataclasses import replace

    return replace(checkpoint, name=name)


def test_setup(monkeypatch):
    monkeypatch.setitem(os.environ, "NDIF_API_KEY", "")
    monkeypatch.setitem(__import__("sys").modules, "nnsight", nnzoo)
    monkeypatch.setattr(CONFIG._settings, "_set", {})
    snippet = """
import os
os.environ["NDIF_API_KEY"] = "your_key"
"""
    exec(snippet, {})
    assert CONFIG.API.APIKEY == "your_key"
    monkeypatch.setitem(os.environ, "NDIF_API_KEY", "")
    snippet = """
# Or configure directly
from nnsight import CONFIG
CONFIG.set_default_api_key("your_key")
"""
    exec(snippet, {})
    assert CONFIG.API.APIKEY == "your_key"


def test_remote_execution(url, checkpoint, monkeypatch):
    snippet = """
# Same code works remotely
with model.trace("Hello", remote=True) as tracer:
    hidden = model.model.layers[5].output[0].save()
"""
    theirs = Theirs("llama", DEEP)
    scope = run(snippet, url, checkpoint, monkeypatch)
    assert_close(scope["hidden"], theirs.forward("Hello", read=[theirs.block(5)])[theirs.block(5)])


def test_using_remote(url, checkpoint, monkeypatch, capsys):
    snippet = """
model = LanguageModel("meta-llama/Llama-3.1-70B")

with model.trace("Hello", remote=True) as tracer:
    hidden = model.model.layers[40].output[0].save()
    logits = model.output.save()

# Results returned from NDIF
print(hidden.shape)
"""
    scope, theirs = run(snippet, url, checkpoint, monkeypatch), Theirs("llama", DEEP)
    seen = theirs.forward("Hello", read=[theirs.block(40)])
    assert_close(scope["hidden"], seen[theirs.block(40)])
    assert_close(scope["logits"], seen.logits)
    assert capsys.readouterr().out == f"{torch.Size(scope['hidden'].shape)}\n"


def test_sessions(url, checkpoint, monkeypatch):
    snippet = """
with model.session(remote=True) as session:
    with model.trace("First prompt"):
        h1 = model.model.layers[20].output[0].save()

    with model.trace("Second prompt"):
        h2 = model.model.layers[20].output[0].save()

# Both run in single NDIF request
"""
    scope, theirs = run(snippet, url, checkpoint, monkeypatch), Theirs("llama", DEEP)
    for name, prompt in (("h1", "First prompt"), ("h2", "Second prompt")):
        assert_close(scope[name], theirs.forward(prompt, read=[theirs.block(20)])[theirs.block(20)])
    assert scope["session"].job.status() == "done"
