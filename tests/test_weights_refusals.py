"""Files with values that no checkpoint should have: refused by name, before anything is made of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoints import copied, tensors_of
from families import folder
from nnzoo.weights import CheckpointError, ConfigError, load, parse_config, read_config, read_origin
from nnzoo.weights.hub import Access, download_weights, local_folder

NOT_FINITE = [float("nan"), float("inf"), float("-inf"), 10**400]
EPS = {"gpt2": "layer_norm_epsilon", "llama": "rms_norm_eps", "mistral": "rms_norm_eps"}


def refusal(family: Any, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config({"model_type": family, **settings})
    return str(caught.value)


# --- config.json -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [["gpt2"], {}, 2, True], ids=str)
def test_a_family_that_is_no_string_is_refused(name):
    assert f"setting 'model_type' = {json.dumps(name)} is not implemented" in refusal(name)


def test_json_nested_too_deep_is_refused_as_broken_json(tmp_path):
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize("family", EPS)
@pytest.mark.parametrize("value", NOT_FINITE, ids=lambda value: str(value)[:4])
def test_an_eps_that_is_not_finite_is_refused(family, value):
    assert f"setting '{EPS[family]}' = {json.dumps(value)} is not finite" in refusal(family, **{EPS[family]: value})


@pytest.mark.parametrize("family", EPS)
@pytest.mark.parametrize("value", [-1e-5, 0])
def test_an_eps_that_is_not_above_0_is_refused(family, value):
    assert f"setting '{EPS[family]}' = {value} is not above 0" in refusal(family, **{EPS[family]: value})


@pytest.mark.parametrize("value", [0, -1.0, *NOT_FINITE], ids=lambda value: str(value)[:4])
def test_a_theta_that_turns_nothing_is_refused(value):
    complaint = f"setting 'rope_theta' = {json.dumps(value)} is not "
    assert complaint in refusal("llama", rope_theta=value)
    assert complaint in refusal("llama", rope_parameters={"rope_type": "default", "rope_theta": value})


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn"])
@pytest.mark.parametrize("value", [0, -2.0, *NOT_FINITE], ids=lambda value: str(value)[:4])
def test_a_rope_factor_that_stretches_nothing_is_refused(kind, value):
    table = {"rope_type": kind, "factor": value}
    assert f"setting 'factor' = {json.dumps(value)} is not " in refusal("llama", rope_scaling=table)


def test_two_spellings_of_the_dtype_that_disagree_are_refused():
    said = refusal("gpt2", dtype="float32", torch_dtype="bfloat16")
    assert "setting 'dtype' = \"float32\" and 'torch_dtype' = 'bfloat16' disagree: remove one" in said
    for other in ("float32", None):
        assert parse_config({"model_type": "gpt2", "dtype": "float32", "torch_dtype": other})[1]["dtype"] == "float32"


def test_the_dtype_auto_is_the_checkpoints(tmp_path):
    assert load(folder("gpt2", "default"), dtype="auto").dtype == torch.float64
    assert load(copied(tmp_path, "gpt2", dtype="bfloat16"), dtype="auto").dtype == torch.bfloat16


# --- generation_config.json --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [*(("eos_token_id", value) for value in ("x", [1, "a"], [[1]], [None], {}, 1.0, True)), ("pad_token_id", "a")]
    + [("pad_token_id", value) for value in ([1], True, 1.5)],
    ids=str,
)
def test_a_token_id_that_is_none_is_refused(file, key, value, tmp_path):
    copied(tmp_path, "gpt2", **{key: value})
    (tmp_path / "generation_config.json").unlink()
    if file == "generation_config.json":
        (tmp_path / file).write_text(json.dumps({key: value}))
    with pytest.raises(ConfigError) as caught:
        read_origin(tmp_path)
    assert f"{file} of {tmp_path}: setting '{key}' = {json.dumps(value)} is no token id" in str(caught.value)


@pytest.mark.parametrize(
    "values", [{}, {"eos_token_id": None, "pad_token_id": None}, {"eos_token_id": [1, 2]}], ids=str
)
def test_token_ids_may_be_missing_null_or_several(values, tmp_path):
    (copied(tmp_path, "gpt2") / "generation_config.json").write_text(json.dumps(values | {"pad_token_id": -1}))
    assert read_origin(tmp_path).generation == values | {"pad_token_id": -1}


# --- the index of the shards -------------------------------------------------------------------------------------


def indexed(to: Path, file: Any) -> Path:
    """A checkpoint whose index says that its first tensor is in `file`; outside.safetensors, beside it, has all."""
    copied(to, "gpt2")
    names = [*tensors_of(to)]
    save_file(tensors_of(to), to.parent / "outside.safetensors")
    (to / "model.safetensors").rename(to / "weights.safetensors")
    weight_map = dict.fromkeys(names, "weights.safetensors") | {names[0]: file}
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return to


NO_NAMES = [
    1,
    None,
    ["a"],
    {},
    "",
    ".",
    "..",
    "../outside.safetensors",
    "sub/a.safetensors",
    "sub\\a",
    "C:a",
    "{outside}",
]


@pytest.mark.parametrize("file", NO_NAMES, ids=str)
def test_an_index_that_names_no_file_beside_it_is_refused_before_one_is_opened(file, tmp_path, monkeypatch):
    file = str(tmp_path / "outside.safetensors") if file == "{outside}" else file
    checkpoint = indexed(tmp_path / "model", file)
    monkeypatch.setattr("nnzoo.weights.tensors.safe_open", None)
    monkeypatch.setattr("nnzoo.weights.hub._snapshot", None)
    said = "which is no name of a file beside it"
    with pytest.raises(CheckpointError, match=said):
        load(checkpoint)
    with pytest.raises(CheckpointError, match=said):
        download_weights("some/model", checkpoint, Access())


def test_an_index_of_files_beside_it_is_followed(tmp_path):
    assert load(indexed(tmp_path / "model", "weights.safetensors")).dtype == torch.float64


# --- where a checkpoint is ---------------------------------------------------------------------------------------


def test_no_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(copied(tmp_path, "gpt2"))
    with pytest.raises(FileNotFoundError, match="'' is no folder here"):
        load("")
    assert local_folder(".") == Path(".")
