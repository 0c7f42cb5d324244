"""What a run leaves behind: the cache, its names and its memory."""

import pytest
import torch

from nnzoo.architectures.activation_cache import Mover, Recorder, compact
from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.names import get_act_name
from small_models import BATCH, FAMILIES, POS, prompts, small


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def everything(model, tokens=None, **kwargs):
    return model.run_with_cache(prompts() if tokens is None else tokens, names_filter=lambda name: True, **kwargs)


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("blocks.1.attn.hook_q", "blocks.1.attn.hook_q"),
        ("hook_embed", "hook_embed"),
        ("embed", "hook_embed"),
        (("q", 1), "blocks.1.attn.hook_q"),
        (("q", -1), "blocks.1.attn.hook_q"),
        (("q", -2, "attn"), "blocks.0.attn.hook_q"),
        ("q1", "blocks.1.attn.hook_q"),
        ("rot_k1", "blocks.1.attn.hook_rot_k"),
        (("attn", 1), "blocks.1.attn.hook_pattern"),
        (("attn_logits", 1), "blocks.1.attn.hook_attn_scores"),
        (("k", 0, "a"), "blocks.0.attn.hook_k"),
        (("value", 0), "blocks.0.attn.hook_v"),
        (("mlp_post", 0), "blocks.0.mlp.hook_post"),
        (("pre_linear", 0), "blocks.0.mlp.hook_pre_linear"),
        (("scale", 1, "ln1"), "blocks.1.ln1.hook_scale"),
        ("scale1ln2", "blocks.1.ln2.hook_scale"),
        (("normalized", None), "ln_final.hook_normalized"),
        ("scale", "ln_final.hook_scale"),
        (("resid_post", -1), "blocks.1.hook_resid_post"),
        (("resid_mid", 0, "block"), "blocks.0.hook_resid_mid"),
        (("attn_out", 1), "blocks.1.hook_attn_out"),
        (("q_grad", 1), "blocks.1.attn.hook_q_grad"),
        (("resid_pre_grad", -1), "blocks.1.hook_resid_pre_grad"),
    ],
)
def test_a_short_key_is_the_value_of_its_name(key, name):
    _, cache = everything(small("llama"), return_type="loss", incl_bwd=True)
    assert key in cache
    assert cache[key] is cache.cache_dict[name]


def test_every_recorded_name_is_a_key_and_they_stand_in_firing_order(family):
    _, cache = everything(small(family))
    assert len(cache) == len(list(cache)) == len(cache.keys())
    assert all(cache[name] is value for name, value in cache.items())
    first, last = "hook_tokens", "unembed.hook_out"
    assert [next(iter(cache)), list(cache)[-1]] == [first, last]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (("patern", 1), "nearest: blocks.1.attn.hook_pattern"),
        ("blocks.7.hook_resid_pre", "nearest: blocks.1.hook_resid_pre"),
        (("result", 0), "recorded on request: run_with_cache(..., names_filter=[..., 'blocks.0.attn.hook_result'])"),
        (("q_grad", 0), "incl_bwd=True"),
    ],
)
def test_a_missing_key_says_why(key, says):
    _, cache = small("gpt2").run_with_cache(prompts())
    assert key not in cache
    with pytest.raises(KeyError) as error:
        cache[key]
    assert says in error.value.args[0]


def test_a_key_that_the_filter_left_out_says_so():
    _, cache = small("gpt2").run_with_cache(prompts(), names_filter="blocks.0.*")
    with pytest.raises(KeyError, match="names_filter left it out"):
        cache["resid_pre", 1]


def test_a_short_name_is_that_of_the_model(family):
    model = small(family)
    for name in model.hook_points:
        parts = name.split(".")
        if parts[0] == "blocks" and parts[-1].startswith("hook_"):
            sublayer = parts[2] if len(parts) == 4 else None
            assert get_act_name(parts[-1].removeprefix("hook_"), int(parts[1]), sublayer) == name


# --- values and memory --------------------------------------------------------------------------------------------


def test_values_are_detached(family):
    _, cache = everything(small(family))
    assert not any(value.requires_grad for value in cache.values())


def storages(cache):
    return {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in cache.values()}


def test_one_value_under_two_names_is_kept_once(family):
    _, cache = small(family).run_with_cache(prompts())
    for same in (("resid_post", 0), ("resid_pre", 1)), (("resid_mid", 0), ("in", 0, "ln2")):
        assert len({cache[key].untyped_storage()._cdata for key in same}) == 1
    if family == "gpt2":
        assert len({cache[key, 0].untyped_storage()._cdata for key in ("qkv", "q", "k", "v")}) == 1


@pytest.mark.parametrize("point", ["q", "k", "v"])
def test_a_part_of_a_larger_tensor_does_not_keep_the_rest_alive(point):
    _, cache = small("gpt2").run_with_cache(prompts(), names_filter=f"blocks.*.attn.hook_{point}")
    for value in cache.values():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_keys_of_a_kv_cache_do_not_keep_its_buffers_alive():
    model = small("llama")
    past = model.new_cache()
    with torch.no_grad():
        model(prompts(), cache=past)
        _, cache = model.run_with_cache(prompts(pos=1), cache=past, names_filter="blocks.0.attn.hook_rot_k")
    (value,) = cache.values()
    assert value.shape[1] == POS + 1
    assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_keys_of_a_kv_cache_stay_as_the_model_reads_on():
    model, tokens = small("llama"), prompts()
    past = model.new_cache()
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, cache=past, names_filter="blocks.*.attn.hook_rot_k")
        before = {name: value.clone() for name, value in cache.items()}
        model(tokens, cache=past)
    assert all(torch.equal(cache[name], before[name]) for name in before)


@pytest.mark.parametrize("grad", [True, False])
def test_a_later_edit_in_place_changes_nothing_that_was_recorded(family, grad):
    model = small(family)
    with torch.set_grad_enabled(grad):
        seen = {}
        copying = (lambda name: True, lambda value, hook: seen.update({hook.name: value.clone()}))
        zeroing = (["blocks.*.hook_resid_*", "blocks.*.hook_*_out"], lambda value, hook: value.mul_(0.5))
        with model.hooks([zeroing, copying]):
            _, cache = everything(model)
    assert {*cache} == {*seen}
    assert all(torch.equal(cache[name], seen[name]) for name in seen)


def test_one_buffer_given_back_at_many_places_is_not_many_names_for_its_last_value():
    model, buffer = small("gpt2"), torch.empty(BATCH, POS, 24, dtype=torch.float64)

    def fill(value, hook):
        return buffer.fill_(float(hook.layer()))

    with torch.no_grad(), model.hooks([("blocks.*.hook_resid_post", fill)]):
        _, cache = model.run_with_cache(prompts())
    assert [cache["resid_post", layer].unique().item() for layer in range(2)] == [0, 1]


def test_the_cache_holds_what_hooks_made_of_a_value():
    model = small("gpt2")
    with model.hooks([(get_act_name("z", 0), lambda value, hook: torch.zeros_like(value))]):
        _, cache = model.run_with_cache(prompts())
    assert not cache["z", 0].any()
    assert torch.equal(cache["attn_out", 0], model.blocks[0].attn.b_O.expand_as(cache["attn_out", 0]))


def test_a_device_gets_one_copy_of_what_shares_memory(family):
    model, tokens = small(family), prompts()
    _, here = model.run_with_cache(tokens, names_filter="blocks.*")
    _, there = model.run_with_cache(tokens, names_filter="blocks.*", device="meta")
    assert {name: value.shape for name, value in there.items()} == {name: value.shape for name, value in here.items()}
    assert all(value.device.type == "meta" for value in there.values())
    bytes_here = sum(storages(here).values())
    assert sum(storages(there).values()) == bytes_here
    assert sum(storages(here.to("meta")).values()) == bytes_here


def test_views_stay_views_of_the_right_part_when_they_move():
    whole = torch.arange(12.0).view(2, 6)
    move = Mover("meta", memory=4)
    parts = [move(whole), move(whole[:, 2:4])]
    assert parts[1].untyped_storage()._cdata == parts[0].untyped_storage()._cdata
    assert (parts[1].storage_offset(), parts[1].stride()) == (2, (6, 1))


def test_compact_copies_views_of_a_storage_of_which_little_is_used():
    large = torch.arange(100.0)
    values = compact({"a": large[:10], "b": large[:10], "c": torch.ones(3)})
    assert values["a"] is values["b"]
    assert torch.equal(values["a"], large[:10])
    assert values["a"].untyped_storage().nbytes() == 40


def test_compact_copies_nothing_of_a_storage_of_which_most_is_used():
    large = torch.arange(100.0)
    values = compact({"a": large[:30], "b": large[30:60]})
    assert {value.untyped_storage()._cdata for value in values.values()} == {large.untyped_storage()._cdata}


# --- its own methods ----------------------------------------------------------------------------------------------


def test_remove_batch_dim_drops_the_first_axis(family):
    model, tokens = small(family), prompts(batch=1)
    _, cache = model.run_with_cache(tokens)
    _, bare = model.run_with_cache(tokens, remove_batch_dim=True)
    assert not bare.has_batch_dim
    assert all(torch.equal(bare[name], cache[name][0]) for name in cache)
    assert bare.remove_batch_dim() is bare


def test_remove_batch_dim_of_several_prompts_is_refused():
    with pytest.raises(ValueError, match="batch of 3"):
        small("gpt2").run_with_cache(prompts(), remove_batch_dim=True)


def test_a_slice_of_the_batch_is_a_cache_of_those_prompts(family):
    _, cache = small(family).run_with_cache(prompts())
    one, two = cache.apply_slice_to_batch_dim(1), cache.apply_slice_to_batch_dim([0, 2])
    assert not one.has_batch_dim
    assert two.has_batch_dim
    for name in cache:
        assert torch.equal(one[name], cache[name][1])
        assert torch.equal(two[name], cache[name][[0, 2]])


@pytest.mark.parametrize(
    ("positions", "kept"),
    [(-1, [POS - 1]), ((1, 3), [1, 2]), ((None, None, 2), [0, 2, 4, 6]), ([0, -1], [0, POS - 1])],
)
def test_positions_are_kept_with_their_axis(family, positions, kept):
    model, tokens = small(family), prompts()
    _, cache = everything(model, tokens)
    _, recorded = everything(model, tokens, pos_slice=positions)
    for few in (cache.at(positions), recorded):
        for name, value in cache.items():
            axes = model.hook_points[name].axes.split()
            axis = next((i for i, symbol in enumerate(axes) if symbol in ("pos", "query")), None)
            expected = value if axis is None else value.index_select(axis, torch.tensor(kept))
            assert torch.equal(few[name], expected), name
    assert torch.equal(cache.at(positions)["pattern", 1], cache["pattern", 1][:, :, kept])
    assert torch.equal(cache.at(positions)["q", 1], cache["q", 1][:, kept])


def test_few_positions_do_not_keep_the_rest_alive():
    _, cache = small("gpt2").run_with_cache(prompts(), pos_slice=-1)
    assert all(size <= BATCH * 4 * 24 * POS * 8 for size in storages(cache).values())
    assert cache["resid_post", 0].untyped_storage().nbytes() == BATCH * 24 * 8


def test_positions_that_nobody_asked_for_are_let_go_while_the_model_still_runs():
    point, recorder = HookPoint("batch pos d_model"), Recorder(pos_slice=(0, 1))
    recorder.listen(point)
    point(torch.zeros(1, 100, 8))
    (value,) = recorder.values().values()
    assert value.untyped_storage().nbytes() == 8 * 4
