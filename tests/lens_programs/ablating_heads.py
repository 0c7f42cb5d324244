"""ARENA's ablations: every head to zero, to its mean, by hooks with arguments of their own."""

import functools

import torch
import transformer_lens.utils as utils
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("nnzoo/tiny-llama", device="cpu")
tokens = model.to_tokens(["The capital of France is Paris.", "The capital of Italy is Rome."])


def head_zero_ablation_hook(z, hook: HookPoint, head_index_to_ablate: int):
    z[:, :, head_index_to_ablate, :] = 0.0


def head_mean_ablation_hook(z, hook: HookPoint, head_index_to_ablate: int):
    z[:, :, head_index_to_ablate, :] = z[:, :, head_index_to_ablate, :].mean(0)
    return z


def get_ablation_scores(model, tokens, ablation_function):
    ablation_scores = torch.zeros((model.cfg.n_layers, model.cfg.n_heads), device=model.cfg.device)
    model.reset_hooks()
    logits = model(tokens, return_type="logits")
    loss_no_ablation = utils.lm_cross_entropy_loss(logits, tokens)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            temp_hook_fn = functools.partial(ablation_function, head_index_to_ablate=head)
            ablated = model.run_with_hooks(tokens, fwd_hooks=[(utils.get_act_name("z", layer), temp_hook_fn)])
            ablation_scores[layer, head] = utils.lm_cross_entropy_loss(ablated, tokens) - loss_no_ablation
    return ablation_scores


model.blocks[1].attn.hook_z.add_hook(functools.partial(head_zero_ablation_hook, head_index_to_ablate=1))
hooked = model(tokens)
model.add_hook("blocks.2.hook_mlp_out", lambda value, hook: value * 0)
twice_hooked = model(tokens)
model.reset_hooks()
with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda pattern, hook: pattern.flip(1))]):
    inside = model(tokens)

results = {
    "zero": get_ablation_scores(model, tokens, head_zero_ablation_hook),
    "mean": get_ablation_scores(model, tokens, head_mean_ablation_hook),
    "hooked": hooked[:, -1, :9],
    "twice hooked": twice_hooked[:, -1, :9],
    "inside": inside[:, -1, :9],
    "after": model(tokens)[:, -1, :9],
    "accuracy": utils.lm_accuracy(model(tokens), tokens),
}
