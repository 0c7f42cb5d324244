"""Heads whose matrices are even: what only their products decide, said by singular vectors.

A head is its products W_Q W_K^T and W_V W_O; how each is split into two factors is free. Here keys and queries get
columns of equal norm, and W_O orthonormal rows, so that z is as long as what the head writes.
"""

from typing import Any

import torch
from einops import einsum
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.transformer_lens.FactoredMatrix import FactoredMatrix


@torch.no_grad()
def refactor_factored_attn_matrices(model: HookedModel) -> None:
    """Rewrite every head of a model in place; the logits stay. Raises ValueError where positions rotate q and k.

    >>> from nnzoo.weights import load
    >>> model = load("nnzoo/tiny-gpt2")
    >>> refactor_factored_attn_matrices(model)
    >>> W_O = model.blocks[0].attn.W_O[0]  # [d_head d_model], its rows orthonormal
    >>> torch.allclose(W_O @ W_O.T, torch.eye(len(W_O)), atol=1e-4)
    True
    """
    for block in model.blocks:
        if hasattr(block.attn, "hook_rot_q"):
            raise ValueError(
                "rotary positions stand between queries and keys: their matrices have no product to factor"
            )
        _refactor_qk(block.attn)
        _refactor_ov(block.attn)


def _refactor_qk(attn: Any) -> None:
    """Biases are read by one more coordinate of the stream, which is always 1."""
    Q, K = _with_bias(attn.W_Q, attn.b_Q), _with_bias(attn.W_K, attn.b_K)
    even = FactoredMatrix(Q, K.transpose(-2, -1)).make_even()
    for W, b, side in ((attn.W_Q, attn.b_Q, even.A), (attn.W_K, attn.b_K, even.B.transpose(-2, -1))):
        W.copy_(side[..., :-1, :])
        b.copy_(side[..., -1, :])


def _refactor_ov(attn: Any) -> None:
    """The values' biases reach the stream whole, since a pattern's rows sum to 1: they become part of b_O."""
    attn.b_O.add_(einsum(attn.b_V, attn.W_O, "h d_head, h d_head d -> d"))
    attn.b_V.zero_()
    U, S, V = FactoredMatrix(attn.W_V, attn.W_O).svd()
    attn.W_V.copy_(U * S[..., None, :])
    attn.W_O.copy_(V.transpose(-2, -1))


def _with_bias(W: Tensor, b: Tensor) -> Tensor:
    return torch.cat([W, b[..., None, :]], dim=-2)
