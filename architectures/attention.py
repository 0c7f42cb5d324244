"""Attention, from queries, keys and values to z; the same for every family.

    scores  = q . k * scale, -inf where a query may not look      [batch head query key]
    pattern = softmax(scores)
    z       = pattern . v                                         [batch pos head d_head]

Somebody at `hook_attn_scores` or `hook_pattern` makes a layer compute just this; else PyTorch's fused kernel
gives z without ever writing the pattern down.

Papers: https://arxiv.org/abs/1706.03762, grouped queries https://arxiv.org/abs/2305.13245
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import einsum, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.compiler import is_compiling

from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.kv_cache import KVCache, StepCache
from nnzoo.architectures.modules import Module


@dataclass
class Span:
    """The tokens of one pass: where each stands, and what it may look at."""

    positions: Int[Tensor, "batch pos"]
    causal: bool  # the mask is the plain triangle, or nothing at all where there is one query
    mask: Bool[Tensor, "#batch 1 query key"] | None  # True: the query may look at the key
    blind: Bool[Tensor, "batch query"] | None  # queries that may look at nothing: padding
    cache: KVCache | None
    seen: Bool[Tensor, "batch seen"] | None  # all tokens up to the last of this pass, False: padding. None: no padding
    rotation: Any = None  # the pass's Rotation, in models that turn their queries and keys

    @property
    def n_pos(self) -> int:
        return self.positions.shape[-1]

    @cached_property
    def hidden(self) -> Bool[Tensor, "#batch 1 query #key"]:
        """True: the query may not look at the key. Only the explicit path asks; the fused one has the mask."""
        if self.mask is not None:
            return ~self.mask
        n, device = self.n_pos, self.positions.device
        return torch.ones(n, n, dtype=torch.bool, device=device).triu(1)[None, None]


def span_of(
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Bool[Tensor, "batch pos"] | None,
    cache: KVCache | None,
    *,
    n_ctx: int,
    window: int | None = None,
) -> Span:
    """Positions and visibility of `tokens`, which follow those in the cache; padding does not count as a position.

    Raises ContextLengthError where a prompt is longer than `n_ctx`.
    """
    if isinstance(cache, StepCache):
        place, visible = cache.advance()
        return Span(positions=place, causal=False, mask=visible, blind=None, cache=cache, seen=None)
    (batch, n_pos), past = tokens.shape, cache.length if cache else 0
    if cache:
        cache.check_batch(batch)
    seen = _seen(tokens, attention_mask, cache)
    _check_length(past + n_pos, seen, n_ctx)
    everywhere = torch.arange(past + n_pos, device=tokens.device)[None] if seen is None else seen.cumsum(dim=-1) - 1
    positions = everywhere[:, past:].clamp(min=0).expand(batch, n_pos)
    oldest = _oldest(seen, everywhere, past, window) if cache and window else 0
    if cache:
        cache.mask, cache.oldest = seen, oldest
    # one query sees every key there is: the cache hands out the window's keys and no more
    causal = seen is None and (n_pos == 1 or (past == 0 and (window is None or n_pos <= window)))
    mask = None if causal else _mask(seen, everywhere, past, window)[..., oldest:]
    blind = None if mask is None or seen is None else ~mask.any(dim=-1)[:, 0]
    return Span(positions=positions, causal=causal, mask=mask, blind=blind, cache=cache, seen=seen)


class ContextLengthError(ValueError):
    """A prompt has more tokens than the model has positions."""


def _check_length(total: int, seen: Tensor | None, n_ctx: int) -> None:
    if total > n_ctx and (seen is None or (total := int(seen.sum(dim=-1).max())) > n_ctx):
        raise ContextLengthError(
            f"{total} tokens, but the model has {n_ctx} positions. Shorten the prompt, or generate fewer tokens."
        )


def _seen(tokens: Tensor, attention_mask: Tensor | None, cache: KVCache | None) -> Tensor | None:
    past = cache.length if cache else 0
    before = cache.mask[:, :past] if cache and cache.mask is not None else None
    if before is None and (attention_mask is None or (not is_compiling() and bool(attention_mask.all()))):
        return None
    now = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if before is None and past:
        before = now.new_ones(len(tokens), past)
    return now if before is None else torch.cat([before, now], dim=-1)


def _oldest(seen: Tensor | None, positions: Tensor, past: int, window: int) -> int:
    """The first token that a query of this pass may look at, in any prompt: keys before it may leave the cache."""
    if seen is None:
        return max(0, past + 1 - window)
    return int((positions[:, : past + 1] <= positions[:, past : past + 1] - window).sum(dim=-1).min())


def _mask(seen: Tensor | None, positions: Tensor, past: int, window: int | None) -> Tensor:
    token = torch.arange(positions.shape[1], device=positions.device)
    mask = (token <= token[past:, None])[None]
    if window is not None:  # by positions: padding between tokens takes no room in the window
        mask = mask & (positions[:, None] > positions[:, past:, None] - window)
    return mask[:, None] if seen is None else (mask & seen[:, None])[:, None]


def attend(
    layer: "Attention",
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch key_pos kv_head d_head"],
    v: Float[Tensor, "batch key_pos kv_head d_head"],
    span: Span,
    scale: float,
) -> Float[Tensor, "batch pos head d_head"]:
    """What each head of `layer` gathers for each query."""
    if layer.hook_attn_scores.hooks or layer.hook_pattern.hooks:
        return layer.hook_z(_explicit(layer, q, k, v, span, scale))
    # heads that share their keys ask as one head does at several positions: no kernel has to know of groups
    batch, n_pos, n_heads, d_head = q.shape
    one = n_pos == 1 and n_heads != k.shape[2]
    q = q.reshape(batch, k.shape[2], -1, d_head) if one else q.transpose(1, 2)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    z = nn.functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=span.mask,
        is_causal=True if span.causal and n_pos > 1 else False,  # noqa: SIM210  torch.compile: no symbol, a bool
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    z = z.flatten(1, 2)[:, None] if one else z.transpose(1, 2)
    if span.blind is not None:
        z = z.masked_fill(span.blind[:, :, None, None], 0)  # kernels differ in what they give for such a row
    return layer.hook_z(z)


def _explicit(layer: "Attention", q: Tensor, k: Tensor, v: Tensor, span: Span, scale: float) -> Tensor:
    group = q.shape[2] // k.shape[2]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).mul_(scale)  # in place: they are the largest tensors here
    scores = layer.hook_attn_scores(scores.masked_fill_(span.hidden, -math.inf))
    wide = torch.float32 if scores.dtype.itemsize < 4 else scores.dtype
    pattern = scores.softmax(dim=-1, dtype=wide).to(scores.dtype)
    if span.blind is not None:
        pattern = pattern.masked_fill(span.blind[:, None, :, None], 0)  # softmax of nothing but -inf is NaN
    return (layer.hook_pattern(pattern) @ v.transpose(1, 2)).transpose(1, 2)


def split_inputs(block: Any, x: Float[Tensor, "batch pos d_model"]) -> dict[str, Tensor]:
    """By how much the normed inputs of q, k and v, each head with a copy of its own, differ from the shared one.

    Empty unless somebody listens to `hook_attn_in`, `hook_q_input`, `hook_k_input` or `hook_v_input`; without a
    gradient to carry, an input that nobody changed is left out. With grouped queries a key-value head reads the mean
    of its query heads' `hook_attn_in`. The copies are normed by `ln1` as it is, without what hooks inside it do.
    """
    q, k, v = block.hook_q_input, block.hook_k_input, block.hook_v_input
    if not (block.hook_attn_in.hooks or q.hooks or k.hooks or v.hooks):
        return {}
    heads, kv_heads = block.attn.n_heads, block.attn.n_kv_heads
    shared = repeat(x, "b p d -> b p h d", h=heads)
    copies = block.hook_attn_in(shared)
    grouped = copies if heads == kv_heads else reduce(copies, "b p (h g) d -> b p h d", "mean", h=kv_heads)
    before = {"q": copies, "k": grouped, "v": grouped}
    after = {"q": q(copies), "k": k(grouped), "v": v(grouped)}
    follow = x.requires_grad and torch.is_grad_enabled()
    changed = [n for n in after if follow or copies is not shared or after[n] is not before[n]]
    normed = block.ln1.fused(x)[:, :, None]
    return {name: block.ln1.fused(after[name]) - normed for name in changed}


class Attention(Module):
    """What every family's attention has: its heads, its hook points, and the way from z to the residual stream.

    A family adds the projections, `W_Q`, `W_K`, `W_V`, `W_O` and `b_O` in TransformerLens's shapes, and `forward`.
    """

    out: Any  # the projection from z, heads merged, to the residual stream

    def __init__(self, n_heads: int, n_kv_heads: int, d_head: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.d_head = d_head
        self.kv_head = kv_head = "head" if n_kv_heads == n_heads else "kv_head"  # the axis of keys and values
        self.hook_q = HookPoint("batch pos head d_head")
        self.hook_k = HookPoint(f"batch pos {kv_head} d_head")
        self.hook_v = HookPoint(f"batch pos {kv_head} d_head")
        self.hook_attn_scores = HookPoint("batch head query key")
        self.hook_pattern = HookPoint("batch head query key")
        self.hook_z = HookPoint("batch pos head d_head")
        self.hook_result = HookPoint("batch pos head d_model", on_request=True)

    def hooked_qkv(self, q: Tensor, k: Tensor, v: Tensor, split: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values with what the heads' own inputs add to them."""
        if split:
            weights: dict[str, Any] = {"q": self.W_Q, "k": self.W_K, "v": self.W_V}
            q, k, v = (
                x + einsum(split[name], weights[name], "b p h d, h d d_head -> b p h d_head") if name in split else x
                for x, name in ((q, "q"), (k, "k"), (v, "v"))
            )
        return self.hook_q(q), self.hook_k(k), self.hook_v(v)

    def merge_heads(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """The sum over heads of z . W_O, plus the bias; head by head where somebody listens to `hook_result`."""
        if not self.hook_result.hooks:
            return self.out(z.flatten(2))
        W_O: Any = self.W_O
        result = self.hook_result(einsum(z, W_O, "b p h d_head, h d_head d -> b p h d")).sum(dim=2)
        return result if self.out.bias is None else result + self.out.bias
