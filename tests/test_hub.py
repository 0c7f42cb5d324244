"""Models of the Hub: what is asked for, what is downloaded, what is cached, and what is said when it fails.

A stand-in answers on this machine. huggingface_hub reads its environment when imported, so each environment is a
process of its own, which takes the steps below one after the other; the tests look at what came of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from checkpoints import copied
from families import folder
from hub_stand_in import Hub, Repository, serve
from nnzoo.weights import load
from nnzoo.weights.hub import Access, _no_weights, resolve

FIRST, SECOND = "1" * 40, "2" * 40
CLIENT = """
import json, sys, urllib.request
from nnzoo.weights import load, open_checkpoint, resolve
held, told = {}, {}
for name, (do, args, kwargs) in json.load(sys.stdin).items():
    try:
        if do == "get":
            urllib.request.urlopen(args[0]).read()
            told[name] = None
        elif do == "resolve":
            told[name] = str(resolve(*args, **kwargs))
        elif do == "open":
            held[args[0]] = open_checkpoint(*args, **kwargs)
            told[name] = str(held[args[0]].folder)
        else:
            model = held[args[0]].load() if do == "load_held" else load(*args, **kwargs)
            told[name] = sum(parameter.double().sum().item() for parameter in model.parameters())
    except Exception as error:
        told[name] = [type(error).__name__, str(error)]
print(json.dumps(told))
"""


def client(endpoint: str, home: Path, steps: dict[str, tuple], **environment: str) -> dict[str, Any]:
    """What came of each step in a process of its own: a value, or an error's class and message."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    hub = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
    }
    run = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps(steps),
        env={**kept, **hub, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def checksum(checkpoint: Path) -> float:
    """The sum of all weights, which tells the models here apart."""
    return sum(parameter.double().sum().item() for parameter in load(checkpoint).parameters())


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, Repository]:
    there = tmp_path_factory.mktemp("repositories")

    def one(name: str, **options: Any) -> Repository:
        return Repository({FIRST: there / name}, {"main": FIRST}, **options)

    copied(there / "plain", "gpt2")
    for name in ("consolidated.safetensors", "flax_model.msgpack", "model.fp16.safetensors", "README.md"):
        (there / "plain" / name).write_bytes(b"large")
    copied(there / "next", "gpt2", "untied")
    model = AutoModelForCausalLM.from_pretrained(folder("llama", "default"))
    model.save_pretrained(there / "sharded", max_shard_size="60KB")
    (there / "sharded" / "pytorch_model.bin").write_bytes(b"large")
    copied(there / "pickle", "gpt2")
    os.rename(there / "pickle" / "model.safetensors", there / "pickle" / "pytorch_model.bin")
    (there / "empty").mkdir()
    (there / "empty" / "README.md").write_text("nothing")
    moving = Repository({FIRST: there / "plain", SECOND: there / "next"}, {"main": FIRST, "v2": SECOND})
    return {
        "zoo/plain": one("plain"),
        "zoo/cut": one("plain"),
        "zoo/moving": moving,
        "zoo/sharded": one("sharded"),
        "zoo/pickle": one("pickle"),
        "zoo/empty": one("empty"),
        "zoo/gated": one("plain", gated=True),
    }


@pytest.fixture(scope="module")
def hub(repositories):
    with serve(Hub(repositories)) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(hub, home) -> dict[str, Any]:
    steps = {
        "plain": ("load", ["zoo/plain"], {}),
        "small": ("resolve", ["zoo/cut"], {"weights": False}),
        "moving, opened": ("open", ["zoo/moving"], {}),
        "moved": ("get", [f"{hub.endpoint}/zoo/moving/move"], {}),
        "moving, loaded": ("load_held", ["zoo/moving"], {}),
        "moving, resolved": ("resolve", ["zoo/moving"], {"revision": FIRST}),
        "moving, by commit": ("load", ["zoo/moving"], {"revision": FIRST}),
        "moving, by branch": ("load", ["zoo/moving"], {"revision": "v2"}),
        "moving, now": ("load", ["zoo/moving"], {}),
        "no revision": ("load", ["zoo/plain"], {"revision": "v9"}),
        "elsewhere": ("resolve", ["zoo/plain"], {"cache_dir": str(home / "elsewhere")}),
        "sharded": ("load", ["zoo/sharded"], {}),
        "pickle": ("load", ["zoo/pickle"], {}),
        "empty": ("load", ["zoo/empty"], {}),
        "absent": ("load", ["zoo/absent"], {}),
        "not cached": ("load", ["zoo/gated"], {"local_files_only": True}),
        "cached": ("load", ["zoo/plain"], {"local_files_only": True}),
        "gated": ("load", ["zoo/gated"], {}),
        "gated, with token": ("load", ["zoo/gated"], {"token": "secret"}),
    }
    return client(hub.endpoint, home, steps, HF_HUB_OFFLINE="0")


@pytest.fixture(scope="module")
def offline(hub, home, online) -> dict[str, Any]:
    hub.requests.clear()
    next(home.glob("hub/models--zoo--sharded/snapshots/*/generation_config.json")).unlink()
    steps = {
        "plain": ("load", ["zoo/plain"], {}),
        "moving": ("load", ["zoo/moving"], {}),
        "sharded": ("load", ["zoo/sharded"], {}),
        "cut": ("load", ["zoo/cut"], {}),
        "cut, opened": ("open", ["zoo/cut"], {}),
        "absent": ("load", ["zoo/absent"], {}),
    }
    return client(hub.endpoint, home, steps, HF_HUB_OFFLINE="1")


def test_a_model_is_downloaded_and_loaded(online):
    assert online["plain"] == checksum(folder("gpt2", "default"))


def test_only_what_is_needed_is_downloaded(hub, online):
    assert hub.downloaded("zoo/plain") == {"config.json", "generation_config.json", "model.safetensors"}


def test_shards_are_downloaded_by_their_index(hub, online):
    assert online["sharded"] == checksum(folder("llama", "default"))
    assert "model.safetensors.index.json" in hub.downloaded("zoo/sharded")
    assert len([name for name in hub.downloaded("zoo/sharded") if name.endswith(".safetensors")]) > 2
    assert "pytorch_model.bin" not in hub.downloaded("zoo/sharded")


def test_without_weights_only_small_files_are_downloaded(hub, online):
    assert {file.name for file in Path(online["small"]).iterdir()} == {"config.json", "generation_config.json"}
    assert hub.downloaded("zoo/cut") == {"config.json", "generation_config.json"}


def test_the_folder_is_named_by_its_commit(online):
    assert Path(online["small"]).name == FIRST
    assert Path(online["moving, resolved"]).name == FIRST


def test_resolve_fetches_the_weights(online):
    assert load(online["moving, resolved"]).config == load(folder("gpt2", "default")).config


def test_weights_are_of_the_commit_that_was_opened_though_the_branch_moved(online):
    first, second = checksum(folder("gpt2", "default")), checksum(folder("gpt2", "untied"))
    assert first != second
    assert online["moving, loaded"] == online["moving, by commit"] == first
    assert online["moving, now"] == online["moving, by branch"] == second


def test_a_revision_that_does_not_exist_is_named(online):
    kind, said = online["no revision"]
    assert kind == "FileNotFoundError"
    assert said.startswith("'zoo/plain' has no revision 'v9'.")


def test_the_cache_may_be_elsewhere(home, online):
    assert Path(online["elsewhere"]).is_relative_to(home / "elsewhere")


def test_a_pickle_is_refused_and_not_downloaded(hub, online):
    kind, said = online["pickle"]
    assert kind == "CheckpointError"
    assert said.startswith("zoo/pickle has its weights in pytorch_model.bin: a pickle")
    assert "pytorch_model.bin" not in hub.downloaded("zoo/pickle")


def test_a_repository_without_config_is_refused(online):
    kind, said = online["empty"]
    assert kind == "FileNotFoundError"
    assert "'zoo/empty' has no config.json" in said


def test_a_repository_that_does_not_exist_is_named(online):
    kind, said = online["absent"]
    assert kind == "FileNotFoundError"
    assert said.startswith("'zoo/absent' is neither a folder here nor a model on the Hub that this token may see.")


def test_a_gated_model_wants_a_token(hub, online):
    kind, said = online["gated"]
    assert kind == "PermissionError"
    assert said.startswith("'zoo/gated' is gated: ask for access on its page, then pass token= or set HF_TOKEN.")
    assert online["gated, with token"] == online["plain"]
    assert hub.tokens("zoo/gated") >= {"secret"}


def test_only_local_files_are_used_when_asked(online):
    kind, said = online["not cached"]
    assert kind == "FileNotFoundError"
    assert said.startswith("'zoo/gated' is not in the cache, and the Hub was not asked or did not answer")
    assert online["cached"] == online["plain"]


def test_offline_the_cache_is_enough(hub, online, offline):
    assert offline["plain"] == online["plain"]
    assert offline["moving"] == online["moving, now"]
    assert not hub.requests


def test_offline_weights_that_were_not_downloaded_are_named(offline):
    kind, said = offline["cut"]
    assert Path(offline["cut, opened"]).name == FIRST
    assert kind == "FileNotFoundError"
    assert said.startswith("model.safetensors of 'zoo/cut' is not in the cache, and the Hub was not asked")


def test_offline_a_model_that_was_never_downloaded_is_named(offline):
    kind, said = offline["absent"]
    assert kind == "FileNotFoundError"
    assert said.startswith("'zoo/absent' is not in the cache")


def test_offline_a_missing_file_that_is_not_needed_does_no_harm(online, offline):
    assert offline["sharded"] == online["sharded"]


def test_a_download_that_broke_off_is_not_said_to_be_a_lack(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: ["config.json", "model.safetensors"])
    assert "did not answer" in str(_no_weights("zoo/plain", Access(), ["model.safetensors"]))
    assert "has no model-1.safetensors on the Hub" in str(_no_weights("zoo/plain", Access(), ["model-1.safetensors"]))


def test_a_token_in_the_environment_is_sent(hub, home, online):
    steps = {"gated": ("load", ["zoo/gated"], {"cache_dir": str(home / "another")})}
    told = client(hub.endpoint, home, steps, HF_HUB_OFFLINE="0", HF_TOKEN="secret")
    assert told["gated"] == online["plain"]


def test_a_hub_that_does_not_answer_is_done_without(home, online):
    steps = {"plain": ("load", ["zoo/plain"], {}), "absent": ("load", ["zoo/absent"], {})}
    told = client("http://127.0.0.1:9", home, steps, HF_HUB_OFFLINE="0")
    assert told["plain"] == online["plain"]
    assert told["absent"][0] == "FileNotFoundError"


def test_an_embedded_checkpoint_is_named_whose_name_lacks_its_first_half(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"did you mean 'nnzoo/tiny-llama'\?"):
        resolve("tiny-llama", cache_dir=tmp_path, local_files_only=True)


def test_the_checksum_tells_models_apart():
    settings = [("gpt2", "default"), ("gpt2", "untied"), ("llama", "default")]
    assert len({checksum(folder(family, setting)) for family, setting in settings}) == 3
