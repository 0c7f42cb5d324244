"""Activation patching: which residual vector carries the answer?

Two prompts differ in one word. One vector after another of the clean run is put into the corrupted run; the score says
how far it moves the answer back, from 0 (not at all) to 1 (all the way).
"""

import torch

from nnzoo import LanguageModel

model = LanguageModel("nnzoo/tiny-gpt2")
clean = "When Mary and John went to the store, John gave a drink to"
corrupted = "When Mary and John went to the store, Mary gave a drink to"
mary, john = (model._model.to_single_token(name) for name in (" Mary", " John"))


def mary_over_john(logits):
    return logits[:, -1, mary] - logits[:, -1, john]


with model.trace(clean):
    streams = [block.input for block in model.transformer.h]  # [batch pos d_model], before each block
    highest = mary_over_john(model.output)
with model.trace(corrupted):
    lowest = mary_over_john(model.output)

tokens = model._model.to_str_tokens(clean)
positions = torch.arange(len(tokens))
scores = []
for block, stream in zip(model.transformer.h, streams, strict=True):
    with model.trace([corrupted] * len(tokens)):
        block.input[positions, positions] = stream[0]  # row p of the batch is patched at position p
        patched = mary_over_john(model.output)
    scores.append((patched - lowest) / (highest - lowest))

print("before block ", *(f"{layer:5}" for layer in range(len(scores))))
for pos, token in enumerate(tokens):
    print(f"{token:13}", *(f"{score[pos]:5.2f}" for score in scores))
