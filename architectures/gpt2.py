"""GPT-2, the whole model in one file.

Axes, in every annotation and every einops pattern of this package:
    batch    prompts
    pos      tokens of a prompt (query, key: pos inside attention; key_pos: with those in the KV cache)
    d_model  residual stream
    head     attention heads, each of width d_head
    d_mlp    neurons
    d_vocab  token ids

Read it from the top: what a token's vector goes through is `Block`; what starts and ends it is `GPT2`.

Paper: Radford et al. 2019, Language Models are Unsupervised Multitask Learners
"""

from dataclasses import dataclass
from itertools import islice

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nnzoo.architectures.activations import ACTIVATIONS
from nnzoo.architectures.attention import Attention, Span, attend, span_of, split_inputs
from nnzoo.architectures.hooked_model import HookedModel, Unembed
from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.kv_cache import KVCache
from nnzoo.architectures.modules import Module
from nnzoo.architectures.norms import LayerNorm
from nnzoo.architectures.parameters import Embedding, quick
from nnzoo.architectures.products import linear


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """What a GPT-2 checkpoint decides."""

    d_vocab: int
    n_ctx: int  # learned positions: a longer prompt has none
    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    activation: str
    eps: float
    scale_scores: bool  # divide the scores by sqrt(d_head)
    scale_by_layer: bool  # and by the block's number, counted from 1
    tied: bool  # the unembedding is the embedding

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads


@quick("weight", "bias")
class Conv1D(Module):
    """x W + b, with the weight stored [in, out], as in GPT-2's checkpoints."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_in, d_out))
        self.bias = nn.Parameter(torch.zeros(d_out))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_out"]:
        return linear(x, self.weight.t(), self.bias)


class GPT2Attention(Attention):
    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__(config.n_heads, config.n_heads, config.d_head)
        self.layer = layer
        self.scale = config.d_head**-0.5 if config.scale_scores else 1.0
        if config.scale_by_layer:
            self.scale /= layer + 1
        self.qkv = Conv1D(config.d_model, 3 * config.d_model)
        self.out = Conv1D(config.d_model, config.d_model)
        self.hook_qkv = HookPoint("batch pos 3*d_model")

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], split: dict[str, Tensor], span: Span
    ) -> Float[Tensor, "batch pos d_model"]:
        qkv = self.hook_qkv(self.qkv(x))
        q, k, v = qkv.view(*x.shape[:2], 3, self.n_heads, self.d_head).unbind(dim=2)
        q, k, v = self.hooked_qkv(q, k, v, split)
        if span.cache is not None:
            k, v = span.cache.append(self.layer, k, v)
        return self.merge_heads(attend(self, q, k, v, span, self.scale))

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._heads(0)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        return self._heads(1)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        return self._heads(2)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return rearrange(self.out.weight, "(h d_head) d -> h d_head d", h=self.n_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self.qkv.bias.view(3, self.n_heads, -1)[0]

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        return self.qkv.bias.view(3, self.n_heads, -1)[1]

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        return self.qkv.bias.view(3, self.n_heads, -1)[2]

    @property
    def b_O(self) -> Float[Tensor, "d_model"]:
        return self.out.bias

    def _heads(self, which: int) -> Float[Tensor, "head d_model d_head"]:
        return rearrange(self.qkv.weight, "d (three h d_head) -> three h d d_head", three=3, h=self.n_heads)[which]


class MLP(Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.activation]
        self.up = Conv1D(config.d_model, config.d_mlp)
        self.down = Conv1D(config.d_mlp, config.d_model)
        self.hook_pre = HookPoint("batch pos d_mlp")
        self.hook_post = HookPoint("batch pos d_mlp")

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        neurons = self.hook_post(self.act(self.hook_pre(self.up(x))))
        return self.down(neurons)

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.up.weight

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.down.weight

    @property
    def b_in(self) -> Float[Tensor, "d_mlp"]:
        return self.up.bias

    @property
    def b_out(self) -> Float[Tensor, "d_model"]:
        return self.down.bias


class Block(Module):
    """Each token gathers from those before it, then thinks for itself; both add to the residual stream."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.ln1 = LayerNorm(config.d_model, config.eps)
        self.attn = GPT2Attention(config, layer)
        self.ln2 = LayerNorm(config.d_model, config.eps)
        self.mlp = MLP(config)
        self.hook_resid_pre = HookPoint("batch pos d_model")
        self.hook_attn_in = HookPoint("batch pos head d_model", on_request=True)
        self.hook_q_input = HookPoint("batch pos head d_model", on_request=True)
        self.hook_k_input = HookPoint("batch pos head d_model", on_request=True)
        self.hook_v_input = HookPoint("batch pos head d_model", on_request=True)
        self.hook_attn_out = HookPoint("batch pos d_model")
        self.hook_resid_mid = HookPoint("batch pos d_model")
        self.hook_mlp_in = HookPoint("batch pos d_model")
        self.hook_mlp_out = HookPoint("batch pos d_model")
        self.hook_resid_post = HookPoint("batch pos d_model")

    def forward(self, x: Float[Tensor, "batch pos d_model"], span: Span) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        split = split_inputs(self, x)  # empty, unless somebody looks at the heads' own inputs
        x = self.hook_resid_mid(x + self.hook_attn_out(self.attn(self.ln1(x), split, span)))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(self.hook_mlp_in(x)))))


class GPT2(HookedModel):
    """Token ids to logits.

    >>> config = GPT2Config(
    ...     d_vocab=50, n_ctx=16, d_model=8, n_layers=2, n_heads=2, d_mlp=32, activation="gelu_new", eps=1e-5,
    ...     scale_scores=True, scale_by_layer=False, tied=True,
    ... )
    >>> GPT2(config)(torch.tensor([[3, 1, 4]])).shape
    torch.Size([1, 3, 50])
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.d_vocab, config.d_model)
        self.pos_embed = Embedding(config.n_ctx, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_final = LayerNorm(config.d_model, config.eps)
        self.unembed = Unembed(config.d_model, config.d_vocab)
        self.hook_tokens = HookPoint("batch pos")
        self.hook_positions = HookPoint("batch pos")
        self.hook_embed = HookPoint("batch pos d_model")
        self.hook_pos_embed = HookPoint("batch pos d_model")
        self.setup()

    def forward(
        self,
        input: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_model"],
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        cache: KVCache | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"] | Float[Tensor, "batch pos d_model"]:
        begin = self.begin if start_at_layer is None else self.begin_inside
        x, span = begin(input, attention_mask, cache)
        for block in islice(self.blocks, start_at_layer, stop_at_layer):
            x = block(x, span)
        return self.finish(x) if stop_at_layer is None else x

    def begin(
        self,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Span]:
        """The residual stream as it enters the first block."""
        tokens = self.hook_tokens(tokens)
        span = self.span(tokens, attention_mask, cache)
        positions = self.hook_positions(span.positions)
        return self.hook_embed(self.embed(tokens)) + self.hook_pos_embed(self.pos_embed(positions)), span

    def span(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Span:
        """Where each token stands, and what it may look at."""
        return span_of(tokens, attention_mask, cache, n_ctx=self.config.n_ctx)

    def finish(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits from the residual stream as it leaves the last block."""
        return self.unembed(self.ln_final(x))

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return self.pos_embed.weight
