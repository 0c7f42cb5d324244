"""By which names a server knows its models, and how far a job is told to have come, on a server that runs them."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import speaking
from nnzoo import CONFIG, LanguageModel
from nnzoo.remote import job as job_module
from nnzoo.remote.errors import UnknownModel
from nnzoo.remote.server.models import names, split
from remote_server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One model is a folder, the other has a name of its own."""
    folder = tmp_path_factory.mktemp("served") / "speaks"
    shutil.copytree(speaking.folder("gpt2", 4), folder)
    with Server([str(folder), "ours=nnzoo/tiny-gpt2"]) as running:
        yield running


@pytest.fixture
def elsewhere(tmp_path):
    """A copy of the folder of that model, on a machine that has no weights."""
    return Path(
        shutil.copytree(speaking.folder("gpt2", 4), tmp_path / "speaks", ignore=shutil.ignore_patterns("*.safetensors"))
    )


def test_a_model_is_its_folders_name_path_or_what_it_is_called():
    assert split("ours=nnzoo/tiny-gpt2") == ("ours", "nnzoo/tiny-gpt2")
    assert split("nnzoo/tiny-gpt2") == ("nnzoo/tiny-gpt2", "nnzoo/tiny-gpt2")


def test_a_path_with_an_equals_sign_is_a_path(tmp_path):
    (tmp_path / "lr=0.1").mkdir()
    assert split(f"{tmp_path}/lr=0.1") == (f"{tmp_path}/lr=0.1", f"{tmp_path}/lr=0.1")


def test_a_name_that_would_be_two_models_is_refused(tmp_path):
    one, other = (str(tmp_path / parent / "llama") for parent in "ab")
    for folder in (one, other):
        Path(folder).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"llama would be {one} and {other} alike: .* nnzoo serve NAME={other}"):
        names({one: one, other: other})
    assert names({one: one, "mine": other}) == {one: one, "llama": one, "mine": "mine"}


def test_a_folder_goes_by_its_own_name_where_the_server_has_another_path(server, elsewhere):
    model, here = LanguageModel(elsewhere), LanguageModel(speaking.folder("gpt2", 4))
    with model.trace("The cat", remote=server.url):
        logits = model.output.save()
    with here.trace("The cat"):
        expected = here.output
    torch.testing.assert_close(logits, expected)


def test_a_folder_of_another_name_is_not_there(server, elsewhere):
    model = LanguageModel(elsewhere.rename(elsewhere.parent / "stranger"))
    with pytest.raises(UnknownModel, match=r"no model 'stranger'; it has .*speaks, ours"):
        with model.trace("The cat", remote=server.url):
            _logits = model.output.save()


def test_a_bar_shows_the_token_and_the_layer_that_are_reached(server, elsewhere, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **how: object) -> None: ...
        def set_description_str(self, text: str, refresh: bool) -> None:
            shown.append(text)

        def refresh(self) -> None: ...
        def close(self) -> None: ...

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    monkeypatch.setattr(job_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr("nnzoo.remote.progress.is_watched", lambda: True)
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    model = LanguageModel(elsewhere)
    with model.generate("The cat", max_new_tokens=24, min_new_tokens=24, remote=True) as tracer:
        for _ in tracer.all():
            work = torch.outer(*[torch.ones(500) * model.transformer.h[1].output[0].mean()] * 2)
            norm = torch.linalg.matrix_power(work / 500, 16).norm().save()
        ids = tracer.result.save()
    assert ids.shape[1] == 26 and norm >= 0
    assert any(re.fullmatch(r"remote: running, token [1-9]\d* of 24, layer [1-4] of 4", text) for text in shown), shown
