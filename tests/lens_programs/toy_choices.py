"""Every choice of a small model: norms, positions, activations; what a seed draws, and what comes out."""

import itertools

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

torch.set_grad_enabled(False)
base = {"n_layers": 2, "d_model": 16, "n_ctx": 12, "d_head": 8, "d_vocab": 23, "device": "cpu", "seed": 3}
tokens = torch.arange(18).view(2, 9)
choices = [
    {"normalization_type": norm, "positional_embedding_type": positions, "attn_only": attn_only, "act_fn": "gelu"}
    for norm, positions, attn_only in itertools.product(
        (None, "LN", "LNPre", "RMS", "RMSPre"), ("standard", "shortformer"), (True, False)
    )
]
choices += [{"act_fn": act_fn} for act_fn in ("relu", "gelu", "gelu_new", "gelu_fast", "silu", "solu", "solu_ln")]
choices += [{"act_fn": "solu_ln", "normalization_type": norm} for norm in ("LNPre", "RMS", None)]
modes = ("gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP")
choices += [{"act_fn": "relu", "init_mode": mode} for mode in modes]
choices += [
    {"act_fn": "relu", "n_heads": 3, "d_vocab_out": 5, "attention_dir": "bidirectional"},
    {"act_fn": "relu", "scale_attn_by_inverse_layer_idx": True, "attn_scale": 3.0, "d_mlp": 20},
    {"attn_only": True, "use_attn_scale": False, "initializer_range": 0.3},
]


def facts(choice):
    model = HookedTransformer(HookedTransformerConfig(**base, **choice))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith((".w", ".b")):
                value += torch.arange(len(value)) / 16  # norms do something
    drawn = [model.W_Q[1, 1, 2, 3], model.W_V[0, 1, 3, 2], model.W_U[1, 2]]
    logits, cache = model.run_with_cache(tokens)
    return {
        "drawn": drawn,
        "logits": logits[:, -1, :4],
        "pattern": cache["pattern", 1][0, :, -1],
        "stream": cache["resid_post", -1].norm(),
        "names": len(cache),
        "trained": sorted(name for name, _ in model.named_parameters()),
        "config": [model.cfg.n_params, model.cfg.d_mlp, model.cfg.attn_scale, model.cfg.initializer_range],
    }


results = {str(choice): facts(choice) for choice in choices}
