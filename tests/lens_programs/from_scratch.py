"""ARENA's chapter 1.1: a transformer written by hand, held against the reference part by part."""

from dataclasses import dataclass

import einops
import torch
from torch import nn
from transformer_lens import HookedTransformer
from transformer_lens.utils import gelu_new

torch.set_grad_enabled(False)
reference_gpt2 = HookedTransformer.from_pretrained(
    "nnzoo/tiny-gpt2", fold_ln=False, center_unembed=False, center_writing_weights=False, device="cpu"
)
tokens = reference_gpt2.to_tokens("The capital of France is")
logits, cache = reference_gpt2.run_with_cache(tokens)


@dataclass
class Config:
    d_model: int = reference_gpt2.cfg.d_model
    layer_norm_eps: float = reference_gpt2.cfg.eps
    d_vocab: int = reference_gpt2.cfg.d_vocab
    init_range: float = 0.02
    n_ctx: int = reference_gpt2.cfg.n_ctx
    d_head: int = reference_gpt2.cfg.d_head
    d_mlp: int = reference_gpt2.cfg.d_mlp
    n_heads: int = reference_gpt2.cfg.n_heads
    n_layers: int = reference_gpt2.cfg.n_layers


class LayerNorm(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.w, self.b = cfg, nn.Parameter(torch.ones(cfg.d_model)), nn.Parameter(torch.zeros(cfg.d_model))

    def forward(self, x):
        std = (x.var(dim=-1, keepdim=True, unbiased=False) + self.cfg.layer_norm_eps).sqrt()
        return (x - x.mean(dim=-1, keepdim=True)) / std * self.w + self.b


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        for name in "QKV":
            setattr(self, f"W_{name}", nn.Parameter(torch.empty(cfg.n_heads, cfg.d_model, cfg.d_head)))
            setattr(self, f"b_{name}", nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head)))
        self.W_O = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_head, cfg.d_model))
        self.b_O = nn.Parameter(torch.zeros(cfg.d_model))

    def forward(self, x):
        q, k, v = (
            einops.einsum(x, W, "b s e, n e h -> b s n h") + b
            for W, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        scores = einops.einsum(q, k, "b q n h, b k n h -> b n q k") / self.cfg.d_head**0.5
        mask = torch.triu(torch.ones(scores.shape[-2:]), diagonal=1).bool()
        z = einops.einsum(v, scores.masked_fill(mask, -1e5).softmax(-1), "b k n h, b n q k -> b q n h")
        return einops.einsum(z, self.W_O, "b s n h, n h e -> b s e") + self.b_O


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.W_in, self.b_in = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp)), nn.Parameter(torch.zeros(cfg.d_mlp))
        self.W_out = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_model))
        self.b_out = nn.Parameter(torch.zeros(cfg.d_model))

    def forward(self, x):
        return gelu_new(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.ln1, self.attn, self.ln2, self.mlp = LayerNorm(cfg), Attention(cfg), LayerNorm(cfg), MLP(cfg)

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class DemoTransformer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.embed, self.pos_embed, self.unembed = nn.Module(), nn.Module(), nn.Module()
        self.embed.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))
        self.pos_embed.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.ln_final = LayerNorm(cfg)
        self.unembed.W_U = nn.Parameter(torch.empty(cfg.d_model, cfg.d_vocab))
        self.unembed.b_U = nn.Parameter(torch.zeros(cfg.d_vocab))

    def forward(self, tokens):
        x = self.embed.W_E[tokens] + self.pos_embed.W_pos[: tokens.shape[-1]]
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x) @ self.unembed.W_U + self.unembed.b_U


def test_on_gpt2(mine, theirs, *inputs):
    mine.load_state_dict(theirs.state_dict(), strict=False)
    return (mine(*inputs[:1]) - theirs(*inputs)).abs().max() < 1e-4


cfg = Config()
normalized = cache["normalized", 0, "ln1"]
block = reference_gpt2.blocks[0]
demo_gpt2 = DemoTransformer(cfg)
missing = demo_gpt2.load_state_dict(reference_gpt2.state_dict(), strict=False).missing_keys

results = {
    "layer norm": test_on_gpt2(LayerNorm(cfg), reference_gpt2.ln_final, cache["resid_post", -1]),
    "attention": test_on_gpt2(Attention(cfg), block.attn, normalized, normalized, normalized),
    "mlp": test_on_gpt2(MLP(cfg), block.mlp, cache["normalized", 0, "ln2"]),
    "block": test_on_gpt2(Block(cfg), block, cache["resid_pre", 0]),
    "model": (demo_gpt2(tokens) - logits).abs().max() < 1e-3,
    "missing": missing,
    "next": reference_gpt2.to_string(logits[0, -1].argmax()),
    "shapes": {
        name: list(value.shape)
        for name, value in reference_gpt2.state_dict().items()
        if (".1." in name or "blocks" not in name) and not name.endswith(("mask", "IGNORE"))
    },
}
