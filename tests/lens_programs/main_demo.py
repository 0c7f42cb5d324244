"""TransformerLens's main demo: a loss, a cache, attention patterns, and a hook that ablates a head."""

import torch
import transformer_lens
import transformer_lens.utils as utils
from transformer_lens import ActivationCache, HookedTransformer
from transformer_lens.hook_points import HookPoint

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu")
text = "When Mary and John went to the store, John gave a drink to Mary."
loss = model(text, return_type="loss")

tokens = model.to_tokens(text)
logits, cache = model.run_with_cache(tokens, remove_batch_dim=True)
assert isinstance(cache, ActivationCache)
attention_pattern = cache["pattern", 0, "attn"]
str_tokens = model.to_str_tokens(text)

layer_to_ablate, head_index_to_ablate = 0, 2


def head_ablation_hook(value, hook: HookPoint):
    assert hook.name == utils.get_act_name("v", layer_to_ablate)
    value[:, :, head_index_to_ablate, :] = 0.0
    return value


original_loss, per_token = model(tokens, return_type="both")[1], model(tokens, return_type="loss", loss_per_token=True)
ablated_loss = model.run_with_hooks(
    tokens, return_type="loss", fwd_hooks=[(utils.get_act_name("v", layer_to_ablate), head_ablation_hook)]
)
is_attention = lambda name: name.endswith("hook_pattern")  # noqa: E731
_, patterns = model.run_with_cache(tokens, names_filter=is_attention)

results = {
    "loss": loss,
    "tokens": tokens,
    "str_tokens": str_tokens,
    "shapes": [list(cache[name].shape) for name in ("q0", ("resid_pre", 1), "scale2ln1", "normalized", "post3")],
    "pattern": attention_pattern[:, -1],
    "original_loss": original_loss,
    "per_token": per_token,
    "ablated_loss": ablated_loss,
    "cached": list(patterns.keys()),
    "keys": sorted(cache.keys()),
    "top": model.to_str_tokens(logits[-3:].argmax(-1)),
    "position": model.get_token_position(" John", text),
    "last position": model.get_token_position(" John", tokens, mode="last"),
    "single": [model.to_single_token(" Mary"), model.to_single_str_token(5)],
    "version": hasattr(transformer_lens, "HookedTransformer"),
}
