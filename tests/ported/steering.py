"""Steering: the difference of two prompts' means, added at every step of a generation."""

import nnsight
import torch
from nnsight import TransformersModel

torch.set_grad_enabled(False)
model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
LAYER = 2
positive, negative = "The capital of Italy is Rome", "The capital of France is Paris"

with model.trace() as tracer:
    with tracer.invoke(positive):
        plus = model.transformer.h[LAYER].output.mean(dim=1).save()
    with tracer.invoke(negative):
        minus = model.transformer.h[LAYER].output.mean(dim=1).save()
steering_vector = plus - minus

with model.generate("The capital of France is", max_new_tokens=3, do_sample=False) as tracer:
    plain = tracer.result.save()

with model.generate("The capital of France is", max_new_tokens=3, do_sample=False) as tracer:
    for _step in tracer.iter[0:3]:
        model.transformer.h[LAYER].output[:] += 4 * steering_vector
    steered = tracer.result.save()

with model.generate("The capital of France is", max_new_tokens=3, do_sample=False) as tracer:
    logits = nnsight.save([])
    for _step in tracer.iter[0:3]:
        model.transformer.h[LAYER].output[:, -1] += steering_vector
        logits.append(model.lm_head.output[0, -1].save())

results = {
    "vector": steering_vector.norm(),
    "plain": plain,
    "steered": steered,
    "texts": [model.tokenizer.decode(ids[0]) for ids in (plain, steered)],
    "logits": [one[:9] for one in logits],
}
