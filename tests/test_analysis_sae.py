"""Autoencoders from SAELens's folders, against values that SAELens 6.54 computes from the same folders.

Run as a script, with SAELens installed, this file records them again.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

TABLE = Path(__file__).parent / "data" / "sae_lens.json"
RESID, Z = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"
MLP_IN, MLP_OUT = "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
CONFIGS = {
    "standard": {"architecture": "standard"},
    "without_b_dec": {"architecture": "standard", "apply_b_dec_to_input": False},
    "layer_norm": {"architecture": "standard", "normalize_activations": "layer_norm"},
    "constant_norm": {"architecture": "jumprelu", "normalize_activations": "constant_norm_rescale"},
    "gated": {"architecture": "gated"},
    "jumprelu": {"architecture": "jumprelu"},
    "topk": {"architecture": "topk", "k": 2},
    "topk_rescaled": {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True},
    "heads": {"architecture": "standard", "reshape_activations": "hook_z", "metadata": {"hook_name": Z}},
    "transcoder": {"architecture": "transcoder", "d_out": 3},
    "skip_transcoder": {"architecture": "skip_transcoder", "d_out": 3},
    "jumprelu_transcoder": {"architecture": "jumprelu_transcoder", "d_out": 3},
}
SHAPES = {"W_enc": (4, 6), "W_dec": (6, 4), "b_dec": (4,), "W_skip": (3, 4)}


def cfg(name):
    given = {"d_in": 4, "d_sae": 6, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, **CONFIGS[name]}
    given.setdefault("metadata", {"hook_name": RESID})
    if "transcoder" in name:
        given |= {"apply_b_dec_to_input": False, "metadata": {"hook_name": MLP_IN, "hook_name_out": MLP_OUT}}
    return given


def shape_of(name, tensor):
    d_out = CONFIGS[name].get("d_out", 4)
    return {"W_dec": (6, d_out), "b_dec": (d_out,)}.get(tensor, SHAPES.get(tensor, (6,)))


def write(path, given, weights):
    path.mkdir(exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(given))
    save_file({name: torch.tensor(value) for name, value in weights.items()}, path / "sae_weights.safetensors")
    return path


def record():
    """Weights, values, and what SAELens makes of them."""
    import tempfile

    from sae_lens import SAE

    tables = {}
    kinds = {"gated": ("b_gate", "b_mag", "r_mag"), "skip_transcoder": ("b_enc", "W_skip")}
    for name, given in CONFIGS.items():
        architecture = given["architecture"]
        names = ["W_enc", "W_dec", "b_dec", *kinds.get(architecture, ("b_enc",))]
        names += ["threshold"] * architecture.startswith("jumprelu")
        weights = {n: (torch.rand(shape_of(name, n)) * 2 - 1).tolist() for n in names}
        weights |= {"threshold": torch.rand(6).tolist()} if "threshold" in names else {}
        x = torch.randn(3, 2, 2) if name == "heads" else torch.randn(3, 4)
        with tempfile.TemporaryDirectory() as folder:
            loader = SAE.load_from_disk(write(Path(folder), cfg(name), weights))
            features, out = loader.encode(x), loader(x)
        values = {"x": x, "features": features, "out": out}
        tables[name] = {"weights": weights} | {key: value.detach().tolist() for key, value in values.items()}
    return tables


if __name__ == "__main__":
    torch.manual_seed(0)
    TABLE.write_text(json.dumps(record()) + "\n")
    raise SystemExit

from nnzoo import load  # noqa: E402  (the recording runs where nnzoo is not installed)
from nnzoo.analysis import SAE, SAEConfig, feature_activations, load_sae, spliced  # noqa: E402
from small_models import difference, prompts, small  # noqa: E402


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_an_autoencoder_gives_what_sae_lens_gives(name, table, tmp_path):
    row = table[name]
    sae = load_sae(write(tmp_path, cfg(name), row["weights"]))
    x = torch.tensor(row["x"])
    features = torch.tensor(row["features"])
    assert 0 < (features > 0).float().mean() < 1
    torch.testing.assert_close(sae.encode(x), features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x), torch.tensor(row["out"]), atol=1e-5, rtol=1e-5)


def test_a_config_of_before_version_6_says_the_same(table, tmp_path):
    old = {"d_in": 4, "d_sae": 6, "hook_point": RESID, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}
    row = table["topk"]
    weights = row["weights"] | {"scaling_factor": [1.0] * 6}
    sae = load_sae(write(tmp_path, old | {"normalize_activations": False}, weights), dtype=torch.float64)
    assert sae.config.hook_in == sae.config.hook_out == RESID
    assert difference(sae.encode(torch.tensor(row["x"])), torch.tensor(row["features"]).double()) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' is not implemented; nnzoo knows standard, gated"),
        ({"normalize_activations": "expected_average_only_in"}, "can be folded into the weights"),
        ({"activation_fn": "tanh-relu"}, "activation 'tanh-relu' with k=None is not implemented"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is not implemented"),
        ({"metadata": {}}, "has no hook_name"),
        ({"d_sae": 7}, r"W_dec is \[6, 4\], but cfg.json says \[7, 4\]"),
        ({"architecture": "jumprelu"}, r"missing \['threshold'\], not known \[\]"),
        ({"architecture": "transcoder"}, "has no hook_name_out"),
    ],
)
def test_what_is_not_known_is_refused(change, message, table, tmp_path):
    write(tmp_path, cfg("standard") | change, table["standard"]["weights"])
    with pytest.raises(ValueError, match=message):
        load_sae(tmp_path)


def test_a_tensor_too_many_and_a_file_too_few_are_refused(table, tmp_path):
    write(tmp_path, cfg("standard"), table["standard"]["weights"] | {"W_extra": [1.0]})
    with pytest.raises(ValueError, match=r"missing \[\], not known \['W_extra'\]"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no cfg.json: it is no autoencoder"):
        load_sae(tmp_path)


def drawn(d_in, d_out, hook_in, hook_out, merge_heads=False):
    shapes = {"W_enc": (d_in, 40), "b_enc": (40,), "W_dec": (40, d_out), "b_dec": (d_out,)}
    weights = {name: torch.rand(shape, dtype=torch.float64) - 0.5 for name, shape in shapes.items()}
    kind = "standard" if hook_in == hook_out else "transcoder"
    return SAE(SAEConfig(kind, d_in, 40, d_out, hook_in, hook_out, kind == "standard", "none", merge_heads), weights)


@pytest.mark.parametrize(("hook_in", "hook_out"), [(RESID, RESID), (Z, Z), (MLP_IN, MLP_OUT)])
def test_a_spliced_autoencoder_with_its_error_changes_nothing_but_what_is_edited(hook_in, hook_out):
    model, tokens = small("gpt2"), prompts()
    sae = drawn(24, 24, hook_in, hook_out, merge_heads=hook_in == Z)
    with spliced(model, sae) as seen:
        same = model(tokens)
    assert difference(same, model(tokens)) < 1e-10
    assert difference(seen.features, feature_activations(model, tokens, sae)) < 1e-10
    with spliced(model, sae, error_term=False):
        rebuilt = model(tokens)
    _, cache = model.run_with_cache(tokens)
    expected = model.run_with_hooks(tokens, fwd_hooks=[(hook_out, lambda value, hook: sae(cache[hook_in]))])
    assert difference(rebuilt, expected) < 1e-10
    assert difference(rebuilt, same) > 1e-3

    def switch_off(features):
        features[..., 7] = 0

    with spliced(model, sae, edit=switch_off) as seen:
        without = model(tokens)
    assert not seen.features[..., 7].any()
    written = sae.encode(cache[hook_in])[..., 7, None] * sae.weights["W_dec"][7]
    take_away = [(hook_out, lambda value, hook: value - written.view_as(value))]
    assert difference(without, model.run_with_hooks(tokens, fwd_hooks=take_away)) < 1e-9
    assert difference(without, same) > 1e-3
    assert not [hook for point in model.hook_points.values() for hook in point.hooks]


def test_a_hook_point_that_the_model_has_not_is_refused():
    with pytest.raises(KeyError, match=r"reads and writes blocks.9.hook_resid_pre, which the model does not have"):
        with spliced(small("gpt2"), drawn(24, 24, *["blocks.9.hook_resid_pre"] * 2)):
            pass


def test_decoding_what_was_normalised_needs_the_values(table, tmp_path):
    sae = load_sae(write(tmp_path, cfg("layer_norm"), table["layer_norm"]["weights"]))
    with pytest.raises(ValueError, match=r"decode\(features, x\)"):
        sae.decode(torch.zeros(1, 6))


def test_a_model_of_another_precision_is_spliced_in_its_own():
    model = load("nnzoo/tiny-gpt2").bfloat16()
    sae = drawn(96, 96, RESID, RESID)
    with spliced(model, sae):
        assert model("The capital of France is").dtype == torch.bfloat16
