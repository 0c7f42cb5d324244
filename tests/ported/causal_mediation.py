"""Causal mediation analysis: which state carries the capital of a country; some neurons of it."""

import nnsight
import torch
from nnsight import TransformersModel

model = TransformersModel("nnzoo/tiny-llama", task="text-generation", dispatch=True)
base_prompt, source_prompt = "The capital of France is", "The capital of Italy is"

# 1. collect source activations
with torch.no_grad():
    with model.trace(source_prompt):
        source_hidden_states = nnsight.save([layer.output for layer in model.model.layers])

source_city = model.tokenizer(" Rome", add_special_tokens=False)["input_ids"][0]
base_city = model.tokenizer(" Paris", add_special_tokens=False)["input_ids"][0]
num_tokens = len(model.tokenizer(base_prompt).input_ids)

# 2 and 3. intervene and collect intervention results
causal_effects = []
for layer_idx in range(model.config.num_hidden_layers):
    causal_effect_per_layer = []
    for token_idx in range(num_tokens):
        with torch.no_grad():
            with model.trace(base_prompt) as tracer:
                model.model.layers[layer_idx].output[:, token_idx, :] = source_hidden_states[layer_idx][:, token_idx, :]
                intervened_probs = model.output.logits[:, -1, :].softmax(dim=-1)
                effect = (intervened_probs[0, source_city] - intervened_probs[0, base_city]).save()
        causal_effect_per_layer.append(effect.item())
    causal_effects.append(causal_effect_per_layer)

# sets of neurons instead of whole states
NEURON_INDICES = [0, 1, 2, 4]
with torch.no_grad():
    with model.trace(base_prompt) as tracer:
        model.model.layers[1].output[:, -2, NEURON_INDICES] = source_hidden_states[1][:, -2, NEURON_INDICES]
        patched_probs = torch.softmax(model.output.logits[:, -1, :], dim=-1).save()
top_completions = torch.topk(patched_probs, 3, sorted=True)

results = {
    "effects": causal_effects,
    "completions": [model.tokenizer.decode(i.item()) for i in top_completions.indices[0]],
    "values": top_completions.values,
}
