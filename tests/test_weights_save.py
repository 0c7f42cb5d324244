"""Saving: transformers and nnzoo read what was written, and what cannot be written is refused."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints import DEFAULT, config_of, copied, tensors_of
from families import CLASSES, error, folder, ids, ours, prompt, settings_of, theirs
from nnzoo.weights import CheckpointError, ConfigError, build, load, resolve, save, saving, skeleton

EACH_FAMILY = pytest.mark.parametrize("family", CLASSES)


def names_in(checkpoint) -> set[str]:
    return {file.name for file in checkpoint.iterdir()}


@ids(settings_of())
def test_transformers_reads_a_saved_folder_with_the_same_logits(family, setting, tmp_path):
    save(ours(family, setting), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = prompt(2, 40)
    with torch.no_grad():
        logits = model(tokens).logits
        before = theirs(family, setting)(tokens).logits
    assert type(model) is CLASSES[family][1]
    assert model.dtype == torch.float64
    assert error(logits, before) < 1e-12  # yarn's attention factor is written out


@ids(settings_of())
def test_a_saved_folder_is_loaded_as_it_was(family, setting, tmp_path):
    model = ours(family, setting)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in again.named_parameters())


@EACH_FAMILY
def test_the_tensors_are_those_that_transformers_writes(family, tmp_path):
    save(ours(family, DEFAULT[family]), tmp_path)
    assert tensors_of(tmp_path).keys() == tensors_of(folder(family, DEFAULT[family])).keys()


@EACH_FAMILY
@pytest.mark.parametrize("size", ["20KB", 20_000, "0.02 MB", "20kb"])
def test_large_models_are_written_in_shards(family, size, tmp_path):
    save(ours(family, DEFAULT[family]), tmp_path, max_shard_size=size)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = names_in(tmp_path) & set(index["weight_map"].values())
    n = len(shards)
    assert shards == {f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)}
    assert n > 2
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in ours(family, DEFAULT[family]).parameters())
    tokens = prompt(1, 9)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits
    assert error(logits, theirs(family, DEFAULT[family])(tokens).logits) < 1e-12
    assert error(load(tmp_path)(tokens), ours(family, DEFAULT[family])(tokens)) < 1e-12


def test_no_shard_is_larger_than_asked_but_for_single_tensors(tmp_path):
    save(ours("gpt2", "default"), tmp_path, max_shard_size=60_000)
    for file in tmp_path.glob("model-*"):
        with safe_open(file, framework="pt") as opened:
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118
        assert sum(sizes) <= 60_000 or len(sizes) == 1


@pytest.mark.parametrize("size", ["5", "5XB", "GB", ""])
def test_a_size_that_makes_no_sense_is_refused(size, tmp_path):
    with pytest.raises(ValueError, match="is neither a number of bytes nor like '500MB'"):
        save(ours("gpt2", "default"), tmp_path, max_shard_size=size)


def test_the_dtype_is_written_for_transformers_4_and_5(tmp_path):
    save(load(folder("gpt2", "default"), dtype=torch.bfloat16), tmp_path)
    assert config_of(tmp_path)["dtype"] == config_of(tmp_path)["torch_dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_rope_is_written_for_transformers_4_and_5(tmp_path):
    save(ours("llama", "rope=linear"), tmp_path)
    written = config_of(tmp_path)
    assert written["rope_parameters"] == {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 3.0}
    assert written["rope_theta"] == 10000.0


def test_settings_without_effect_survive(tmp_path):
    copied(tmp_path / "old", "gpt2", resid_pdrop=0.25, reorder_and_upcast_attn=True)
    (tmp_path / "old" / "generation_config.json").write_text('{"eos_token_id": [6, 7]}')
    save(load(tmp_path / "old"), tmp_path / "new")
    written = config_of(tmp_path / "new")
    assert (written["resid_pdrop"], written["reorder_and_upcast_attn"], written["eos_token_id"]) == (0.25, True, 1)
    assert json.loads((tmp_path / "new" / "generation_config.json").read_text()) == {"eos_token_id": [6, 7]}


def test_a_model_that_was_built_has_no_token_ids_of_the_familys_defaults(tmp_path):
    save(build(ours("gpt2", "default").config), tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.eos_token_id is None


@EACH_FAMILY
def test_the_tokenizer_is_saved(family, tmp_path):
    before = load(resolve(f"nnzoo/tiny-{family}"))
    save(before, tmp_path)
    text = "When Mary and John went to the store"
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == before.tokenizer.encode(text)
    assert torch.equal(load(tmp_path).to_tokens(text), before.to_tokens(text))


# --- into a folder that has something ----------------------------------------------------------------------------


def test_shards_of_an_earlier_save_go_and_other_files_stay(tmp_path):
    save(ours("gpt2", "default"), tmp_path, max_shard_size="20KB")
    (tmp_path / "README.md").write_text("mine")
    save(ours("llama", "default"), tmp_path)
    assert names_in(tmp_path) == {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert load(tmp_path).config == ours("llama", "default").config


def test_one_file_of_an_earlier_save_goes(tmp_path):
    save(ours("gpt2", "default"), tmp_path)
    save(ours("llama", "default"), tmp_path, max_shard_size="20KB")
    assert "model.safetensors" not in names_in(tmp_path)
    assert load(tmp_path).config == ours("llama", "default").config


def test_a_model_may_be_saved_over_the_files_it_is_mapped_from(tmp_path):
    model = load(copied(tmp_path, "llama"))
    save(model, tmp_path)
    tokens = prompt(1, 9)
    assert error(load(tmp_path)(tokens), ours("llama", "default")(tokens)) < 1e-12
    assert error(model(tokens), ours("llama", "default")(tokens)) < 1e-12


@pytest.mark.parametrize("step", ["save_file", "_write_settings"])
def test_a_save_that_fails_leaves_the_old_folder_whole(step, tmp_path, monkeypatch):
    save(ours("gpt2", "default"), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(saving, step, full)
    with pytest.raises(OSError, match="No space left"):
        save(ours("llama", "default"), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_is_made_with_its_parents(tmp_path):
    save(ours("gpt2", "default"), tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "config.json").is_file()
    assert os.listdir(tmp_path / "a") == ["b"]


# --- what the format cannot hold -----------------------------------------------------------------------------------


def processed(change) -> nn.Module:
    model = build(ours("llama", "default").config)
    with torch.no_grad():
        change(model)
    return model


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: m.unembed.register_parameter("bias", nn.Parameter(torch.zeros(97))), "unembed.bias"),
        (
            lambda m: m.blocks[1].attn.q.register_parameter("bias", nn.Parameter(torch.zeros(48))),
            "blocks.1.attn.q.bias",
        ),
        (lambda m: delattr(m.blocks[0].ln1, "weight"), "blocks.0.ln1.weight"),
        (lambda m: m.ln_final.register_parameter("weight", nn.Parameter(torch.ones(1))), "ln_final.weight"),
    ],
    ids=["unembed.bias", "attn.q.bias", "no_ln1.weight", "ln_final.weight"],
)
def test_processed_weights_without_a_place_are_refused_by_name(change, name, tmp_path):
    with pytest.raises(CheckpointError, match=f"has no such weights as this model's: {name}. Processed weights"):
        save(processed(change), tmp_path)
    assert not os.listdir(tmp_path)


def test_an_untied_model_that_says_it_is_tied_is_refused(tmp_path):
    model = build(ours("gpt2", "default").config)
    model.unembed.weight = nn.Parameter(model.embed.weight.detach() * 2)
    with pytest.raises(CheckpointError, match="set tied to False"):
        save(model, tmp_path)
    model.config = replace(model.config, tied=False)
    save(model, tmp_path)
    assert torch.equal(load(tmp_path).W_U, model.W_U)


def test_a_model_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="the model has no weights yet"):
        save(skeleton(ours("gpt2", "default").config), tmp_path)


def test_a_mistral_with_biases_is_refused(tmp_path):
    config = replace(ours("mistral", "window=7").config, attn_bias=True)
    with pytest.raises(ConfigError, match=r"Mistral's config\.json has no place for biases"):
        save(build(config), tmp_path)
