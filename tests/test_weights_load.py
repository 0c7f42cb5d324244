"""Loading: what is read from a folder, how, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from checkpoints import DEFAULT, copied, tensors_of, write_tensors
from families import CLASSES, error, folder, ours, prompt
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.weights import CheckpointError, load, open_checkpoint, read_config, resolve, save

EACH_FAMILY = pytest.mark.parametrize("family", CLASSES)
PREFIX = {"gpt2": "transformer.", "llama": "model.", "mistral": "model."}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def theirs_of(checkpoint: Path, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(checkpoint)(tokens).logits


def sharded(to: Path, family: str, size: str = "20KB") -> Path:
    """A folder whose weights are in several files, as transformers writes them."""
    AutoModelForCausalLM.from_pretrained(folder(family, DEFAULT[family])).save_pretrained(to, max_shard_size=size)
    assert len(list(to.glob("model-*.safetensors"))) > 2
    return to


def refusal(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    return str(caught.value)


def assert_same_weights(a: HookedModel, b: HookedModel) -> None:
    parameters = dict(b.named_parameters())
    assert dict(a.named_parameters()).keys() == parameters.keys()
    assert all(torch.equal(value, parameters[name]) for name, value in a.named_parameters())


# --- what is read ----------------------------------------------------------------------------------------------


@EACH_FAMILY
def test_no_parameter_stays_on_meta(family):
    assert not any(parameter.is_meta for parameter in ours(family, DEFAULT[family]).parameters())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_dtype_is_the_checkpoints(dtype, tmp_path):
    model = load(folder("llama", "default"), dtype=dtype)
    save(model, tmp_path)
    assert load(tmp_path).dtype == dtype
    assert_same_weights(load(tmp_path), model)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@EACH_FAMILY
def test_the_dtype_can_be_asked_for(family, dtype):
    model = load(folder(family, DEFAULT[family]), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.equal(model.W_E, ours(family, DEFAULT[family]).W_E.to(dtype))


def test_a_dtype_may_be_a_string():
    assert load(folder("gpt2", "default"), dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_that_config_json_names_counts_before_the_files(key, tmp_path):
    copied(tmp_path, "gpt2", remove={"dtype"} - {key}, **{key: "float32"})
    assert tensors_of(tmp_path)["transformer.wte.weight"].dtype == torch.float64
    assert load(tmp_path).dtype == AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.float32


def test_without_a_dtype_in_config_json_the_files_counts(tmp_path):
    copied(tmp_path, "gpt2", remove=["dtype"])
    assert load(tmp_path).dtype == torch.float64


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", torch.complex64])
def test_a_dtype_that_models_do_not_run_in_is_refused(dtype):
    with pytest.raises(ValueError, match="is none that the models run in; nnzoo knows 'bfloat16', 'float16'"):
        load(folder("gpt2", "default"), dtype=dtype)


def test_the_device_can_be_asked_for():
    model = load(folder("gpt2", "default"), device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@EACH_FAMILY
def test_shards_give_the_weights_of_one_file(family, tmp_path):
    assert_same_weights(load(sharded(tmp_path, family)), ours(family, DEFAULT[family]))


@EACH_FAMILY
def test_checkpoints_of_the_base_class_leave_the_prefix_out(family, tmp_path):
    copied(tmp_path, family)
    write_tensors(tmp_path, {n.removeprefix(PREFIX[family]): t for n, t in tensors_of(tmp_path).items()})
    assert_same_weights(load(tmp_path), ours(family, DEFAULT[family]))


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_masks_of_old_gpt2_checkpoints_are_no_weights(prefix, tmp_path):
    tensors = tensors_of(copied(tmp_path, "gpt2"))
    masks = {f"{prefix}h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril().bool() for i in range(3)}
    masks |= {f"{prefix}h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    write_tensors(tmp_path, tensors | masks)
    assert_same_weights(load(tmp_path), ours("gpt2", "default"))


def test_the_frequencies_of_old_llama_checkpoints_are_no_weights(tmp_path):
    tensors = tensors_of(copied(tmp_path, "llama"))
    write_tensors(tmp_path, tensors | {"model.layers.2.self_attn.rotary_emb.inv_freq": torch.ones(6)})
    assert_same_weights(load(tmp_path), ours("llama", "default"))


def test_a_mask_of_a_layer_that_is_not_there_is_refused(tmp_path):
    tensors = tensors_of(copied(tmp_path, "gpt2"))
    write_tensors(tmp_path, tensors | {"h.3.attn.masked_bias": torch.tensor(-1e4)})
    assert "not known: h.3.attn.masked_bias []" in refusal(tmp_path)


# --- tied embeddings ---------------------------------------------------------------------------------------------


def test_a_tied_model_has_one_parameter_for_both():
    model = ours("gpt2", "default")
    assert model.unembed.weight is model.embed.weight
    assert ours("gpt2", "untied").unembed.weight is not ours("gpt2", "untied").embed.weight


def test_a_tied_head_may_be_in_the_file_too(tmp_path):
    tensors = tensors_of(copied(tmp_path, "gpt2"))
    write_tensors(tmp_path, tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()})
    model = load(tmp_path)
    assert model.unembed.weight is model.embed.weight
    assert model.config.tied


def test_a_tied_head_may_be_there_instead_of_the_embedding(tmp_path):
    tensors = tensors_of(copied(tmp_path, "gpt2"))
    write_tensors(tmp_path, {n.replace("transformer.wte", "lm_head"): t for n, t in tensors.items()})
    assert_same_weights(load(tmp_path), ours("gpt2", "default"))


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_tied_head_that_differs_is_not_tied_as_in_transformers_and_said_to_be(prefix, tmp_path):
    tensors = {n.replace("transformer.", prefix): t for n, t in tensors_of(copied(tmp_path, "gpt2")).items()}
    write_tensors(tmp_path, tensors | {"lm_head.weight": tensors[f"{prefix}wte.weight"].flip(0)})
    with pytest.warns(UserWarning, match=f"lm_head.weight and {prefix}wte.weight differ: they are not tied"):
        model = load(tmp_path)
    assert not model.config.tied
    tokens = prompt(1, 9)
    assert error(model(tokens), theirs_of(tmp_path, tokens)) < 1e-10
    assert error(model(tokens), ours("gpt2", "default")(tokens)) > 1e-3


# --- what is refused ---------------------------------------------------------------------------------------------


def test_every_misfit_is_named_with_its_shapes(tmp_path):
    tensors = tensors_of(copied(tmp_path, "gpt2"))
    tensors["transformer.h.1.ln_1.weight"] = torch.ones(5)
    tensors["transformer.h.7.ln_1.weight"] = tensors.pop("transformer.h.2.mlp.c_fc.weight")
    write_tensors(tmp_path, tensors)
    assert refusal(tmp_path) == (
        f"the tensors of {tmp_path} are not those of its config.json (gpt2). "
        "missing: transformer.h.2.mlp.c_fc.weight [48, 192]; "
        "not known: transformer.h.7.ln_1.weight [48, 192]; "
        "of another shape: transformer.h.1.ln_1.weight is [5] where config.json asks for [48]."
    )


@EACH_FAMILY
def test_each_tensor_is_missed(family, tmp_path):
    tensors = tensors_of(copied(tmp_path, family))
    for name, tensor in tensors.items():
        write_tensors(tmp_path, {other: value for other, value in tensors.items() if other != name})
        assert f"missing: {name} {list(tensor.shape)}." in refusal(tmp_path)


@pytest.mark.parametrize("setting", ["attention_bias", "mlp_bias"])
def test_biases_that_config_json_does_not_mention_are_refused(setting, tmp_path):
    copied(tmp_path, "llama", setting, **{setting: False})
    assert re.search(r"not known: .*_proj\.bias \[\d+\]", refusal(tmp_path))


def test_of_many_misfits_ten_are_named(tmp_path):
    copied(tmp_path, "gpt2", n_layer=20)
    assert " and 194 more." in refusal(tmp_path)


def test_a_tensor_under_both_names_is_refused(tmp_path):
    tensors = tensors_of(copied(tmp_path, "gpt2"))
    write_tensors(tmp_path, tensors | {"ln_f.bias": tensors["transformer.ln_f.bias"].clone()})
    assert re.search(r"not known: (transformer\.)?ln_f.bias \[48\]", refusal(tmp_path))


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")], ids=str)
def test_formats_that_models_do_not_run_in_are_no_weights(dtype, name, tmp_path):
    tensors = tensors_of(copied(tmp_path, "gpt2"))
    write_tensors(tmp_path, tensors | {"transformer.ln_f.bias": torch.ones(48).to(dtype)})
    assert f"in a format that is none of F64, F32, F16, BF16: transformer.ln_f.bias is {name}" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(name, tmp_path):
    copied(tmp_path, "gpt2")
    os.rename(tmp_path / "model.safetensors", tmp_path / name)
    said = refusal(tmp_path)
    assert f"{tmp_path} has its weights in {name}: a pickle" in said
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path}").save_pretrained("NEW")' in said


def test_the_way_to_convert_a_pickle_works(tmp_path):
    copied(tmp_path / "OLD", "llama")
    torch.save(tensors_of(tmp_path / "OLD"), tmp_path / "OLD" / "pytorch_model.bin")
    (tmp_path / "OLD" / "model.safetensors").unlink()
    way = re.search(r"(AutoModel.*?\));", refusal(tmp_path / "OLD"))[1].replace('"NEW"', f'"{tmp_path}/NEW"')
    exec(way, {"AutoModelForCausalLM": AutoModelForCausalLM})
    assert_same_weights(load(tmp_path / "NEW"), ours("llama", "default"))


def test_a_folder_without_weights_is_refused(tmp_path):
    (copied(tmp_path, "gpt2") / "model.safetensors").unlink()
    assert "has neither model.safetensors nor model.safetensors.index.json; it holds config.json" in refusal(tmp_path)


def test_a_file_cut_short_is_refused(tmp_path):
    os.truncate(copied(tmp_path, "gpt2") / "model.safetensors", 5000)
    assert "is no whole safetensors file" in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    lost = sorted(sharded(tmp_path, "gpt2").glob("model-*"))[1]
    lost.unlink()
    assert f"{tmp_path} lacks {lost.name}, which model.safetensors.index.json names" in refusal(tmp_path)


def test_a_shard_that_the_index_does_not_name_is_refused(tmp_path):
    shards = sorted(sharded(tmp_path, "gpt2").glob("model-*"))
    shutil.copy(shards[0], tmp_path / "model-00009-of-00009.safetensors")
    assert "shards that the index does not name: model-00009-of-00009.safetensors" in refusal(tmp_path)


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(tmp_path):
    index = sharded(tmp_path, "gpt2") / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["transformer.wpe.weight"] = values["weight_map"]["transformer.ln_f.bias"]
    index.write_text(json.dumps(values))
    assert "not in the shard that the index names: transformer.wpe.weight" in refusal(tmp_path)


def test_a_tensor_that_the_index_leaves_out_is_refused(tmp_path):
    index = sharded(tmp_path, "gpt2") / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    del values["weight_map"]["transformer.ln_f.bias"]
    index.write_text(json.dumps(values))
    assert "in a shard but not in the index: transformer.ln_f.bias" in refusal(tmp_path)


def test_an_index_without_a_map_is_refused(tmp_path):
    (sharded(tmp_path, "gpt2") / "model.safetensors.index.json").write_text("{}")
    assert "has no 'weight_map'" in refusal(tmp_path)


def test_one_file_counts_before_an_index_as_in_transformers(tmp_path):
    sharded(tmp_path, "gpt2")
    write_tensors(tmp_path, {name: tensor * 2 for name, tensor in tensors_of(folder("gpt2", "default")).items()})
    tokens = prompt(1, 9)
    assert error(load(tmp_path)(tokens), theirs_of(tmp_path, tokens)) < 1e-10


# --- how it is read ----------------------------------------------------------------------------------------------


def test_editing_a_parameter_leaves_the_file_alone(tmp_path):
    file = copied(tmp_path, "gpt2") / "model.safetensors"
    before = file.read_bytes()
    with torch.no_grad():
        for parameter in load(tmp_path).parameters():
            parameter.fill_(7)
    assert file.read_bytes() == before


MEASURE = """
import re, sys, torch
from nnzoo.weights import load
def anonymous(): return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
load(sys.argv[1])
before = anonymous()
model = load(sys.argv[2])
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's count of anonymous memory")
def test_loading_copies_no_weight(tmp_path):
    copied(tmp_path, "gpt2", dtype="float32", vocab_size=500_000)
    tensors = {name: tensor.float() for name, tensor in tensors_of(tmp_path).items()}
    write_tensors(tmp_path, tensors | {"transformer.wte.weight": torch.zeros(500_000, 48)})
    size = (tmp_path / "model.safetensors").stat().st_size / 2**20
    command = [sys.executable, "-c", MEASURE, folder("gpt2", "default"), tmp_path]
    used = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert size > 90
    assert used < 5


def test_loading_imports_neither_transformers_nor_the_hub():
    code = f"import sys; from nnzoo.weights import load; load({str(folder('gpt2', 'default'))!r}); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "huggingface_hub", "tokenizers"} & set(run.stdout.split())


def test_building_a_skeleton_imports_nothing_heavy():
    code = "import sys; from nnzoo.weights import *; before = set(sys.modules); "
    code += "skeleton(parse_config({'model_type': 'llama'})[0]); print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(run.stdout.split()) < 20


# --- where it is read from ---------------------------------------------------------------------------------------


def test_a_path_may_be_a_string_or_a_path_and_start_at_home(tmp_path, monkeypatch):
    copied(tmp_path / "model", "gpt2")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/model") == resolve(tmp_path / "model") == resolve(str(tmp_path / "model")) == tmp_path / "model"


def test_a_folder_without_config_json_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no config.json.*it holds weights.gguf"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["/no/such/folder", "./model", "a/b/c", "", "-x", "../gpt2"])
def test_what_is_neither_folder_nor_id_is_refused(name):
    with pytest.raises(FileNotFoundError, match=r"is no folder here, and cannot be an id|has no config"):
        load(name)


def test_a_path_object_is_never_an_id():
    with pytest.raises(FileNotFoundError, match="is no folder here"):
        load(Path("gpt2"))


def test_a_file_is_refused():
    with pytest.raises(NotADirectoryError, match="is a file; give the folder it is in"):
        load(folder("gpt2", "default") / "model.safetensors")


def test_a_revision_of_a_folder_is_refused():
    with pytest.raises(ValueError, match="revision='main' is for models on the Hub"):
        load(folder("gpt2", "default"), revision="main")


def test_an_embedded_name_that_does_not_exist_is_refused():
    with pytest.raises(FileNotFoundError, match="is none of the embedded checkpoints: nnzoo/tiny-gpt2, nnzoo/tiny"):
        load("nnzoo/tiny-gpt3")


# --- the checkpoint and its model ----------------------------------------------------------------------------------


def test_a_checkpoint_reads_weights_only_when_asked(tmp_path):
    copied(tmp_path, "gpt2")
    os.rename(tmp_path / "model.safetensors", tmp_path / "elsewhere")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == read_config(tmp_path)
    os.rename(tmp_path / "elsewhere", tmp_path / "model.safetensors")
    assert_same_weights(checkpoint.load(), ours("gpt2", "default"))


def test_a_model_without_tokenizer_says_so():
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        load(folder("gpt2", "default"))("text")


def test_a_loaded_model_knows_what_its_checkpoint_says_beside_the_equations():
    origin = load(folder("gpt2", "default")).origin
    assert origin.settings["eos_token_id"] == origin.generation["eos_token_id"] == 1


def test_a_mapped_tensor_outlives_what_opened_it(tmp_path):
    model = load(copied(tmp_path, "gpt2"))
    shutil.rmtree(tmp_path)
    assert_same_weights(model, ours("gpt2", "default"))
