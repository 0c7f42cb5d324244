"""Activation patching: which residual vector carries the answer?

Two prompts differ in one word. One vector after another of the clean run is put into the corrupted run; the score says
how far it moves the answer back, from 0 (not at all) to 1 (all the way). `nnzoo.analysis.patch_activations` does it in
one line, and goes on from the block that it changes; here it is written out.

python examples/activation_patching.py                         the embedded tiny GPT-2
python examples/activation_patching.py openai-community/gpt2   a checkpoint of the Hub, or a folder
"""

import sys

import torch

from nnzoo import LanguageModel

name = sys.argv[1] if len(sys.argv) > 1 else "nnzoo/tiny-gpt2"
model = LanguageModel(name)
clean = "When Mary and John went to the store, John gave a drink to"
corrupted = "When Mary and John went to the store, Mary gave a drink to"
mary, john = (model.tokenizer.encode(clean + answer)[-1] for answer in (" Mary", " John"))


def mary_over_john(logits):
    return logits[:, -1, mary] - logits[:, -1, john]


with model.trace(clean):
    streams = [block.input for block in model.blocks]  # [batch pos d_model], before each block
    highest = mary_over_john(model.output)
with model.trace(corrupted):
    lowest = mary_over_john(model.output)

tokens = model._model.to_str_tokens(clean)
positions = torch.arange(len(tokens))
scores = []
for block, stream in zip(model.blocks, streams, strict=True):
    with model.trace([corrupted] * len(tokens)):
        block.input[positions, positions] = stream[0]  # row p of the batch is patched at position p
        patched = mary_over_john(model.output)
    scores.append((patched - lowest) / (highest - lowest))

print("before block ", *(f"{layer:5}" for layer in range(len(scores))))
for pos, token in enumerate(tokens):
    print(f"{token:13}", *(f"{round(score[pos].item(), 2) + 0:5.2f}" for score in scores))
