"""Weights in TransformerLens's shapes, as the equations use them."""

import pytest
import torch
from einops import einsum

from small_models import FAMILIES, difference, prompts, small

EXACT = 1e-10


@pytest.fixture(params=FAMILIES)
def model(request):
    return small(request.param)


def test_weights_multiply_from_the_right(model):
    _, cache = model.run_with_cache(prompts())
    heads = "batch pos d_model, head d_model d_head -> batch pos head d_head"
    for layer in range(2):
        x = cache["out", layer, "ln1"]
        assert difference(einsum(x, model.W_Q[layer], heads) + model.b_Q[layer], cache["q", layer]) < EXACT
        group = model.config.n_heads // model.config.n_kv_heads
        for name, W, b in (("k", model.W_K, model.b_K), ("v", model.W_V, model.b_V)):
            repeated = cache[name, layer].repeat_interleave(group, dim=2)
            assert difference(einsum(x, W[layer], heads) + b[layer], repeated) < EXACT
        out = einsum(cache["z", layer], model.W_O[layer], "b p h d_head, h d_head d -> b p d") + model.b_O[layer]
        assert difference(out, cache["attn_out", layer]) < EXACT
        into = "pre_linear" if hasattr(model.config, "rope") else "pre"
        x = cache["out", layer, "ln2"]
        assert difference(x @ model.W_in[layer] + model.b_in[layer], cache[into, layer]) < EXACT
        assert (
            difference(cache["post", layer] @ model.W_out[layer] + model.b_out[layer], cache["mlp_out", layer]) < EXACT
        )
    assert difference(cache["unembed.hook_in"] @ model.W_U + model.b_U, cache["unembed.hook_out"]) < EXACT


def test_stored_keys_and_values_are_not_repeated(model):
    c = model.config
    assert model._W_K.shape == model._W_V.shape == (2, c.n_kv_heads, c.d_model, c.d_head)
    assert model.W_K.shape == model.W_V.shape == (2, c.n_heads, c.d_model, c.d_head)


def test_weights_of_one_block_are_views(model):
    with torch.no_grad():
        for block in model.blocks:
            for part, name in ((block.attn, "W_Q"), (block.attn, "W_O"), (block.mlp, "W_out")):
                getattr(part, name).zero_()
    assert not model.W_Q.any()
    assert not model.W_O.any()
    assert not model.W_out.any()


def test_biases_accumulate():
    model = small("gpt2")
    b_O, b_out = model.b_O, model.b_out
    torch.testing.assert_close(model.accumulated_bias(0), torch.zeros(24, dtype=torch.float64))
    torch.testing.assert_close(model.accumulated_bias(2), b_O.sum(0) + b_out.sum(0))
    torch.testing.assert_close(model.accumulated_bias(1, mlp_input=True), b_O.sum(0) + b_out[0])
    torch.testing.assert_close(model.accumulated_bias(2, include_mlp_biases=False), b_O.sum(0))


def test_directions_of_tokens_are_columns_of_the_unembedding(model):
    tokens = prompts()
    torch.testing.assert_close(model.tokens_to_residual_directions(3), model.W_U[:, 3])
    torch.testing.assert_close(model.tokens_to_residual_directions(torch.tensor([3])), model.W_U[:, 3])
    torch.testing.assert_close(model.tokens_to_residual_directions(tokens), model.W_U.t()[tokens])
