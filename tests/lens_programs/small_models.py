"""Small models of one's own: a config, weights by name, a few steps of training; processing afterwards."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

cfg = HookedTransformerConfig(
    n_layers=2,
    d_model=16,
    n_ctx=12,
    d_head=8,
    d_vocab=23,
    act_fn="gelu",
    normalization_type="LN",
    device="cpu",
    seed=0,
)
model = HookedTransformer(cfg)
generator = torch.Generator().manual_seed(0)
buffers = ("attn.mask", "attn.IGNORE")
names = sorted(name for name in model.state_dict() if not name.endswith(buffers))
weights = {name: torch.rand(model.state_dict()[name].shape, generator=generator) - 0.5 for name in names}
model.load_state_dict(weights, strict=False)
tokens = torch.randint(0, cfg.d_vocab, (5, 12), generator=generator)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
losses = []
for _ in range(4):
    loss = model(tokens, return_type="loss")
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

before = model(tokens).log_softmax(-1)
model.process_weights_()
_, cache = model.run_with_cache(tokens)
grouped = HookedTransformer(
    HookedTransformerConfig.from_dict(
        {
            "n_layers": 1, "d_model": 16, "n_ctx": 12, "d_head": 6, "n_heads": 4, "n_key_value_heads": 2, "d_vocab": 23,
            "act_fn": "silu", "normalization_type": "RMS", "positional_embedding_type": "rotary", "gated_mlp": True,
            "d_mlp": 20, "final_rms": True, "device": "cpu", "use_local_attn": True, "window_size": 4,
            "attn_types": ["local"],
        }
    )
)  # fmt: skip
wanted = {
    name: value for name, value in grouped.state_dict().items() if name.rpartition(".")[2][:2] in ("W_", "_W", "w")
}
grouped.load_state_dict(
    {name: torch.rand(value.shape, generator=generator) - 0.5 for name, value in sorted(wanted.items())}, strict=False
)

results = {
    "losses": losses,
    "names": sorted(weights),
    "log probs": before[0, -1],
    "processed": (model(tokens).log_softmax(-1) - before).abs().max(),
    "cache": cache["normalized", 1, "ln2"].norm(),
    "config": [
        cfg.n_heads,
        cfg.d_mlp,
        cfg.n_params,
        cfg.initializer_range,
        cfg.attn_scale,
        model.cfg.normalization_type,
    ],
    "grouped": grouped(tokens)[0, -1],
    "grouped loss": grouped(tokens, return_type="loss"),
}
