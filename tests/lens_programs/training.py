"""`transformer_lens.train` on a small model, then its weights processed and refactored."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.train import HookedTransformerTrainConfig, train

sizes = {"n_layers": 2, "d_model": 16, "n_ctx": 10, "d_head": 8, "d_vocab": 11}
choices = {"act_fn": "solu_ln", "seed": 1, "device": "cpu"}
model = HookedTransformer(HookedTransformerConfig(**sizes, **choices))
rows = [{"tokens": (torch.arange(10) * step) % 11} for step in range(1, 9)]
config = HookedTransformerTrainConfig(
    num_epochs=3, batch_size=4, lr=0.05, optimizer_name="SGD", momentum=0.5, max_grad_norm=1.0, warmup_steps=2,
    device="cpu", print_every=None,
)  # fmt: skip
tokens = torch.stack([row["tokens"] for row in rows])
before = model(tokens, return_type="loss").item()
train(model, config, rows)
with torch.no_grad():
    trained = model(tokens)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.process_weights_(refactor_factored_attn_matrices=True)
    again = HookedTransformer(HookedTransformerConfig(**sizes, **choices))
    again.load_and_process_state_dict(weights, fold_value_biases=False)
    heads = torch.stack([block.attn.W_O.norm(dim=-1) for block in model.blocks])
    W_Q, W_K = model.W_Q.norm(dim=-2), model.W_K.norm(dim=-2)

results = {
    "before": before,
    "loss": model.loss_fn(trained, tokens),
    "kept": [(m(tokens).log_softmax(-1) - trained.log_softmax(-1)).abs().max() < 1e-4 for m in (model, again)],
    "orthonormal": heads,
    "even": [W_Q, (W_Q**2 + model.b_Q**2 - W_K**2 - model.b_K**2).abs().max() < 1e-4],
    "z": model.run_with_cache(tokens)[1]["z", 1].abs().mean(dim=(0, 1)),
    "norm": model.cfg.normalization_type,
}
