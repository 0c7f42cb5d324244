"""Model diffing: a model and a changed copy of it on the same prompts; where they part, and a layer swapped between."""

import torch
from nnsight import TransformersModel

torch.set_grad_enabled(False)
base = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
tuned = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
tuned.transformer.h[1].mlp.c_proj.weight.mul_(1.5)
prompts = ["The capital of France is", "When Mary and John went to the store, John gave a drink to"]


def states(model, prompt):
    hidden = []
    with model.trace(prompt):
        for block in model.transformer.h:
            hidden.append(block.output.save())
        logits = model.lm_head.output.save()
    return hidden, logits


differences, divergences = [], []
for prompt in prompts:
    (a, logits_a), (b, logits_b) = states(base, prompt), states(tuned, prompt)
    differences.append([(x - y).norm(dim=-1).mean() for x, y in zip(a, b, strict=True)])
    p, q = logits_a[0, -1].log_softmax(-1), logits_b[0, -1].log_softmax(-1)
    divergences.append((p.exp() * (p - q)).sum())

# the tuned model's state in the base model
with tuned.trace(prompts[0]):
    swapped = tuned.transformer.h[1].output.save()
with base.trace(prompts[0]):
    base.transformer.h[1].output = swapped
    hybrid = base.lm_head.output[0, -1, :9].save()
with base.session() as session:
    with base.trace(prompts[0]):
        first = base.transformer.h[0].output.save()
    with base.trace(prompts[0]):
        base.transformer.h[1].output = first
        skipped = base.lm_head.output[0, -1, :9].save()

results = {"differences": differences, "divergences": divergences, "hybrid": hybrid, "skipped": skipped}
