"""Probing and erasing a concept: activations from a cache, a difference of means, projected out of every layer."""

import torch
from nnsight import TransformersModel

torch.set_grad_enabled(False)
model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
blocks = model.transformer.h
texts = ["The capital of France is", "The capital of Italy is", "The language of France is", "The language of Italy is"]
labels = torch.tensor([0, 0, 1, 1])
ids = model.tokenizer(texts, return_tensors="pt")["input_ids"]


def collect(erasers=None):
    with model.trace(ids) as tracer:
        cache = tracer.cache(modules=list(blocks), device=torch.device("cpu"))
        for layer, block in enumerate(blocks):
            if erasers is not None:
                x = block.output
                block.output = x - (x @ erasers[layer])[..., None] * erasers[layer]
        logits = model.lm_head.output[:, -1].save()
    return [cache[f"model.transformer.h.{layer}"].output for layer in range(len(blocks))], logits


activations, logits = collect()
directions = []
for acts in activations:
    last = acts[:, -1]
    direction = last[labels == 1].mean(0) - last[labels == 0].mean(0)
    directions.append(direction / direction.norm())
erased, erased_logits = collect(directions)
separations = [
    (acts[:, -1] @ d)[labels == 1].mean() - (acts[:, -1] @ d)[labels == 0].mean()
    for acts, d in zip(activations, directions, strict=True)
]
after = [(acts[:, -1] @ d).abs().max() < 1e-4 for acts, d in zip(erased, directions, strict=True)]

results = {
    "separations": separations,
    "after": after,
    "moved": (erased_logits - logits).norm(dim=-1),
    "words": [model.tokenizer.decode(t) for t in logits.argmax(-1)],
}
