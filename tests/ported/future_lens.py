"""The future lens: a linear map from one state to the state a token later, fitted on traces, read two tokens ahead."""

import torch
from nnsight import TransformersModel

torch.set_grad_enabled(False)
model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
LAYER = 1
prompts = [
    f"When {a} and {b} went to the store, {b} gave a drink to {a}." for a in ("Mary", "John") for b in ("Alice", "Tom")
]
states, futures, next_tokens = [], [], []
for prompt in prompts:
    with model.trace(prompt):
        middle = model.transformer.h[LAYER].output[0].save()
        final = model.transformer.ln_f.output[0].save()
    states.append(middle[:-1])
    futures.append(final[1:])
X, Y = torch.cat(states), torch.cat(futures)
gram = X.T @ X + 10 * torch.eye(X.shape[1])
linear = torch.linalg.solve(gram, X.T @ Y)

with model.trace("When Mary and Tom went to the store, Tom gave a drink to") as tracer:
    state = model.transformer.h[LAYER].output[0, -2]
    guess = model.lm_head((state @ linear)[None, None])[0, 0].softmax(-1).save()
    actual = model.lm_head.output[0, -1].softmax(-1).save()
    tracer.stop()

results = {
    "fit": (X @ linear - Y).norm() / Y.norm(),
    "guess": guess.topk(4).values,
    "actual": actual.topk(4).values,
    "surprisal": -actual.log()[guess.argmax()],
}
