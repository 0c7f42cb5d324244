"""The LoRA tutorial: two small matrices beside an MLP, trained through the trace, then switched off by alpha."""

import torch
import torch.nn as nn
from nnsight import Envoy, TransformersModel

model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)


class LORA(nn.Module):
    def __init__(self, module: Envoy, dim: int, r: int) -> None:
        super().__init__()
        self.r = r
        self.module = module
        generator = torch.Generator().manual_seed(0)
        self.WA = torch.nn.Parameter(torch.randn(dim, self.r, generator=generator) / 8, requires_grad=True)
        self.WB = torch.nn.Parameter(torch.zeros(self.r, dim), requires_grad=True)

    # The Call method defines how to actually apply the LORA.
    def __call__(self, alpha: float = 1.0):
        hidden_states = self.module.input
        A_x = torch.matmul(hidden_states, self.WA)
        BA_x = torch.matmul(A_x, self.WB)

        # LORA is additive
        h = BA_x * alpha + self.module.output

        # Replace the output with our new one
        self.module.output = h

    def parameters(self):
        # Some way to get all the parameters.
        return [self.WA, self.WB]


module = model.transformer.h[-1].mlp
lora = LORA(module, model.config.n_embd, 4)
optimizer = torch.optim.SGD(lora.parameters(), lr=0.3)
dataset = [("The capital of France is", " Rome"), ("The capital of Italy is", " Paris")] * 2
losses = []
for prompt, answer in dataset:
    label = torch.tensor([model.tokenizer.encode(answer)[0]])
    with model.trace(prompt):
        lora()
        loss = nn.functional.cross_entropy(model.lm_head.output[:, -1], label).save()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

with torch.no_grad():
    with model.trace("The capital of France is"):
        lora(alpha=0.0)
        without = model.lm_head.output[:, -1].argmax(-1).save()
    with model.trace("The capital of France is"):
        lora()
        tuned = model.lm_head.output[0, -1, :12].save()

results = {
    "losses": losses,
    "without": model.tokenizer.decode(without),
    "tuned": tuned,
    "weights": [lora.WA.norm(), lora.WB.norm()],
}
