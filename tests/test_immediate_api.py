"""Running a model with hooks or a cache: the immediate API."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from nnzoo.architectures.hooks import HookShapeError
from small_models import BATCH, FAMILIES, POS, difference, prompts, small

EXACT = 1e-10  # between the fused and the explicit path
KEEP = lambda value, hook: None  # noqa: E731


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return small(family)


def listeners(model):
    return [hook for point in model.hook_points.values() for hook in point.hooks]


def plus(number):
    return lambda value, hook: value + number


# --- hooks --------------------------------------------------------------------------------------------------------


def test_a_hook_edits_by_what_it_returns_and_in_place_alike(model):
    def returns(value, hook):
        new = value.clone()
        new[:, 2] = 0
        return new

    def edits(value, hook):
        value[:, 2] = 0

    tokens, name = prompts(), "blocks.1.hook_resid_pre"
    with torch.no_grad():
        returned, edited = (model.run_with_hooks(tokens, fwd_hooks=[(name, fn)]) for fn in (returns, edits))
        assert torch.equal(returned, edited)
        assert not torch.equal(returned, model(tokens))
    assert not listeners(model)


def test_hooks_at_one_place_run_in_the_order_given(model):
    seen = []
    for order in ([0, 1, 2], [2, 0, 1]):
        hooks = [("hook_embed", lambda value, hook, i=i: seen.append(i)) for i in order]
        model.run_with_hooks(prompts(), fwd_hooks=hooks)
    assert seen == [0, 1, 2, 2, 0, 1]


def test_a_hook_sees_what_the_one_before_it_made(model):
    seen = []
    hooks = [("hook_embed", plus(1)), ("hook_embed", lambda value, hook: seen.append(value - 1))]
    tokens = prompts()
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    torch.testing.assert_close(seen[0], model.W_E[tokens])


def test_a_hook_is_told_where_it_is(model):
    seen = []
    model.run_with_hooks(prompts(), fwd_hooks=[("blocks.*.hook_resid_mid", lambda value, hook: seen.append(hook))])
    assert [(hook.name, hook.layer()) for hook in seen] == [(f"blocks.{i}.hook_resid_mid", i) for i in range(2)]


def test_a_hook_point_keeps_things_for_its_functions(model):
    def count(value, hook):
        hook.ctx["times"] = hook.ctx.get("times", 0) + 1

    with model.hooks([("hook_embed", count)]):
        model(prompts())
        model(prompts())
    assert model.hook_points["hook_embed"].ctx == {"times": 2}


def test_hooks_of_a_context_go_with_it_and_leave_those_around_it(model):
    tokens = prompts()
    plain = model(tokens)
    with model.hooks([("hook_embed", plus(1))]):
        outer = model(tokens)
        with model.hooks([("hook_embed", plus(-1))]):
            assert difference(model(tokens), plain) < EXACT
        assert torch.equal(model(tokens), outer)
    assert torch.equal(model(tokens), plain)
    assert not torch.equal(outer, plain)


@pytest.mark.parametrize("run", ["run_with_hooks", "run_with_cache", "hooks"])
def test_an_exception_leaves_no_hook_behind(model, run):
    def fails(value, hook):
        raise ZeroDivisionError

    permanent = model.add_hook("hook_embed", KEEP, is_permanent=True)
    with pytest.raises(ZeroDivisionError):
        if run == "run_with_hooks":
            model.run_with_hooks(prompts(), fwd_hooks=[("blocks.*", KEEP), ("blocks.1.hook_resid_mid", fails)])
        elif run == "hooks":
            with model.hooks([("blocks.*", KEEP)], [("blocks.*.hook_resid_pre", KEEP)]):
                fails(None, None)
        else:
            with model.hooks([("blocks.1.hook_resid_mid", fails)]):
                model.run_with_cache(prompts(), incl_bwd=True)
    assert listeners(model) == [handle.hook for handle in permanent]


@pytest.mark.parametrize("run", ["run_with_hooks", "run_with_cache"])
def test_a_wrong_name_leaves_no_hook_behind(model, run):
    with pytest.raises(KeyError):
        if run == "run_with_hooks":
            model.run_with_hooks(prompts(), fwd_hooks=[("hook_embed", KEEP), ("hook_embde", KEEP)])
        else:
            model.run_with_cache(prompts(), names_filter=["hook_embed", "hook_embde"])
    assert not listeners(model)


def test_hooks_that_were_added_stay_until_reset_and_permanent_ones_longer(model):
    tokens = prompts()
    plain = model(tokens)
    model.add_hook("hook_embed", plus(1), is_permanent=True)
    permanent = model(tokens)
    model.add_hook("hook_embed", plus(1))
    both = model(tokens)
    assert torch.equal(model(tokens), both)
    assert not torch.equal(both, permanent)
    model.reset_hooks()
    assert torch.equal(model(tokens), permanent)
    model.reset_hooks(including_permanent=True)
    assert torch.equal(model(tokens), plain)


def test_a_prepended_hook_runs_first(model):
    seen = []
    model.add_hook("hook_embed", lambda value, hook: seen.append("first"))
    model.add_hook("hook_embed", lambda value, hook: seen.append("prepended"), prepend=True)
    model(prompts())
    assert seen == ["prepended", "first"]


def test_a_handle_removes_its_hook_and_no_other(model):
    one, other = (model.add_hook("hook_embed", KEEP)[0] for _ in range(2))
    one.remove()
    one.remove()
    assert listeners(model) == [other.hook]


def test_a_direction_is_fwd_or_bwd():
    with pytest.raises(ValueError, match="dir is 'fwd' or 'bwd', not 'back'"):
        small("gpt2").add_hook("hook_embed", KEEP, dir="back")


# --- gradients ----------------------------------------------------------------------------------------------------


def test_a_gradient_is_by_how_much_the_loss_changes(model):
    """Each recorded gradient against that of a zero which is added at the same place."""
    tokens, not_ids = prompts(), [name for name, point in model.hook_points.items() if point.axes != "batch pos"]
    _, cache = model.run_with_cache(tokens, names_filter=not_ids, return_type="loss", incl_bwd=True)
    for name in not_ids:
        zero = torch.zeros_like(cache[name]).requires_grad_()
        hooks = [(name, lambda value, hook, zero=zero: value + zero)]
        model.run_with_hooks(tokens, fwd_hooks=hooks, return_type="loss").backward()
        assert difference(cache[f"{name}_grad"], zero.grad) < 1e-5, name


def test_a_cache_of_everything_has_gradients_of_everything_but_ids(model):
    _, cache = model.run_with_cache(prompts(), names_filter=lambda n: True, return_type="loss", incl_bwd=True)
    missing = {name for name in model.hook_points if f"{name}_grad" not in cache}
    assert missing == {"hook_tokens", "hook_positions"}


def test_gradients_of_a_frozen_model_are_recorded_too(model):
    tokens = prompts()
    _, expected = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    model.requires_grad_(False)
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    assert all(torch.equal(cache[name], expected[name]) for name in expected)


def test_a_backward_hook_replaces_what_flows_on(model):
    tokens = prompts()
    with model.hooks(bwd_hooks=[("blocks.1.hook_resid_pre", lambda gradient, hook: gradient * 2)]):
        _, doubled = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    _, plain = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    torch.testing.assert_close(doubled["resid_post_grad", 1], plain["resid_post_grad", 1])
    torch.testing.assert_close(doubled["resid_post_grad", 0], 2 * plain["resid_post_grad", 0])


def test_backward_hooks_of_a_run_last_until_reset(model):
    seen = []
    hook = ("hook_embed", lambda gradient, hook: seen.append(gradient.shape))
    loss = model.run_with_hooks(prompts(), bwd_hooks=[hook], return_type="loss")
    assert not seen
    loss.backward()
    assert len(seen) == 1
    model.reset_hooks()
    model(prompts(), return_type="loss").backward()
    assert len(seen) == 1


def test_a_backward_hook_without_gradients_says_so(model):
    with torch.no_grad(), pytest.raises(RuntimeError, match="a backward hook at hook_embed needs gradients"):
        model.run_with_hooks(prompts(), bwd_hooks=[("hook_embed", KEEP)])


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
    ids=str,
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
    ids=str,
)
def test_a_filter_that_matches_nothing_is_an_error_with_the_nearest_names(names, message):
    with pytest.raises(KeyError, match=re.escape(message)):
        small("gpt2").run_with_cache(prompts(), names_filter=names)


# --- what a hook gives back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "replace", "message"),
    [
        ("hook_embed", lambda x: 0.0, "got a float back; a hook returns a tensor or None"),
        ("hook_embed", lambda x: x.float(), r"torch.float64, but got torch.float32. .*value.to\(torch.float64\)"),
        ("hook_embed", lambda x: x.to("meta"), r"lives on cpu, but got a tensor on meta. .*value.to\('cpu'\)"),
        ("attn.hook_pattern", lambda x: x[..., :-1], "axis 'key': expected 7, got 6"),
        ("attn.hook_z", lambda x: x.transpose(1, 2), "Axes 'pos' and 'head' look swapped"),
        ("hook_resid_pre", lambda x: x[0], "The batch axis was dropped"),
        ("hook_resid_pre", lambda x: x.mean(1, keepdim=True), "Axis 'pos' was reduced .* expand it to 7"),
        ("hook_resid_pre", lambda x: x[:, :, None], "An axis of size 1 was kept"),
        ("attn.hook_q", lambda x: x.flatten(2), "Axes 'head' and 'd_head' are merged"),
        ("attn.hook_k", lambda x: x.repeat_interleave(2, 2), "'kv_head': expected 2, got 4.*grouped-query attention"),
        ("attn.hook_q", lambda x: x[:, :, :2], "'head': expected 4, got 2.*grouped-query attention"),
    ],
)
def test_a_replacement_that_does_not_fit_is_refused_with_a_guess(name, replace, message):
    name = name if name == "hook_embed" else f"blocks.1.{name}"
    with pytest.raises(HookShapeError, match=f"^{re.escape(name)} .*{message}"):
        small("llama").run_with_hooks(prompts(), fwd_hooks=[(name, lambda value, hook: replace(value))])


def test_a_replacement_for_the_whole_prompt_in_a_step_of_generation_is_refused_as_such(model):
    tokens, cache = prompts(), model.new_cache()
    _, whole = model.run_with_cache(tokens, cache=cache, names_filter="blocks.1.hook_resid_pre")
    with pytest.raises(HookShapeError, match="one 'pos': a step of generation under the KV cache"):
        model.run_with_hooks(
            tokens[:, :1],
            cache=cache,
            fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: whole[hook.name])],
        )


def test_a_gradient_that_does_not_fit_is_refused_too(model):
    drop = ("blocks.1.hook_resid_pre", lambda gradient, hook: gradient[0])
    with model.hooks(bwd_hooks=[drop]), pytest.raises(HookShapeError, match="The batch axis was dropped"):
        model(prompts(), return_type="loss").backward()


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
