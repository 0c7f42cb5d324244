"""Hook points: TransformerLens's names, shapes and order; listening changes nothing, editing what it says."""

import copy
import pickle
from collections.abc import Mapping

import pytest
import torch
from einops import einsum
from torch import Tensor

from families import PLAIN, error, ids, ours, prompt, settings_of
from nnzoo.architectures.hooked_model import HookedModel

# name, shape, and whom it belongs to (everybody, unless said), in the order in which TransformerLens 3.9 fires them
BEFORE = """
hook_tokens                batch pos
hook_embed                 batch pos d_model
hook_pos_embed             batch pos d_model              gpt2
"""
BLOCK = """
hook_resid_pre             batch pos d_model
hook_attn_in               batch pos head d_model
hook_q_input               batch pos head d_model
hook_k_input               batch pos kv_head d_model
hook_v_input               batch pos kv_head d_model
ln1.hook_scale             batch pos 1
ln1.hook_normalized        batch pos d_model
attn.hook_q                batch pos head d_head
attn.hook_k                batch pos kv_head d_head
attn.hook_v                batch pos kv_head d_head
attn.hook_rot_q            batch pos head d_head          llama
attn.hook_rot_k            batch key_pos kv_head d_head   llama
attn.hook_attn_scores      batch head query key
attn.hook_pattern          batch head query key
attn.hook_z                batch pos head d_head
attn.hook_result           batch pos head d_model
hook_attn_out              batch pos d_model
hook_resid_mid             batch pos d_model
hook_mlp_in                batch pos d_model
ln2.hook_scale             batch pos 1
ln2.hook_normalized        batch pos d_model
mlp.hook_pre               batch pos d_mlp
mlp.hook_pre_linear        batch pos d_mlp                llama
mlp.hook_post              batch pos d_mlp
hook_mlp_out               batch pos d_model
hook_resid_post            batch pos d_model
"""
AFTER = """
ln_final.hook_scale        batch pos 1
ln_final.hook_normalized   batch pos d_model
unembed.hook_in            batch pos d_model
unembed.hook_out           batch pos d_vocab
"""
SETTINGS = [*PLAIN, ("llama", "n_kv_heads=1"), ("llama", "n_kv_heads=4"), ("llama", "head_dim=10")]
SETTINGS += [("gpt2", "odd_sizes"), ("gpt2", "n_inner=100"), ("mistral", "head_dim=16")]
ATTENTION_LISTENERS = ["attn.hook_attn_scores", "attn.hook_pattern"]
NORM_LISTENERS = ["ln1.hook_scale", "ln1.hook_normalized", "ln2.hook_scale", "ln2.hook_normalized"]
HEAD_LISTENERS = ["hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "attn.hook_result"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}
LAYER = 1
# without gradients a model leaves out the head inputs that nobody changed
GRADIENTS = pytest.mark.parametrize("gradients", [True, False], ids=["grad", "no_grad"])


def table(family: str, n_layers: int, grouped: bool) -> dict[str, str]:
    """The whole model's names and shapes, in order."""
    blocks = [f"blocks.{layer}.{line}" for layer in range(n_layers) for line in BLOCK.split("\n") if line]
    found: dict[str, str] = {}
    for line in [*BEFORE.split("\n"), *blocks, *AFTER.split("\n")]:
        name, *axes = line.split() or [""]
        owner = axes.pop() if axes and axes[-1] in ("gpt2", "llama") else None
        if name and owner in (None, "gpt2" if family == "gpt2" else "llama"):
            found[name] = " ".join(axes) if grouped else " ".join(axes).replace("kv_head", "head")
    return found


def everything(model: HookedModel, tokens: Tensor, **kwargs: object) -> Mapping[str, Tensor]:
    return model.run_with_cache(tokens, names_filter=lambda name: True, **kwargs)[1]


def same(value, hook):
    """An edit that edits nothing."""
    return value.clone()


# --- names and shapes ----------------------------------------------------------------------------------------------


@ids(SETTINGS)
def test_names_shapes_and_order_are_those_of_transformer_lens(family, setting):
    model = ours(family, setting)
    config = model.config
    wanted = table(family, config.n_layers, config.n_kv_heads != config.n_heads)
    fired = [name for name in everything(model, prompt(1, 4)) if name in wanted]
    assert fired == list(wanted)
    assert {name: model.hook_points[name].axes for name in wanted} == wanted


@pytest.mark.parametrize("cached", [False, True])
@ids(settings_of())
def test_what_passes_has_the_declared_shape(family, setting, cached):
    model, tokens, kwargs = ours(family, setting), prompt(5, 9), {}
    if cached:
        kwargs["cache"] = model.new_cache()
        model(tokens[:, :6], cache=kwargs["cache"])
    n_pos = 3 if cached else 9
    n_key = min(9, model.window - 1 + n_pos) if model.window and cached else 9
    free = {"batch": 5, "pos": n_pos, "query": n_pos, "key": n_key, "key_pos": n_key, "1": 1}
    sizes = {**model.axis_sizes, **free}
    values = everything(model, tokens[:, -n_pos:], **kwargs)
    assert set(values) == set(model.hook_points)
    for name, value in values.items():
        assert list(value.shape) == [sizes[symbol] for symbol in model.hook_points[name].axes.split()], name


@ids(PLAIN)
def test_every_hook_point_has_its_own_name(family, setting):
    model = ours(family, setting)
    assert [point.name for point in model.hook_points.values()] == list(model.hook_points)
    assert len({id(point) for point in model.hook_points.values()}) == len(model.hook_points)
    assert model.hook_points["blocks.1.attn.hook_q"] is model.blocks[1].attn.hook_q


@ids(PLAIN)
def test_only_per_head_copies_of_the_stream_are_left_out_of_a_cache_that_nobody_filtered(family, setting):
    model = ours(family, setting)
    left_out = set(model.hook_points) - set(model.run_with_cache(prompt(1, 4))[1])
    wanted = {f"blocks.{layer}.{name}" for layer in range(3) for name in HEAD_LISTENERS}
    assert left_out == wanted


# --- nobody listening ----------------------------------------------------------------------------------------------


@ids(PLAIN)
def test_an_idle_hook_point_passes_the_object_through(family, setting):
    value = torch.zeros(1)
    assert all(point(value) is value for point in ours(family, setting).hook_points.values())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
@ids([*PLAIN, ("llama", "tied"), ("llama", "rope=yarn")])
def test_a_copy_of_a_model_is_a_model_of_its_own(family, setting, copied):
    model, tokens = ours(family, setting), prompt(2, 6)
    other = copied(model)
    assert list(other.hook_points) == list(model.hook_points)
    assert other.hook_points["blocks.1.attn.hook_q"] is other.blocks[1].attn.hook_q
    assert (other.unembed.weight is other.embed.weight) == model.config.tied
    idle = model(tokens)
    with other.hooks([("blocks.0.hook_resid_pre", lambda value, hook: value * 0)]):
        assert not torch.equal(other(tokens), idle)
        assert torch.equal(model(tokens), idle)
    assert torch.equal(other(tokens), idle)


# --- somebody listening --------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """How often the fused kernels run."""
    counted = {"scaled_dot_product_attention": 0, "layer_norm": 0}

    def counting(name):
        kernel = getattr(torch.nn.functional, name)

        def call(*args, **kwargs):
            counted[name] += 1
            return kernel(*args, **kwargs)

        return call

    for name in counted:
        monkeypatch.setattr(torch.nn.functional, name, counting(name))
    return counted


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("point", ATTENTION_LISTENERS + NORM_LISTENERS + HEAD_LISTENERS)
@ids(PLAIN)
def test_listening_changes_nothing(family, setting, point, dtype):
    model, tokens = ours(family, setting, dtype), prompt(2, 20)
    idle = model(tokens)
    for listening in ({"names_filter": f"blocks.{LAYER}.{point}"}, {"names_filter": f"blocks.*.{point}"}):
        logits, cache = model.run_with_cache(tokens, **listening)
        assert cache
        assert error(logits, idle) < TOLERANCE[dtype]
    with model.hooks([(f"blocks.{LAYER}.{point}", same)]):
        assert error(model(tokens), idle) < TOLERANCE[dtype]


@pytest.mark.parametrize("point", ATTENTION_LISTENERS)
@ids(PLAIN)
def test_listening_to_attention_takes_the_fused_kernel_from_that_block_alone(family, setting, point, calls):
    ours(family, setting).run_with_cache(prompt(2, 9), names_filter=f"blocks.{LAYER}.{point}")
    assert calls["scaled_dot_product_attention"] == 2


@ids(PLAIN)
def test_listening_elsewhere_leaves_attention_fused(family, setting, calls):
    elsewhere = lambda name: not name.endswith(tuple(ATTENTION_LISTENERS))  # noqa: E731
    ours(family, setting).run_with_cache(prompt(2, 9), names_filter=elsewhere)
    assert calls["scaled_dot_product_attention"] == 3


@pytest.mark.parametrize("point", NORM_LISTENERS)
def test_listening_to_a_norm_takes_the_fused_kernel_from_that_norm_alone(point, calls):
    ours("gpt2", "default").run_with_cache(prompt(2, 9), names_filter=f"blocks.{LAYER}.{point}")
    assert calls["layer_norm"] == 2 * 3 + 1 - 1


# --- editing -------------------------------------------------------------------------------------------------------


def edited(model: HookedModel, tokens: Tensor, edits: dict[str, object]) -> Mapping[str, Tensor]:
    """All values of the edited layer, with `blocks.LAYER.NAME` replaced or changed by each edit."""
    with model.hooks([(f"blocks.{LAYER}.{name}", edit) for name, edit in edits.items()]):
        return everything(model, tokens)


def replace(new: Tensor):
    return lambda value, hook: new


def without_head(value, hook):
    axis = hook.axes.split().index("head")
    return value.index_fill(axis, torch.tensor([2]), 0)


@pytest.mark.parametrize("point", ["attn.hook_pattern", "attn.hook_result"])
@ids(SETTINGS)
def test_a_head_removed_at_one_place_is_removed_at_the_others(family, setting, point):
    model, tokens = ours(family, setting), prompt(2, 9)
    reference, other = (edited(model, tokens, {p: without_head}) for p in ("attn.hook_z", point))
    assert error(other["unembed.hook_out"], reference["unembed.hook_out"]) < 1e-10


@ids(SETTINGS)
def test_scores_of_minus_infinity_are_not_seen(family, setting):
    model, tokens = ours(family, setting), prompt(2, 9)
    blinded = lambda value, hook: value.index_fill(3, torch.tensor([1]), -torch.inf)  # noqa: E731
    pattern = edited(model, tokens, {"attn.hook_attn_scores": blinded})[f"blocks.{LAYER}.attn.hook_pattern"]
    assert (pattern[..., 1] == 0).all()
    torch.testing.assert_close(pattern.sum(dim=-1)[:, :, 2:], torch.ones_like(pattern[:, :, 2:, 0]))


@pytest.mark.parametrize("norm", ["ln1", "ln2"])
@ids(PLAIN)
def test_a_scale_twice_as_large_halves_what_is_normalized(family, setting, norm):
    model, tokens = ours(family, setting), prompt(2, 9)
    twice = edited(model, tokens, {f"{norm}.hook_scale": lambda value, hook: value * 2})
    half = edited(model, tokens, {f"{norm}.hook_normalized": lambda value, hook: value / 2})
    assert error(twice["unembed.hook_out"], half["unembed.hook_out"]) < 1e-12


@ids(PLAIN)
def test_a_scale_that_a_hook_detaches_is_a_constant_to_gradients(family, setting):
    model = ours(family, setting)
    norm, direction = model.blocks[LAYER].ln1, torch.randn(model.config.d_model, dtype=torch.float64)
    x = torch.randn(2, 5, model.config.d_model, dtype=torch.float64, requires_grad=True)
    handle = norm.hook_scale.add_hook(lambda value, hook: value.detach())
    scales = []
    with torch.enable_grad():
        norm.hook_scale.add_reader(lambda value, hook: scales.append(value))
        (gradient,) = torch.autograd.grad((norm(x) * direction).sum(), x)
    handle.remove()
    weighted = norm.weight * direction
    expected = (weighted - weighted.mean() * (family == "gpt2")) / scales[0]
    assert error(gradient, expected) < (1e-12 if family == "gpt2" else 1e-6)
    norm.hook_scale.hooks.clear()


@ids(PLAIN)
def test_normalized_is_before_the_weights_and_scale_is_its_divisor(family, setting):
    model = ours(family, setting)
    cache, norm = everything(model, prompt(2, 9)), model.blocks[LAYER].ln1
    x, scale, normalized, out = (cache[f"blocks.{LAYER}.ln1.hook_{p}"] for p in ("in", "scale", "normalized", "out"))
    if family == "gpt2":
        x = x - x.mean(dim=-1, keepdim=True)
    assert error(x / scale, normalized) < 1e-6
    assert error(normalized * norm.weight + (norm.bias if family == "gpt2" else 0), out) < 1e-12


@ids(SETTINGS)
def test_results_sum_to_what_attention_writes(family, setting):
    model = ours(family, setting)
    cache, attn = everything(model, prompt(2, 9)), model.blocks[LAYER].attn
    result, written = cache[f"blocks.{LAYER}.attn.hook_result"], cache[f"blocks.{LAYER}.hook_attn_out"]
    assert error(result.sum(dim=2) + (attn.b_O if attn.b_O is not None else 0), written) < 1e-12


@GRADIENTS
@pytest.mark.parametrize("which", ["q", "k", "v"])
@ids(SETTINGS)
def test_a_head_reads_what_is_put_at_its_input(family, setting, which, gradients):
    model, tokens = ours(family, setting), prompt(2, 9)
    block = model.blocks[LAYER]
    shape = everything(model, tokens)[f"blocks.{LAYER}.hook_{which}_input"].shape
    new = torch.randn(shape, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        cache = edited(model, tokens, {f"hook_{which}_input": replace(new)})
    idle = everything(model, tokens)
    for name in "qkv":
        found = cache[f"blocks.{LAYER}.attn.hook_{name}"]
        wanted = projected(block, new, name) if name == which else idle[f"blocks.{LAYER}.attn.hook_{name}"]
        assert error(found, wanted) < 1e-6, name  # RMSNorm is float32 inside


def projected(block: torch.nn.Module, inputs: Tensor, name: str) -> Tensor:
    """Queries, keys or values of heads that each read their own input."""
    W, b = (getattr(block.attn, f"{letter}_{name.upper()}") for letter in "Wb")
    return einsum(block.ln1.fused(inputs), W, "b p h d, h d d_head -> b p h d_head") + b


@GRADIENTS
@ids(SETTINGS)
def test_all_three_read_what_is_put_at_the_input_of_attention(family, setting, gradients):
    model, tokens = ours(family, setting), prompt(2, 9)
    block, heads, kv_heads = model.blocks[LAYER], model.config.n_heads, model.config.n_kv_heads
    new = torch.randn(2, 9, heads, model.config.d_model, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        cache = edited(model, tokens, {"hook_attn_in": replace(new)})
    grouped = new.unflatten(2, (kv_heads, heads // kv_heads)).mean(dim=3)
    for name, inputs in (("q", new), ("k", grouped), ("v", grouped)):
        assert error(cache[f"blocks.{LAYER}.attn.hook_{name}"], projected(block, inputs, name)) < 1e-6, name


@ids(PLAIN)
def test_the_mlp_reads_what_is_put_at_its_input_and_the_stream_keeps_its_own(family, setting):
    model, tokens = ours(family, setting), prompt(2, 9)
    new = torch.randn(2, 9, model.config.d_model, dtype=torch.float64)
    cache = edited(model, tokens, {"hook_mlp_in": replace(new)})
    block = model.blocks[LAYER]
    wanted = block.mlp(block.ln2(new))
    assert error(cache[f"blocks.{LAYER}.hook_mlp_out"], wanted) < 1e-12
    added = cache[f"blocks.{LAYER}.hook_resid_mid"] + wanted
    assert error(cache[f"blocks.{LAYER}.hook_resid_post"], added) < 1e-12


# --- gradients -----------------------------------------------------------------------------------------------------


def gradients_at(model: HookedModel, tokens: Tensor, names: list[str]) -> list[Tensor]:
    """What flows back through some hook points of the edited layer, summed over heads where there are heads."""
    found: dict[str, Tensor] = {}
    names = [f"blocks.{LAYER}.{name}" for name in names]
    with model.hooks(bwd_hooks=[(name, lambda gradient, hook: found.update({hook.name: gradient})) for name in names]):
        model(tokens).pow(2).sum().backward()
    return [found[name].sum(dim=2) if found[name].ndim == 4 else found[name] for name in names]


@pytest.mark.parametrize(
    "inputs", [["hook_attn_in"], ["hook_q_input", "hook_k_input", "hook_v_input"]], ids=["in", "qkv"]
)
@ids(SETTINGS)
def test_the_heads_own_inputs_carry_the_gradient_of_the_shared_one(family, setting, inputs):
    shared, *own = gradients_at(ours(family, setting), prompt(2, 9), ["ln1.hook_in", *inputs])
    assert error(sum(own), shared) < 1e-5


@ids(SETTINGS)
def test_who_only_reads_the_heads_inputs_finds_their_gradient(family, setting):
    model, tokens, read = ours(family, setting), prompt(2, 9), []
    shared = gradients_at(model, tokens, ["ln1.hook_in"])[0]
    handle = model.hook_points[f"blocks.{LAYER}.hook_attn_in"].add_reader(lambda value, hook: read.append(value))
    try:
        logits = model(tokens)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(logits.pow(2).sum(), read)
    assert error(gradient.sum(dim=2), shared) < 1e-5
