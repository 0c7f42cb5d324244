"""Every key of config.json is read, known to change nothing, or refused by name; both spellings of rope are read."""

import json
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from checkpoints import config_of, copied
from families import CLASSES, SETTINGS, error, folder, ids, prompt, settings_of
from nnzoo.architectures.rotary import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope
from nnzoo.weights import ConfigError, build, config_to_hf, load, parse_config, read_config, read_origin, skeleton
from nnzoo.weights.config import FAMILIES
from nnzoo.weights.settings import FIXED, WITHOUT_EFFECT

EACH_FAMILY = pytest.mark.parametrize("family", CLASSES)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TABLES = {
    "none": None,
    "default": {"rope_type": "default"},
    "linear": {"type": "linear", "factor": 2},
    "dynamic": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32},
    "both_names": {"type": "linear", "rope_type": "linear", "factor": 2.0},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 32},
    "llama3_without_original": LLAMA3,
    "yarn": YARN,
    "yarn_without_original": {"rope_type": "yarn", "factor": 4.0},
    "yarn_factor_null": YARN | {"factor": None, "original_max_position_embeddings": 16},
    "yarn_factor_below_1": YARN | {"factor": 0.5},
    "yarn_ramp_within_the_head": {**YARN, "original_max_position_embeddings": 4096, "truncate": False},
    "yarn_betas": YARN | {"beta_fast": 4, "beta_slow": 0.5},
    "yarn_betas_null": YARN | {"beta_fast": None, "beta_slow": 0},
    "yarn_attention_factor": YARN | {"attention_factor": 0.7},
    "yarn_attention_factor_null": YARN | {"attention_factor": None},
    "yarn_mscale": YARN | {"mscale": 0.8, "mscale_all_dim": 1.3},
    "yarn_mscale_alone": YARN | {"mscale": 0.8},
    "yarn_mscale_all_dim_0": YARN | {"mscale": 0.8, "mscale_all_dim": 0},
    "yarn_untruncated": YARN | {"truncate": False},
}


def parsed(family: str, **settings: Any) -> Any:
    return parse_config({"model_type": family, **settings})[0]


def refusal(family: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(family, **settings)
    return str(caught.value)


# --- every key is accounted for --------------------------------------------------------------------------------


@EACH_FAMILY
def test_every_setting_that_transformers_writes_is_accounted_for(family):
    everything = {**CLASSES[family][0]().to_dict(), "model_type": family}
    parse_config({key: value for key, value in everything.items() if key != "dtype"})


@EACH_FAMILY
@pytest.mark.parametrize("key", [*GenerationConfig._get_default_generation_params(), "torch_dtype"])
def test_generation_settings_of_old_configs_change_nothing(family, key):
    assert parsed(family, **{key: 3}) == parsed(family)


@EACH_FAMILY
def test_an_unknown_setting_is_refused_by_name(family):
    assert refusal(family, foo=3) == (
        "config.json: setting 'foo' = 3 is not known. If the forward pass does not depend on it, remove it; "
        "if it does, nnzoo has not got this model."
    )


def test_errors_name_the_folder(tmp_path):
    copied(tmp_path, "gpt2", foo=3)
    with pytest.raises(ConfigError, match=f"config.json of {tmp_path}: setting 'foo' = 3"):
        load(tmp_path)


@EACH_FAMILY
@pytest.mark.parametrize("key", FIXED)
def test_a_setting_of_one_value_is_refused_with_another(family, key):
    value = {"another": 1}
    assert f"setting '{key}' = {json.dumps(value)} is not implemented" in refusal(family, **{key: value})
    assert parsed(family, **{key: FIXED[key][0]}) == parsed(family) == parsed(family, **{key: None})


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "sliding_window", 4),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "rope_interleaved", True),
        ("mistral", "attention_bias", True),
        ("mistral", "mlp_bias", True),
        ("llama", "layer_types", ["full_attention", "sliding_attention"]),
        ("mistral", "layer_types", ["full_attention", "sliding_attention"]),
    ],
)
def test_what_a_family_does_not_implement_is_refused(family, key, value):
    assert f"setting '{key}' = {json.dumps(value)} is not implemented" in refusal(family, **{key: value})


def test_layer_types_that_the_window_implies_are_accepted():
    assert parsed("mistral", layer_types=["sliding_attention"]) == parsed("mistral")
    assert parsed("mistral", layer_types=["full_attention"], sliding_window=None).window is None
    assert parsed("llama", layer_types=["full_attention"]) == parsed("llama")


@EACH_FAMILY
def test_no_setting_is_both_read_and_said_to_have_no_effect(family):
    read = config_to_hf(parsed(family)).keys() - {"model_type", "architectures"}
    assert not read & FAMILIES[family].without_effect.keys()
    assert not FAMILIES[family].fixed.keys() & FAMILIES[family].without_effect.keys()


@pytest.mark.parametrize(
    "setting", ["initializer_range", "use_cache", "attn_pdrop", "n_ctx", "reorder_and_upcast_attn"]
)
def test_settings_without_effect_come_back(setting):
    assert parse_config({"model_type": "gpt2", setting: 0})[1][setting] == 0


def test_every_reason_is_given():
    assert all(WITHOUT_EFFECT.values())


# --- values ----------------------------------------------------------------------------------------------------


@EACH_FAMILY
def test_missing_settings_are_transformers_defaults(family):
    written = config_to_hf(parsed(family))
    theirs = CLASSES[family][0]().to_dict()
    theirs["n_inner"] = theirs.get("n_inner") or 4 * 768
    kept = written.keys() & theirs.keys() - {"architectures", "model_type"}
    assert len(kept) >= 11
    assert {key: written[key] for key in kept} == {key: theirs[key] for key in kept}


@ids(settings_of())
def test_a_written_config_is_read_as_the_same(family, setting):
    config = read_config(folder(family, setting))
    assert parse_config(json.loads(json.dumps(config_to_hf(config))))[0] == config


@ids(settings_of())
def test_a_written_config_is_the_same_to_transformers(family, setting):
    before = CLASSES[family][0].from_pretrained(folder(family, setting)).to_dict()
    after = CLASSES[family][0](**config_to_hf(read_config(folder(family, setting)))).to_dict()
    for key in SETTINGS[family][setting].keys() - FAMILIES[family].without_effect.keys():
        if key == "rope_parameters":
            assert before[key].items() <= after[key].items() | {("mscale", 0.8), ("mscale_all_dim", 1.3)}
        else:
            assert after[key] == before[key]


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("n_layer", "12", "setting 'n_layer' = \"12\" is not a positive integer."),
        ("n_layer", 0, "setting 'n_layer' = 0 is not a positive integer."),
        ("n_layer", True, "setting 'n_layer' = true is not a positive integer."),
        ("vocab_size", None, "setting 'vocab_size' = null is not a positive integer."),
        ("layer_norm_epsilon", "1e-5", "setting 'layer_norm_epsilon' = \"1e-5\" is not a number."),
        ("scale_attn_weights", 1, "setting 'scale_attn_weights' = 1 is neither true nor false."),
        ("n_head", 7, "setting 'n_embd' = 768 is not a multiple of 'n_head' = 7; GPT-2's heads share it out."),
        ("hidden_size", 10, "setting 'n_embd' = 768 and 'hidden_size' = 10 disagree: remove one."),
        (
            "activation_function",
            "mish",
            "setting 'activation_function' = \"mish\" is not implemented; nnzoo knows 'gelu', 'gelu_new', "
            "'gelu_pytorch_tanh', 'relu', 'silu' and 'swish'.",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(key, value, complaint):
    assert refusal("gpt2", **{"n_embd": 768, key: value}) == f"config.json: {complaint}"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_attention_heads": 5, "num_key_value_heads": 2}, "is not a multiple of 'num_key_value_heads' = 2"),
        ({"head_dim": 7}, "setting 'head_dim' = 7 is odd"),
        ({"hidden_act": "mish"}, "setting 'hidden_act' = \"mish\" is not implemented"),
    ],
)
def test_llama_heads_and_activations_that_make_no_sense_are_refused(settings, complaint):
    assert complaint in refusal("llama", **settings)


def test_gpt2_may_use_the_names_of_llama():
    names = {"hidden_size": 20, "max_position_embeddings": 9, "num_attention_heads": 5, "num_hidden_layers": 3}
    assert parsed("gpt2", **names) == parsed("gpt2", n_embd=20, n_positions=9, n_head=5, n_layer=3)


@pytest.mark.parametrize("name", ["qwen2", None])
def test_another_family_is_refused_naming_the_three(name):
    with pytest.raises(ConfigError, match="is not implemented; nnzoo knows 'gpt2', 'llama' and 'mistral'"):
        parse_config({"model_type": name})


def test_a_config_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds list, not a JSON object"):
        read_config(tmp_path)


# --- rotary embedding ------------------------------------------------------------------------------------------


ROTARY: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "vocab_size": 2,
    "intermediate_size": 2,
    "num_hidden_layers": 1,
}


def assert_same_rotary(settings: dict[str, Any]) -> None:
    """100 positions have transformers' cosines and sines."""
    config_class, model_class = CLASSES["llama"]
    rotary = model_class(config_class(**ROTARY, **json.loads(json.dumps(settings)))).model.rotary_emb
    theirs = rotary(torch.zeros(1, dtype=torch.float64), torch.arange(100)[None])
    ours = build(parsed("llama", **ROTARY, **settings)).rotary(torch.arange(100)[None], torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("theta", [{}, {"rope_theta": 500}], ids=["theta_default", "theta=500"])
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_rotary_settings_are_read_as_transformers_reads_them(table, spelling, theta):
    assert_same_rotary({spelling: table, **theta})


def test_theta_may_stand_in_the_table():
    assert parsed("llama", rope_parameters={"rope_type": "default", "rope_theta": 500}).rope == Rope(theta=500.0)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_the_original_length_may_stand_outside_of_the_table(kind):
    outside = {"rope_parameters": TABLES[kind] | {"rope_theta": 1e4}, "original_max_position_embeddings": 16}
    assert parsed("llama", **outside).rope.original_n_ctx == 16
    assert_same_rotary(outside)


@pytest.mark.parametrize("kind", ["longrope", "su", "mrope"])
def test_a_rope_type_that_is_not_implemented_is_refused_naming_those_that_are(kind):
    assert refusal("llama", rope_parameters={"rope_type": kind}) == (
        f"config.json, rope_parameters: setting 'rope_type' = \"{kind}\" is not implemented; "
        "nnzoo knows 'default', 'dynamic', 'linear', 'llama3' and 'yarn'."
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rope_scaling": {"type": "linear"}}, "setting 'rope_type' = \"linear\" needs 'factor', which is missing"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "setting 'factor' = null is not a number"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "disagree: remove one"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 1}}, "setting 'beta_fast' = 1 is not known"),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "setting 'partial_rotary_factor' = 0.5 is not"),
        ({"rope_scaling": TABLES["linear"], "rope_parameters": YARN}, "and 'rope_parameters' disagree: remove one"),
        ({"rope_parameters": YARN | {"rope_theta": 5}, "rope_theta": 6}, "'rope_theta' = 6.0 outside of it disagree"),
        ({"rope_scaling": "linear"}, "setting 'rope_scaling' = \"linear\" is not an object"),
    ],
)
def test_rotary_settings_that_make_no_sense_are_refused(settings, complaint):
    assert complaint in refusal("llama", **settings)


def test_each_rope_type_has_its_class():
    tables = {"default": Rope, "linear": LinearRope, "dynamic": DynamicRope, "llama3": Llama3Rope, "yarn": YarnRope}
    assert {name: type(parsed("llama", rope_parameters=TABLES[name]).rope) for name in tables} == tables


@ids([("llama", s) for s in SETTINGS["llama"] if s.startswith("rope=")] + [("mistral", "rope=linear")])
def test_the_old_spelling_of_rope_gives_the_logits_of_the_new(family, setting, tmp_path):
    table = config_of(folder(family, setting))["rope_parameters"]
    theta = table.pop("rope_theta")
    copied(tmp_path, family, setting, ["rope_parameters"], rope_theta=theta, rope_scaling=table)
    tokens = prompt(2, 40)
    assert error(load(tmp_path)(tokens), load(folder(family, setting))(tokens)) == 0


# --- models ----------------------------------------------------------------------------------------------------


@EACH_FAMILY
def test_a_skeleton_has_the_shapes_of_the_model_and_no_weights(family):
    config = read_config(folder(family, next(iter(SETTINGS[family]))))
    empty, full = skeleton(config), build(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in full.named_parameters()}
    assert all(parameter.any() for name, parameter in full.named_parameters() if not name.endswith("bias"))


def test_the_generation_config_is_read(tmp_path):
    copied(tmp_path, "gpt2", eos_token_id=5, temperature=0.5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [6, 7]}')
    assert read_origin(tmp_path).generation == {"eos_token_id": [6, 7]}


def test_without_a_generation_config_config_json_says_how_to_generate(tmp_path):
    copied(tmp_path, "gpt2", eos_token_id=5, temperature=0.5)
    (tmp_path / "generation_config.json").unlink()
    found = read_origin(tmp_path).generation
    assert found["eos_token_id"] == 5
    assert found["temperature"] == 0.5
    assert "initializer_range" not in found
