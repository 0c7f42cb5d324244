"""Induction heads on repeated random tokens: scores stored by a hook on every pattern."""

import einops
import torch
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu")
batch_size, seq_len = 3, 15
generator = torch.Generator().manual_seed(0)
random_tokens = torch.randint(30, 700, (batch_size, seq_len), generator=generator)
repeated_tokens = einops.repeat(random_tokens, "batch seq_len -> batch (2 seq_len)")
repeated_tokens = torch.cat([torch.full((batch_size, 1), model.tokenizer.bos_token_id), repeated_tokens], dim=1)

induction_score_store = torch.zeros((model.cfg.n_layers, model.cfg.n_heads), device=model.cfg.device)


def induction_score_hook(pattern, hook: HookPoint):
    induction_stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - seq_len)
    induction_score = einops.reduce(induction_stripe, "batch head_index position -> head_index", "mean")
    induction_score_store[hook.layer(), :] = induction_score


pattern_hook_names_filter = lambda name: name.endswith("pattern")  # noqa: E731
with torch.no_grad():
    model.run_with_hooks(
        repeated_tokens,
        return_type=None,  # For efficiency, we don't need to calculate the logits
        fwd_hooks=[(pattern_hook_names_filter, induction_score_hook)],
    )
    correct_log_probs = -model(repeated_tokens, return_type="loss", loss_per_token=True)

results = {
    "scores": induction_score_store,
    "first half": correct_log_probs[:, :seq_len].mean(),
    "second half": correct_log_probs[:, seq_len:].mean(),
}
