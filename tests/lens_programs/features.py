"""SAELens's ways with a model: stop at a layer, encode, splice in with or without the error, ablate, steer."""

from functools import partial

import torch
from torch import nn
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookedRootModule, HookPoint

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained_no_processing("nnzoo/tiny-gpt2", device="cpu", center_writing_weights=True)


class SAE(HookedRootModule):
    def __init__(self, d_in, d_sae):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W_enc = nn.Parameter(torch.randn(d_in, d_sae, generator=generator) / d_in**0.5)
        self.W_dec = nn.Parameter(self.W_enc.T.clone())
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.hook_sae_input, self.hook_sae_acts_post = HookPoint(), HookPoint()
        self.hook_sae_recons = HookPoint()
        self.setup()

    def encode(self, x):
        return self.hook_sae_acts_post(torch.relu((self.hook_sae_input(x) - self.b_dec) @ self.W_enc))

    def decode(self, acts):
        return self.hook_sae_recons(acts @ self.W_dec + self.b_dec)

    def forward(self, x):
        return self.decode(self.encode(x))


hook_layer, hook_name = 2, "blocks.2.hook_resid_pre"
sae = SAE(model.cfg.d_model, 40)
tokens = model.to_tokens(["The capital of France is Paris.", "Mary gave a drink to John."])
stream = model(tokens, stop_at_layer=hook_layer, return_type=None)
_, cache = model.run_with_cache(tokens, stop_at_layer=hook_layer + 1, names_filter=[hook_name])
feature_acts = sae.encode(cache[hook_name])
_, sae_cache = sae.run_with_cache(cache[hook_name])
error = cache[hook_name] - sae.decode(feature_acts)


def reconstr_hook(activation, hook, sae_out):
    return sae_out


def feature_ablation_hook(activation, hook, feature_id):
    acts = sae.encode(activation)
    return activation - acts[..., feature_id, None] * sae.W_dec[feature_id]


def steering(activations, hook, steering_strength, steering_vector, max_act):
    return activations + max_act * steering_strength * steering_vector


def loss_of(hook):
    return model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(hook_name, hook)])


best = int(feature_acts.sum(dim=(0, 1)).argmax())
steer = partial(steering, steering_strength=0.5, steering_vector=sae.W_dec[best], max_act=feature_acts[..., best].max())
with model.hooks(fwd_hooks=[(hook_name, steer)]):
    steered = model.generate(
        "The capital of France is", max_new_tokens=4, temperature=0, stop_at_eos=False, verbose=False
    )

results = {
    "same stream": (stream - cache[hook_name]).abs().max() < 1e-5,
    "features": sae_cache["hook_sae_acts_post"].sum(dim=(0, 1)),
    "loss": [
        model(tokens, return_type="loss"),
        loss_of(partial(reconstr_hook, sae_out=sae(cache[hook_name]))),
        loss_of(partial(reconstr_hook, sae_out=sae(cache[hook_name]) + error)),
        loss_of(partial(feature_ablation_hook, feature_id=best)),
        loss_of(lambda value, hook: torch.zeros_like(value)),
    ],
    "steered": steered,
    "lens": (sae.W_dec[best] @ model.W_U).topk(5).indices,
}
