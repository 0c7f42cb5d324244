"""Indirect objects, as in the exploratory analysis demo: logit lens, and attribution to layers and heads."""

import einops
import torch
from transformer_lens import ActivationCache, HookedTransformer

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained(
    "nnzoo/tiny-gpt2", center_unembed=True, center_writing_weights=True, fold_ln=True, device="cpu"
)
prompts = [
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
]
answers = [(" Mary", " John"), (" John", " Mary")]
answer_tokens = torch.stack([model.to_tokens(list(pair), prepend_bos=False).squeeze(1) for pair in answers])
tokens = model.to_tokens(prompts, prepend_bos=True)
original_logits, cache = model.run_with_cache(tokens)


def logits_to_ave_logit_diff(logits, answer_tokens, per_prompt=False):
    final_logits = logits[:, -1, :]
    answer_logits = final_logits.gather(dim=-1, index=answer_tokens)
    answer_logit_diff = answer_logits[:, 0] - answer_logits[:, 1]
    return answer_logit_diff if per_prompt else answer_logit_diff.mean()


answer_residual_directions = model.tokens_to_residual_directions(answer_tokens)
logit_diff_directions = answer_residual_directions[:, 0] - answer_residual_directions[:, 1]


def residual_stack_to_logit_diff(residual_stack, cache: ActivationCache):
    scaled_residual_stack = cache.apply_ln_to_stack(residual_stack, layer=-1, pos_slice=-1)
    return einops.einsum(scaled_residual_stack, logit_diff_directions, "... batch d_model, batch d_model -> ...") / len(
        prompts
    )


final_residual_stream = cache["resid_post", -1]
accumulated_residual, labels = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
per_layer_residual, layer_labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
per_head_residual, head_labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
per_head_residual = einops.rearrange(per_head_residual, "(layer head) ... -> layer head ...", layer=model.cfg.n_layers)

results = {
    "logit diff": logits_to_ave_logit_diff(original_logits, answer_tokens, per_prompt=True),
    "final": residual_stack_to_logit_diff(final_residual_stream[:, -1], cache),
    "logit lens": residual_stack_to_logit_diff(accumulated_residual, cache),
    "labels": labels,
    "layers": residual_stack_to_logit_diff(per_layer_residual, cache),
    "layer labels": layer_labels,
    "heads": residual_stack_to_logit_diff(per_head_residual, cache),
    "head labels": head_labels,
    "logit attrs": cache.logit_attrs(per_layer_residual, answer_tokens[:, 0], answer_tokens[:, 1], pos_slice=-1),
    "neurons": cache.stack_neuron_results(2, pos_slice=-1, neuron_slice=(0, 5)).norm(dim=-1),
    "bias": model.accumulated_bias(2, mlp_input=True).norm(),
}
