"""Running a model with a cache: which hook points are kept, that looking changes nothing, what a run returns."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from small_models import BATCH, FAMILIES, POS, difference, prompts, small

EXACT = 1e-10  # between the fused and the explicit path


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return small(family)


# --- which hook points --------------------------------------------------------------------------------------------

MIDS = ["blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid"]


@pytest.mark.parametrize(
    "names",
    [
        MIDS,
        tuple(MIDS),
        set(MIDS),
        iter(MIDS),
        "blocks.*.hook_resid_mid",
        "*resid_mid",
        re.compile(r"blocks\.\d\.hook_resid_mid"),
        [MIDS[0], "*.1.*mid"],
        [re.compile(".*mid"), MIDS[0]],
        lambda name: name.endswith("mid"),
    ],
    ids="list tuple set iterator glob short_glob expression globs expressions function".split(),
)
def test_a_filter_selects(names):
    _, cache = small("gpt2").run_with_cache(prompts(), names_filter=names)
    assert list(cache) == MIDS


def test_a_name_is_not_a_pattern_for_longer_ones():
    _, cache = small("gpt2").run_with_cache(prompts(), names_filter="blocks.1.hook_resid_mid")
    assert list(cache) == MIDS[1:]


def test_without_a_filter_all_is_kept_but_what_is_n_heads_times_the_stream(model):
    _, cache = model.run_with_cache(prompts())
    missing = {name.split(".", 2)[2] for name in set(model.hook_points) - set(cache)}
    assert missing == {"hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "attn.hook_result"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("blocks.0.hook_q", "no hook point matches 'blocks.0.hook_q'; did you mean blocks.0.attn.hook_q"),
        (["hook_embed", "blocks.0.atn.hook_z"], "did you mean blocks.0.attn.hook_z"),
        ("transformer/h/0", "model.hook_points lists them"),
        ("blocks.2.*", "no hook point matches 'blocks.2.*'"),
        (re.compile("hook_[xy]"), "no hook point matches 'hook_[xy]'"),
        (lambda name: "x1" in name, "accepts none of the model's 66 hook points"),
    ],
    ids="name misspelt slashes glob expression function".split(),
)
def test_a_filter_that_matches_nothing_is_an_error_with_the_nearest_names(names, message):
    with pytest.raises(KeyError, match=re.escape(message)):
        small("gpt2").run_with_cache(prompts(), names_filter=names)


# --- looking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("edit", [None, "blocks.0.attn.hook_z", "blocks.1.hook_q_input", "blocks.0.ln2.hook_scale"])
def test_looking_at_everything_changes_no_result(model, grad, edit):
    tokens = prompts()
    hooks = [(edit, lambda value, hook: value * 0.5)] if edit else []
    with torch.set_grad_enabled(grad), model.hooks(hooks):
        plain = model(tokens)
        seen, cache = model.run_with_cache(tokens, names_filter=lambda name: True)
        default, _ = model.run_with_cache(tokens)
    assert difference(seen, plain) < EXACT
    assert difference(default, plain) < EXACT
    assert set(cache) == set(model.hook_points)


def test_looking_changes_no_gradient_of_the_weights(model):
    tokens = prompts()
    model(tokens, return_type="loss").backward()
    plain = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    loss, _ = model.run_with_cache(tokens, names_filter=lambda name: True, return_type="loss")
    loss.backward()
    for name, value in model.named_parameters():
        assert difference(value.grad, plain[name]) < 1e-5, name


@pytest.mark.parametrize(("point", "weight", "bias"), [("q", "W_Q", "b_Q"), ("k", "W_K", "b_K"), ("v", "W_V", "b_V")])
def test_a_head_reads_its_own_input_and_the_others_theirs(model, point, weight, bias):
    tokens, block = prompts(), model.blocks[1]
    head, name = 1, f"blocks.1.hook_{point}_input"
    _, before = model.run_with_cache(tokens, names_filter=lambda name: True)
    other = torch.randn_like(before["resid_pre", 1])

    def patch(value, hook):
        value[:, :, head] = other
        return value

    with model.hooks([(name, patch)]):
        _, after = model.run_with_cache(tokens, names_filter=lambda name: True)
    W, b = getattr(block.attn, weight), getattr(block.attn, bias)
    expected = before[point, 1].clone()
    expected[:, :, head] = block.ln1.fused(other) @ W[head] + b[head]
    assert difference(after[point, 1], expected) < 1e-6
    for untouched in {"q", "k", "v"} - {point}:
        assert difference(after[untouched, 1], before[untouched, 1]) < EXACT


def test_hook_attn_in_is_what_all_three_inputs_of_a_head_start_from():
    model, tokens = small("gpt2"), prompts()
    inputs = [f"blocks.1.hook_{point}_input" for point in "qkv"]
    other = torch.randn(4, 24, dtype=torch.float64)
    edit = lambda value, hook: value + other  # noqa: E731
    at_once = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_attn_in", edit)])
    one_by_one = model.run_with_hooks(tokens, fwd_hooks=[(inputs, edit)])
    assert difference(at_once, one_by_one) < EXACT
    assert difference(at_once, model(tokens)) > 1e-3


# --- running ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "place"), [(0, "blocks.0.hook_resid_pre"), (1, "blocks.1.hook_resid_pre"),
                                              (-1, "blocks.1.hook_resid_pre"), (-2, "blocks.0.hook_resid_pre"),
                                              (2, "blocks.1.hook_resid_post")])  # fmt: skip
@pytest.mark.parametrize("return_type", ["logits", "loss", None])
def test_a_run_stops_before_a_layer(model, layer, place, return_type):
    tokens = prompts()
    _, whole = model.run_with_cache(tokens)
    out, cache = model.run_with_cache(tokens, stop_at_layer=layer, return_type=return_type)
    assert torch.equal(out, whole[place])
    blocks = {name.split(".")[1] for name in cache if name.startswith("blocks.")}
    assert blocks == {str(i) for i in range(layer % 2 if layer < 0 else layer)}
    assert not any(name.startswith(("ln_final", "unembed")) for name in cache)


@pytest.mark.parametrize("layer", [3, -3])
def test_a_layer_to_stop_at_that_is_not_there_is_refused(model, layer):
    with pytest.raises(ValueError, match=f"stop_at_layer={layer}, but the model has 2 blocks"):
        model(prompts(), stop_at_layer=layer)


def test_return_types(model):
    tokens = prompts()
    logits = model(tokens)
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert logits.shape == (BATCH, POS, 31)
    assert torch.equal(model(tokens, return_type="logits"), logits)
    assert difference(model(tokens, return_type="loss"), loss) < EXACT
    both = model(tokens, return_type="both")
    assert torch.equal(both[0], logits)
    assert difference(both[1], loss) < EXACT
    assert model(tokens, return_type=None) is None
    each = model(tokens, return_type="loss", loss_per_token=True)
    assert each.shape == (BATCH, POS - 1)
    assert difference(each.mean(), loss) < EXACT
    with pytest.raises(ValueError, match="not 'probs'"):
        model(tokens, return_type="probs")


def test_the_loss_of_a_padded_prompt_is_that_of_the_prompt_alone(model):
    tokens, mask = prompts(), torch.ones(BATCH, POS, dtype=torch.bool)
    mask[0, :3] = mask[1, 5:] = False
    padded = model(tokens, attention_mask=mask, return_type="loss", loss_per_token=True)
    alone = [model(tokens[i][mask[i]], return_type="loss", loss_per_token=True)[0] for i in range(BATCH)]
    for i, losses in enumerate(alone):
        counted = mask[i, 1:] & mask[i, :-1]
        assert difference(padded[i][counted], losses) < 1e-6
        assert not padded[i][~counted].any()
    mean = model(tokens, attention_mask=mask, return_type="loss")
    assert difference(mean, torch.cat(alone).mean()) < 1e-6


def test_the_hook_point_is_given_by_name_wherever_it_stands(model):
    def ablate(z, head, hook):
        z[:, :, head] = 0
        return z

    def by_keyword(z, *, hook):
        z[:, :, 1] = 0

    name, tokens = "blocks.0.attn.hook_z", prompts()
    one, other = (model.run_with_hooks(tokens, fwd_hooks=[(name, fn)]) for fn in (partial(ablate, head=1), by_keyword))
    assert torch.equal(one, other)
    assert not torch.equal(one, model(tokens))


def test_backward_hooks_everywhere_leave_out_what_has_no_gradient(model):
    seen = []
    with model.hooks(bwd_hooks=[(lambda name: True, lambda gradient, hook: seen.append(hook.name))]):
        model(prompts(), return_type="loss").backward()
    assert "hook_embed" in seen and "hook_tokens" not in seen
    with pytest.raises(RuntimeError, match="holds integers"):
        model.run_with_hooks(prompts(), bwd_hooks=[("hook_tokens", lambda gradient, hook: None)])
    model.reset_hooks()


@pytest.mark.parametrize("layer", [0, 1, 2, -1])
@pytest.mark.parametrize("padded", [False, True])
def test_a_run_that_starts_at_a_layer_goes_on_as_the_whole_one(model, layer, padded):
    tokens, mask = prompts(), torch.ones(BATCH, POS, dtype=torch.bool)
    mask[0, :3] = mask[1, 5:] = not padded
    whole, cache = model.run_with_cache(tokens, attention_mask=mask, return_type="both")
    residual = cache["resid_pre", layer] if layer < 2 else cache["resid_post", 1]
    part, seen = model.run_with_cache(
        residual, start_at_layer=layer, tokens=tokens, attention_mask=mask, return_type="both"
    )
    assert difference(part[0], whole[0]) < EXACT
    assert difference(part[1], whole[1]) < EXACT
    blocks = {name.split(".")[1] for name in seen if name.startswith("blocks.")}
    assert blocks == {str(i) for i in range(layer % 2 if layer < 0 else layer, 2)}
    assert "hook_embed" not in seen


def test_a_run_may_start_and_stop_inside(model):
    _, cache = model.run_with_cache(prompts())
    part = model(cache["resid_pre", 0], start_at_layer=0, stop_at_layer=1)
    assert difference(part, cache["resid_pre", 1]) < EXACT


def test_what_a_run_that_starts_inside_cannot_use_is_refused(model):
    residual = torch.zeros(1, 3, model.config.d_model, dtype=model.dtype)
    with pytest.raises(ValueError, match=f"a residual stream .batch pos {model.config.d_model}., not torch.int64"):
        model(prompts(), start_at_layer=1)
    with pytest.raises(ValueError, match="not str"):
        model("text", start_at_layer=1)
    with pytest.raises(ValueError, match="start_at_layer=3, but the model has 2 blocks"):
        model(residual, start_at_layer=3)
    with pytest.raises(ValueError, match="pass tokens= too"):
        model(residual, start_at_layer=1, return_type="loss")
    with pytest.raises(ValueError, match="no cache= and no prepend_bos"):
        model(residual, start_at_layer=1, cache=model.new_cache())
    with pytest.raises(ValueError, match="here the input has them"):
        model(prompts(), tokens=prompts())
