"""LLaMA 1 to 3.3, the whole model in one file.

Axes, in every annotation and every einops pattern of this package:
    batch    prompts
    pos      tokens of a prompt (query, key: pos inside attention; key_pos: with those in the KV cache)
    d_model  residual stream
    head     query heads, each of width d_head
    kv_head  key-value heads, each shared by head / kv_head query heads
    d_mlp    neurons
    d_vocab  token ids

What differs from GPT-2: RMSNorm for LayerNorm, positions turned into queries and keys instead of added to the stream,
key-value heads shared between query heads, an MLP with a gate, and no biases.

Papers: https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783
"""

from dataclasses import dataclass
from itertools import islice

from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nnzoo.architectures.activations import ACTIVATIONS
from nnzoo.architectures.attention import Attention, Span, attend, span_of, split_inputs
from nnzoo.architectures.hooked_model import HookedModel, Unembed
from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.kv_cache import KVCache
from nnzoo.architectures.modules import Module
from nnzoo.architectures.norms import RMSNorm
from nnzoo.architectures.parameters import Embedding, Linear
from nnzoo.architectures.rotary import Rope, Rotary, rotate, rotation


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """What a LLaMA checkpoint decides."""

    d_vocab: int
    n_ctx: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int  # fewer than n_heads: grouped-query attention
    d_head: int  # its own field: Mistral-Nemo has 128, not d_model // n_heads = 160
    d_mlp: int
    activation: str
    eps: float
    rope: Rope
    attn_bias: bool
    mlp_bias: bool
    tied: bool  # the unembedding is the embedding


class LlamaAttention(Attention):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config.n_heads, config.n_kv_heads, config.d_head)
        self.layer = layer
        self.scale = config.d_head**-0.5
        width, kv_width = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q = Linear(config.d_model, width, bias=config.attn_bias)
        self.k = Linear(config.d_model, kv_width, bias=config.attn_bias)
        self.v = Linear(config.d_model, kv_width, bias=config.attn_bias)
        self.out = Linear(width, config.d_model, bias=config.attn_bias)
        self.hook_q_in = HookPoint("batch pos d_model")
        self.hook_k_in = HookPoint("batch pos d_model")
        self.hook_v_in = HookPoint("batch pos d_model")
        self.hook_rot_q = HookPoint("batch pos head d_head")
        self.hook_rot_k = HookPoint(self.hook_k.axes.replace("pos", "key_pos"))

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], split: dict[str, Tensor], span: Span
    ) -> Float[Tensor, "batch pos d_model"]:
        batch, n_pos, _ = x.shape
        q = self.q(self.hook_q_in(x)).view(batch, n_pos, self.n_heads, self.d_head)
        k = self.k(self.hook_k_in(x)).view(batch, n_pos, self.n_kv_heads, self.d_head)
        v = self.v(self.hook_v_in(x)).view(batch, n_pos, self.n_kv_heads, self.d_head)
        q, k, v = self.hooked_qkv(q, k, v, split)
        q, k = rotate(q, span.rotation), rotate(k, span.rotation)
        if span.cache is not None:
            k, v = span.cache.append(self.layer, k, v)
        return self.merge_heads(attend(self, self.hook_rot_q(q), self.hook_rot_k(k), v, span, self.scale))

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return rearrange(self.q.weight, "(h d_head) d -> h d d_head", h=self.n_heads)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return rearrange(self.k.weight, "(h d_head) d -> h d d_head", h=self.n_kv_heads)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return rearrange(self.v.weight, "(h d_head) d -> h d d_head", h=self.n_kv_heads)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return rearrange(self.out.weight, "d (h d_head) -> h d_head d", h=self.n_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return bias_of(self.q).view(self.n_heads, self.d_head)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        return bias_of(self.k).view(self.n_kv_heads, self.d_head)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return bias_of(self.v).view(self.n_kv_heads, self.d_head)

    @property
    def b_O(self) -> Float[Tensor, "d_model"]:
        return bias_of(self.out)


class GatedMLP(Module):
    """SwiGLU (https://arxiv.org/abs/2002.05202): a neuron is its activated gate times its linear part."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.activation]
        self.gate = Linear(config.d_model, config.d_mlp, bias=config.mlp_bias)
        self.up = Linear(config.d_model, config.d_mlp, bias=config.mlp_bias)
        self.down = Linear(config.d_mlp, config.d_model, bias=config.mlp_bias)
        self.hook_gate_in = HookPoint("batch pos d_model")
        self.hook_pre = HookPoint("batch pos d_mlp")
        self.hook_act = HookPoint("batch pos d_mlp")
        self.hook_up_in = HookPoint("batch pos d_model")
        self.hook_pre_linear = HookPoint("batch pos d_mlp")
        self.hook_post = HookPoint("batch pos d_mlp")

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        gate = self.hook_act(self.act(self.hook_pre(self.gate(self.hook_gate_in(x)))))
        linear = self.hook_pre_linear(self.up(self.hook_up_in(x)))
        return self.down(self.hook_post(gate * linear))

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.gate.weight.t()

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.up.weight.t()

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.down.weight.t()

    @property
    def b_in(self) -> Float[Tensor, "d_mlp"]:
        return bias_of(self.up)

    @property
    def b_out(self) -> Float[Tensor, "d_model"]:
        return bias_of(self.down)


class Block(Module):
    """Each token gathers from those before it, then thinks for itself; both add to the residual stream."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.ln1 = RMSNorm(config.d_model, config.eps)
        self.attn = LlamaAttention(config, layer)
        self.ln2 = RMSNorm(config.d_model, config.eps)
        self.mlp = GatedMLP(config)
        self.hook_resid_pre = HookPoint("batch pos d_model")
        self.hook_attn_in = HookPoint("batch pos head d_model", on_request=True)
        self.hook_q_input = HookPoint("batch pos head d_model", on_request=True)
        self.hook_k_input = HookPoint(f"batch pos {self.attn.kv_head} d_model", on_request=True)
        self.hook_v_input = HookPoint(f"batch pos {self.attn.kv_head} d_model", on_request=True)
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


class Llama(HookedModel):
    """Token ids to logits.

    >>> import torch
    >>> config = LlamaConfig(
    ...     d_vocab=50, n_ctx=16, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=32,
    ...     activation="silu", eps=1e-5, rope=Rope(theta=10000.0), attn_bias=False, mlp_bias=False, tied=False,
    ... )
    >>> Llama(config)(torch.tensor([[3, 1, 4]])).shape
    torch.Size([1, 3, 50])
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.d_vocab, config.d_model)
        self.rotary = Rotary(config.rope, config.d_head)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_final = RMSNorm(config.d_model, config.eps)
        self.unembed = Unembed(config.d_model, config.d_vocab)
        self.hook_tokens = HookPoint("batch pos")
        self.hook_positions = HookPoint("batch pos")
        self.hook_embed = HookPoint("batch pos d_model")
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
        """The residual stream as it enters the first block, and the angles by which every block rotates."""
        tokens = self.hook_tokens(tokens)
        x = self.hook_embed(self.embed(tokens))
        return x, self.span(tokens, attention_mask, cache)

    def span(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Span:
        """Where each token stands, what it may look at, and by which angles its queries and keys turn."""
        span = span_of(tokens, attention_mask, cache, n_ctx=self.max_tokens, window=self.window)
        span.rotation = rotation(*self.rotary(self.hook_positions(span.positions), self.dtype))
        return span

    def finish(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits from the residual stream as it leaves the last block."""
        return self.unembed(self.ln_final(x))

    @property
    def max_tokens(self) -> int:
        """How many tokens a prompt and what follows it may have: stretched rotations reach beyond `n_ctx`."""
        return self.config.rope.reach(self.config.n_ctx)


def bias_of(linear: nn.Linear) -> Float[Tensor, "d_out"]:
    """A linear map's bias, zeros where it has none."""
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
