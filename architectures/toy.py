"""Small transformers of one's own: two layers of attention and nothing else, an adder without norms, a classifier.

What GPT-2 settles is a choice here, as in the toy models of papers: MLPs or none, which norm or none, where positions
come in, whether a token sees what comes after it. The axes are those of gpt2.py. Every weight is stored in the shape in
which the papers write it, one matrix for each head, and multiplies from the right: x W.

Papers: Elhage et al. 2021, https://transformer-circuits.pub/2021/framework (attention alone); Nanda et al. 2023,
https://arxiv.org/abs/2301.05217 (an adder); Press et al. 2020, https://arxiv.org/abs/2012.15832 (shortformer positions)
"""

from dataclasses import dataclass
from itertools import islice

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nnzoo.architectures.activations import ACTIVATIONS, gelu_fast, solu
from nnzoo.architectures.attention import Attention, Span, attend, span_of, split_inputs
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.kv_cache import KVCache
from nnzoo.architectures.modules import Module
from nnzoo.architectures.norms import LayerNorm, NoNorm, RMSNorm

TOY_ACTIVATIONS = {**ACTIVATIONS, "gelu_fast": gelu_fast, "solu": solu, "solu_ln": solu}
NORMS = {"LN": LayerNorm, "RMS": RMSNorm, None: NoNorm}


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """What you decide."""

    d_vocab: int
    d_vocab_out: int  # logits; as many as tokens in a language model, 2 in a classifier
    n_ctx: int
    d_model: int
    n_layers: int
    n_heads: int
    d_head: int  # all heads together may be wider or narrower than d_model
    d_mlp: int | None  # None: blocks of attention alone
    activation: str | None  # of TOY_ACTIVATIONS; "solu_ln" has a norm of its own behind it
    norm: str | None  # "LN", "RMS" or None
    eps: float
    shortformer: bool  # positions are added to what queries and keys read, and not to the stream
    causal: bool  # False: a token sees those after it too
    scale: float  # the scores are divided by it
    scale_by_layer: bool  # and by the block's number, counted from 1
    tied: bool = False

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm is {', '.join(map(repr, NORMS))}, not {self.norm!r}")
        if self.d_mlp is not None and self.activation not in TOY_ACTIVATIONS:
            raise ValueError(f"activation is {', '.join(map(repr, TOY_ACTIVATIONS))}, not {self.activation!r}")

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads


def matrix(*shape: int) -> nn.Parameter:
    """New weights, drawn as GPT-2's were."""
    return nn.Parameter(torch.empty(shape).normal_(std=0.02))


class Embed(Module):
    """A row of a table for each number: for token ids, or for positions."""

    def __init__(self, n_rows: int, d_model: int) -> None:
        super().__init__()
        self.weight = matrix(n_rows, d_model)

    def forward(self, numbers: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return self.weight[numbers]


class Unembed(Module):
    """From the residual stream to logits."""

    def __init__(self, d_model: int, d_vocab_out: int) -> None:
        super().__init__()
        self.W_U = matrix(d_model, d_vocab_out)
        self.b_U = nn.Parameter(torch.zeros(d_vocab_out))
        self.hook_in = HookPoint("batch pos d_model")
        self.hook_out = HookPoint("batch pos d_vocab_out")

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab_out"]:
        return self.hook_out(self.hook_in(x) @ self.W_U + self.b_U)

    @property
    def weight(self) -> Float[Tensor, "d_vocab_out d_model"]:
        return self.W_U.t()

    @property
    def bias(self) -> Float[Tensor, "d_vocab_out"]:
        return self.b_U


@dataclass
class ToySpan(Span):
    pos_embed: Float[Tensor, "batch pos d_model"] | float = 0.0  # what queries and keys read beside the stream


class ToyAttention(Attention):
    def __init__(self, config: ToyConfig, layer: int) -> None:
        super().__init__(config.n_heads, config.n_heads, config.d_head)
        self.layer = layer
        self.scale = 1 / config.scale
        if config.scale_by_layer:
            self.scale /= layer + 1
        heads, d_model, d_head = config.n_heads, config.d_model, config.d_head
        self.W_Q, self.b_Q = matrix(heads, d_model, d_head), nn.Parameter(torch.zeros(heads, d_head))
        self.W_K, self.b_K = matrix(heads, d_model, d_head), nn.Parameter(torch.zeros(heads, d_head))
        self.W_V, self.b_V = matrix(heads, d_model, d_head), nn.Parameter(torch.zeros(heads, d_head))
        self.W_O, self.b_O = matrix(heads, d_head, d_model), nn.Parameter(torch.zeros(d_model))

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], split: dict[str, Tensor], span: ToySpan
    ) -> Float[Tensor, "batch pos d_model"]:
        placed = x + span.pos_embed
        q = einsum(placed, self.W_Q, "b p d, h d d_head -> b p h d_head") + self.b_Q
        k = einsum(placed, self.W_K, "b p d, h d d_head -> b p h d_head") + self.b_K
        v = einsum(x, self.W_V, "b p d, h d d_head -> b p h d_head") + self.b_V
        q, k, v = self.hooked_qkv(q, k, v, split)
        if span.cache is not None:
            k, v = span.cache.append(self.layer, k, v)
        return self.merge_heads(attend(self, q, k, v, span, self.scale))

    def merge_heads(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        if not self.hook_result.hooks:
            return einsum(z, self.W_O, "b p h d_head, h d_head d -> b p d") + self.b_O
        return self.hook_result(einsum(z, self.W_O, "b p h d_head, h d_head d -> b p h d")).sum(dim=2) + self.b_O


class ToyMLP(Module):
    def __init__(self, config: ToyConfig, d_mlp: int) -> None:
        super().__init__()
        self.act = TOY_ACTIVATIONS[config.activation or ""]
        self.W_in, self.b_in = matrix(config.d_model, d_mlp), nn.Parameter(torch.zeros(d_mlp))
        self.W_out, self.b_out = matrix(d_mlp, config.d_model), nn.Parameter(torch.zeros(config.d_model))
        self.hook_pre = HookPoint("batch pos d_mlp")
        self.hook_post = HookPoint("batch pos d_mlp")

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        pre = self.hook_pre(x @ self.W_in + self.b_in)
        return self.hook_post(self.acted(pre)) @ self.W_out + self.b_out

    def acted(self, pre: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
        return self.act(pre)


class NormedMLP(ToyMLP):
    """With a norm between the activation and what reads it (https://transformer-circuits.pub/2022/solu)."""

    def __init__(self, config: ToyConfig, d_mlp: int) -> None:
        super().__init__(config, d_mlp)
        self.ln = LayerNorm(d_mlp, config.eps, axis="d_mlp")
        self.hook_mid = HookPoint("batch pos d_mlp")

    def acted(self, pre: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
        return self.ln(self.hook_mid(self.act(pre)))


class AttentionBlock(Module):
    """Each token gathers from others, and that is all."""

    def __init__(self, config: ToyConfig, layer: int) -> None:
        super().__init__()
        self.ln1 = NORMS[config.norm](config.d_model, config.eps)
        self.attn = ToyAttention(config, layer)
        self.hook_resid_pre = HookPoint("batch pos d_model")
        self.hook_attn_in = HookPoint("batch pos head d_model", on_request=True)
        self.hook_q_input = HookPoint("batch pos head d_model", on_request=True)
        self.hook_k_input = HookPoint("batch pos head d_model", on_request=True)
        self.hook_v_input = HookPoint("batch pos head d_model", on_request=True)
        self.hook_attn_out = HookPoint("batch pos d_model")
        self.hook_resid_post = HookPoint("batch pos d_model")

    def forward(self, x: Float[Tensor, "batch pos d_model"], span: ToySpan) -> Float[Tensor, "batch pos d_model"]:
        return self.hook_resid_post(self.gathered(x, span))

    def gathered(self, x: Float[Tensor, "batch pos d_model"], span: ToySpan) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after attention."""
        x = self.hook_resid_pre(x)
        split = split_inputs(self, x)  # empty, unless somebody looks at the heads' own inputs
        return x + self.hook_attn_out(self.attn(self.ln1(x), split, span))


class Block(AttentionBlock):
    """Each token gathers from others, then thinks for itself."""

    def __init__(self, config: ToyConfig, layer: int, d_mlp: int) -> None:
        super().__init__(config, layer)
        self.ln2 = NORMS[config.norm](config.d_model, config.eps)
        self.mlp = (NormedMLP if config.activation == "solu_ln" else ToyMLP)(config, d_mlp)
        self.hook_resid_mid = HookPoint("batch pos d_model")
        self.hook_mlp_in = HookPoint("batch pos d_model")
        self.hook_mlp_out = HookPoint("batch pos d_model")

    def forward(self, x: Float[Tensor, "batch pos d_model"], span: ToySpan) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_mid(self.gathered(x, span))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(self.hook_mlp_in(x)))))


class Toy(HookedModel):
    """Token ids to logits.

    >>> config = ToyConfig(
    ...     d_vocab=50, d_vocab_out=50, n_ctx=16, d_model=8, n_layers=2, n_heads=2, d_head=4, d_mlp=None,
    ...     activation=None, norm=None, eps=1e-5, shortformer=True, causal=True, scale=2.0, scale_by_layer=False,
    ... )
    >>> Toy(config)(torch.tensor([[3, 1, 4]])).shape
    torch.Size([1, 3, 50])
    """

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embed(config.d_vocab, config.d_model)
        self.pos_embed = Embed(config.n_ctx, config.d_model)
        self.blocks = nn.ModuleList(
            AttentionBlock(config, layer) if config.d_mlp is None else Block(config, layer, config.d_mlp)
            for layer in range(config.n_layers)
        )
        self.ln_final = NORMS[config.norm](config.d_model, config.eps)
        self.unembed = Unembed(config.d_model, config.d_vocab_out)
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
    ) -> Float[Tensor, "batch pos d_vocab_out"] | Float[Tensor, "batch pos d_model"]:
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
    ) -> tuple[Float[Tensor, "batch pos d_model"], ToySpan]:
        """The residual stream as it enters the first block."""
        tokens = self.hook_tokens(tokens)
        span = self.span(tokens, attention_mask, cache)
        embed = self.hook_embed(self.embed(tokens))
        pos_embed = self.hook_pos_embed(self.pos_embed(self.hook_positions(span.positions)))
        if not self.config.shortformer:
            return embed + pos_embed, span
        span.pos_embed = pos_embed
        return embed, span

    def span(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> ToySpan:
        """Where each token stands, and what it may look at."""
        span = ToySpan(**vars(span_of(tokens, attention_mask, cache, n_ctx=self.config.n_ctx)))
        if self.config.shortformer:
            span.pos_embed = self.pos_embed(span.positions)
        if not self.config.causal:
            see_all(span)
        return span

    def finish(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab_out"]:
        """Logits from the residual stream as it leaves the last block."""
        return self.unembed(self.ln_final(x))

    @property
    def axis_sizes(self) -> dict[str, int]:
        sizes = {**super().axis_sizes, "d_vocab_out": self.config.d_vocab_out}
        return {axis: size for axis, size in sizes.items() if size is not None}

    @property
    def adds_positions(self) -> bool:
        return not self.config.shortformer

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return self.pos_embed.weight


def see_all(span: ToySpan) -> None:
    """Let every token look at every other that is no padding. Raises NotImplementedError where a cache is filled."""
    if span.cache is not None:
        raise NotImplementedError("a token that sees those after it changes with every new one: there is no KV cache")
    seen = torch.ones_like(span.positions, dtype=torch.bool) if span.seen is None else span.seen
    span.causal, span.blind = False, None
    span.mask = seen[:, None, None].expand(-1, 1, span.n_pos, -1)
