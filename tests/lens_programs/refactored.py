"""A model loaded as in the exploratory analysis demo: every processing step, heads refactored."""

import torch
from transformer_lens import HookedTransformer

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained(
    "nnzoo/tiny-gpt2",
    center_unembed=True,
    center_writing_weights=True,
    fold_ln=True,
    refactor_factored_attn_matrices=True,
    device="cpu",
)
prompt = "When Mary and John went to the store, John gave a drink to"
logits, cache = model.run_with_cache(prompt)
attribution = cache.logit_attrs(cache.stack_head_results(pos_slice=-1), " Mary", " John", pos_slice=-1)

results = {
    "log probs": logits.log_softmax(-1)[0, -1, :20],
    "pattern": cache["pattern", 2][0, :, -1],
    "attribution": attribution,
    "z": cache["z", 1].norm(dim=-1),
    "result": (cache["z", 1].norm(dim=-1) - (cache["z", 1][..., None, :] @ model.W_O[1]).norm(dim=-1)[..., 0])
    .abs()
    .max()
    < 1e-3,
    "even": [model.W_Q[0].norm(), model.W_K[0].norm(), model.W_O.norm(), model.b_V.norm()],
}
