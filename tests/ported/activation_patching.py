"""The activation patching tutorial: clean streams into the corrupted run, one layer and one position at a time."""

import nnsight
from nnsight import TransformersModel

model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
clean_prompt = "When Mary and John went to the store, John gave a drink to"
corrupted_prompt = "When Mary and John went to the store, Mary gave a drink to"
correct_index = model.tokenizer.encode(" Mary")[0]  # includes a space
incorrect_index = model.tokenizer.encode(" John")[0]  # includes a space
N_LAYERS = len(model.transformer.h)

# Clean run
with model.trace(clean_prompt) as tracer:
    clean_tokens = model.tokenizer(clean_prompt)["input_ids"]

    # Get hidden states of all layers in the network.
    clean_hs = nnsight.save([model.transformer.h[layer_idx].output for layer_idx in range(N_LAYERS)])

    # Get logits from the lm_head.
    clean_logits = model.lm_head.output
    clean_logit_diff = (clean_logits[0, -1, correct_index] - clean_logits[0, -1, incorrect_index]).save()

# Corrupted run
with model.trace(corrupted_prompt) as tracer:
    corrupted_logits = model.lm_head.output
    corrupted_logit_diff = (corrupted_logits[0, -1, correct_index] - corrupted_logits[0, -1, incorrect_index]).save()

# Activation Patching Intervention
clean_tokens = model.tokenizer(clean_prompt)["input_ids"]
ioi_patching_results = []

# Iterate through all the layers
for layer_idx in range(N_LAYERS):
    _ioi_patching_results = []

    # Iterate through all tokens
    for token_idx in range(len(clean_tokens)):
        # Patching corrupted run at given layer and token
        with model.trace(corrupted_prompt) as tracer:
            # Apply the patch from the clean hidden states to the corrupted hidden states.
            model.transformer.h[layer_idx].output[:, token_idx] = clean_hs[layer_idx][:, token_idx]

            patched_logits = model.lm_head.output
            patched_logit_diff = patched_logits[0, -1, correct_index] - patched_logits[0, -1, incorrect_index]

            # Calculate the improvement in the correct token after patching.
            patched_result = (patched_logit_diff - corrupted_logit_diff) / (clean_logit_diff - corrupted_logit_diff)
            patched_result = patched_result.save()

        _ioi_patching_results.append(patched_result.item())

    ioi_patching_results.append(_ioi_patching_results)

results = {"clean": clean_logit_diff, "corrupted": corrupted_logit_diff, "patched": ioi_patching_results}
