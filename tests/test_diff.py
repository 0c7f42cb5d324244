"""`nnzoo.diff`: where two models part, native ones and transformers'; and `cache.shapes()`."""

import re

import pytest
import torch

from families import PLAIN, ids, ours, prompt, theirs
from nnzoo import LanguageModel, diff, load

PROMPT = "The capital of France is"
FIRST_LINEAR = {"gpt2": "h.1.mlp.c_fc", "llama": "layers.1.mlp.gate_proj", "mistral": "layers.1.mlp.gate_proj"}


@pytest.fixture
def change():
    """Change a parameter, and put it back."""
    changed = []

    def scale(parameter):
        changed.append((parameter, parameter.detach().clone()))
        with torch.no_grad():
            parameter.view(-1)[3] *= 1.01

    yield scale
    for parameter, before in changed:
        with torch.no_grad():
            parameter.copy_(before)


@ids(PLAIN)
def test_a_model_agrees_with_itself_and_with_transformers(family, setting):
    mine = ours(family, setting)
    for other in (mine, theirs(family, setting)):
        found = diff(mine, other, prompt(2, 9))
        assert found.first is None, found.verdict
        assert "agree at all" in str(found) and "the one nearest to its limit is " in str(found)
    assert theirs(family, setting).config._attn_implementation == "sdpa"


@ids(PLAIN)
@pytest.mark.parametrize("other_way", [False, True])
def test_the_first_place_that_differs_from_transformers_is_named(family, setting, other_way, change):
    model = theirs(family, setting)
    path = next(name for name, _ in model.named_modules() if name.endswith(FIRST_LINEAR[family]))
    change(model.get_submodule(path).weight)
    pair = (model, ours(family, setting)) if other_way else (ours(family, setting), model)
    first = diff(*pair, prompt(1, 9)).first
    assert (first.hook, first.place) == ("blocks.1.mlp.hook_pre", f"{path}.output")


def test_the_first_hook_point_that_differs_is_named_and_those_before_agree():
    a, b = load("nnzoo/tiny-gpt2"), LanguageModel("nnzoo/tiny-gpt2")
    with torch.no_grad():
        b._model.blocks[2].ln2.weight[3] *= 2
    found = diff(a, b, PROMPT)
    assert found.first.hook == "blocks.2.ln2.hook_out"
    assert "up to blocks.2.ln2.hook_normalized they agree" in found.verdict
    assert found.at(layer=1).values.max() == 0 < found.at(layer=3).values.max()
    assert found.shape["layer"] == 4
    assert found.outside.values[-1] > 0
    assert "<table" in found._repr_html_()


def test_precision_is_allowed_for_and_a_tolerance_decides():
    a, b = load("nnzoo/tiny-gpt2"), load("nnzoo/tiny-gpt2", dtype="bfloat16")
    assert diff(a, b, PROMPT).first is None
    assert diff(a, b, PROMPT, tolerance=1e-4).first.hook == "hook_embed"


def test_models_of_other_sizes_part_where_shapes_do():
    found = diff(ours("gpt2", "default"), ours("gpt2", "odd_sizes"), prompt(1, 5))
    assert found.first.hook == "hook_embed"
    assert found.first.size == float("inf")


def test_what_cannot_be_compared_is_refused():
    gpt2, llama = LanguageModel("nnzoo/tiny-gpt2"), load("nnzoo/tiny-llama")
    with pytest.raises(ValueError, match="stands a GPT2LMHeadModel"):
        diff(gpt2, theirs("llama", "default"), prompt(1, 5))
    with pytest.raises(TypeError, match="both models are transformers'"):
        diff(theirs("llama", "default"), theirs("llama", "default"), prompt(1, 5))
    with pytest.raises(ValueError, match="different lengths"):
        diff(llama, llama, [PROMPT, "The"])
    with pytest.raises(ValueError, match="token ids run from 0 to"):
        diff(ours("gpt2", "default"), ours("gpt2", "odd_sizes"), torch.tensor([[99]]))


def test_dropout_is_no_difference():
    model = theirs("gpt2", "default")
    model.train()
    try:
        assert diff(ours("gpt2", "default"), model, prompt(1, 9)).first is None
        assert model.training
    finally:
        model.eval()


# --- cache.shapes() --------------------------------------------------------------------------------------------------


def test_shapes_list_every_value_once_with_its_axes_and_bytes():
    model = ours("llama", "default")
    _, cache = model.run_with_cache(prompt(2, 5))
    shapes = cache.shapes()
    assert sum(max(len(value.layers), 1) for value in shapes) == len(cache) == shapes.n_values
    assert sum(value.nbytes for value in shapes) == sum(value.nbytes for value in cache.values())
    for value in shapes:
        assert len(value.axes.split()) == len(value.sizes)
    assert "blocks.{0..2}.attn.hook_v" in [value.name for value in shapes]
    assert re.search(r"attn.hook_v +batch pos kv_head d_head +\[2, 5, 2, 12\] +float64 +5.6 KB", str(shapes))


def test_memory_that_values_share_counts_once():
    _, cache = ours("gpt2", "default").run_with_cache(
        prompt(2, 5), names_filter=["*hook_resid_post", "*hook_resid_pre"]
    )
    assert cache["resid_post", 0].data_ptr() == cache["resid_pre", 1].data_ptr()
    assert cache.shapes().nbytes == 4 * cache["resid_post", 0].nbytes


def test_shapes_follow_what_was_done_to_a_cache():
    loss_cache = ours("gpt2", "default").run_with_cache(
        prompt(1, 5), names_filter="blocks.[02].hook_mlp_out", incl_bwd=True, return_type="loss", remove_batch_dim=True
    )[1]
    names = [value.name for value in loss_cache.shapes()]
    assert sorted(names) == ["blocks.{0,2}.hook_mlp_out", "blocks.{2,0}.hook_mlp_out_grad"]
    assert {value.axes for value in loss_cache.shapes()} == {"pos d_model"}
