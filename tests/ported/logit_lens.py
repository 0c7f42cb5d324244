"""The logit lens tutorial: every layer's stream through the last norm and the unembedding, as words."""

import torch
from nnsight import TransformersModel

model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
prompt = "The Eiffel Tower is in the city of"
layers = model.transformer.h
probs_layers = []

with model.trace() as tracer:
    with tracer.invoke(prompt) as invoker:
        for layer in layers:
            # Process layer output through the model's head and layer normalization
            layer_output = model.lm_head(model.transformer.ln_f(layer.output))

            # Apply softmax to obtain probabilities and save the result
            probs = torch.nn.functional.softmax(layer_output, dim=-1).save()
            probs_layers.append(probs)

probs = torch.cat(list(probs_layers))

# Find the maximum probability and corresponding tokens for each position
max_probs, tokens = probs.max(dim=-1)

# Decode token IDs to words for each layer
words = [[model.tokenizer.decode(t.cpu()) for t in layer_tokens] for layer_tokens in tokens]
input_words = [model.tokenizer.decode(t) for t in model.tokenizer(prompt)["input_ids"]]

results = {"probabilities": max_probs, "words": words, "input": input_words}
