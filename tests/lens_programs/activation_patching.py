"""The activation patching demo: sweeps over layers, positions and heads, and one with a setter of its own."""

from functools import partial

import torch
import transformer_lens.patching as patching
from transformer_lens import HookedTransformer

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu")
model.set_use_attn_result(True)
prompts = [
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
]
clean_tokens = model.to_tokens(prompts)
corrupted_tokens = clean_tokens[[1, 0]]
answer_token_indices = torch.tensor([[model.to_single_token(t) for t in (" Mary", " John")]])
answer_token_indices = torch.cat([answer_token_indices, answer_token_indices.flip(1)])


def get_logit_diff(logits, answer_token_indices=answer_token_indices):
    if len(logits.shape) == 3:
        logits = logits[:, -1, :]
    correct_logits = logits.gather(1, answer_token_indices[:, 0].unsqueeze(1))
    incorrect_logits = logits.gather(1, answer_token_indices[:, 1].unsqueeze(1))
    return (correct_logits - incorrect_logits).mean()


clean_logits, clean_cache = model.run_with_cache(clean_tokens)
corrupted_logits, corrupted_cache = model.run_with_cache(corrupted_tokens)
CLEAN_BASELINE = get_logit_diff(clean_logits).item()
CORRUPTED_BASELINE = get_logit_diff(corrupted_logits).item()


def ioi_metric(logits, answer_token_indices=answer_token_indices):
    return (get_logit_diff(logits, answer_token_indices) - CORRUPTED_BASELINE) / (CLEAN_BASELINE - CORRUPTED_BASELINE)


def half_way(corrupted_activation, index, clean_activation):
    _layer, pos = index
    corrupted_activation[:, pos] = (corrupted_activation[:, pos] + clean_activation[:, pos]) / 2
    return corrupted_activation


half_patch = partial(
    patching.generic_activation_patch,
    patch_setter=half_way,
    activation_name="resid_mid",
    index_axis_names=("layer", "pos"),
)
arguments = (model, corrupted_tokens, clean_cache, ioi_metric)
short = (model, corrupted_tokens[:, :5], model.run_with_cache(clean_tokens[:, :5])[1], ioi_metric)

results = {
    "baselines": [CLEAN_BASELINE, CORRUPTED_BASELINE],
    "resid_pre": patching.get_act_patch_resid_pre(*arguments),
    "block": patching.get_act_patch_block_every(*arguments),
    "heads": patching.get_act_patch_attn_head_all_pos_every(*arguments),
    "heads by position": patching.get_act_patch_attn_head_by_pos_every(*short),
    "patterns by position": patching.get_act_patch_attn_head_pattern_by_pos(*short),
    "half way": half_patch(*short),
}
