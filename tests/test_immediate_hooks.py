"""Running a model with hooks, forward and backward, and what a hook may give back."""

import re

import pytest
import torch

from nnzoo.architectures.hooks import HookShapeError
from nnzoo.transformer_lens import HookedTransformer
from small_models import FAMILIES, difference, prompts, small

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


@pytest.mark.parametrize("wrong", [("hook_embed", KEEP), ["hook_embed"], [(KEEP, "hook_embed")], {"hook_embed": KEEP}])
@pytest.mark.parametrize("argument", ["fwd_hooks", "bwd_hooks"])
def test_hooks_that_are_no_list_of_pairs_say_how_they_are_written(unchecked, argument, wrong):
    for model in (small("gpt2"), HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")):
        with pytest.raises(TypeError, match=rf"{argument} is a list of pairs, \[\(name, function\), ...\]"):
            model.run_with_hooks(prompts(), **{argument: wrong})


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
