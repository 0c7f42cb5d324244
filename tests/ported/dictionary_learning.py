"""The dictionary learning tutorial: features of an MLP's output, their reconstruction in its place, one ablated."""

import torch
import torch.nn as nn
from nnsight import TransformersModel

torch.set_grad_enabled(False)
model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)


class AutoEncoder(nn.Module):
    def __init__(self, activation_dim, dict_size):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.bias = nn.Parameter(torch.zeros(activation_dim))
        self.encoder = nn.Linear(activation_dim, dict_size, bias=True)
        self.decoder = nn.Linear(dict_size, activation_dim, bias=False)
        self.encoder.weight.copy_(torch.randn(dict_size, activation_dim, generator=generator) / activation_dim**0.5)
        self.encoder.bias.zero_()
        self.decoder.weight.copy_(self.encoder.weight.T)

    def encode(self, x):
        return nn.ReLU()(self.encoder(x - self.bias))

    def decode(self, f):
        return self.decoder(f) + self.bias


dictionary = AutoEncoder(96, 64)
prompt = "When Mary and John went to the store, John gave a drink to"
mlp = model.transformer.h[0].mlp

with model.trace(prompt):
    features = dictionary.encode(mlp.output).save()  # [1, pos, feature]
total = features.sum(dim=1).squeeze()
top_feature = int(total.argmax())


def final_logits(feature=None, with_error=False):
    with model.trace(prompt):
        x = mlp.output
        f = dictionary.encode(x)
        reconstructed = dictionary.decode(f)
        error = x - reconstructed
        if feature is not None:
            f[:, :, feature] = 0
        mlp.output = dictionary.decode(f) + (error if with_error else 0)
        logits = model.lm_head.output[0, -1, :15].save()
    return logits


# attribution of every feature by its gradient
with torch.enable_grad():
    with model.trace(prompt):
        x = mlp.output
        f = dictionary.encode(x)
        mlp.output = dictionary.decode(f)
        metric = model.lm_head.output[0, -1, 5]
        with metric.backward():
            grad = f.grad.save()

results = {
    "features": total,
    "reconstructed": final_logits(),
    "with error": final_logits(with_error=True),
    "ablated": final_logits(top_feature, with_error=True),
    "attribution": (grad * features).sum(dim=(0, 1)),
}
