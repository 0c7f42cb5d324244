"""Steering by a difference of activations, added while the model generates."""

import torch
from transformer_lens import HookedTransformer

model = HookedTransformer.from_pretrained_no_processing("nnzoo/tiny-gpt2", device="cpu", default_prepend_bos=False)
act_name, coeff = 2, 4.0


def get_resid_pre(prompt: str, layer: int):
    name = f"blocks.{layer}.hook_resid_pre"
    with torch.no_grad(), model.hooks(fwd_hooks=[]):
        cache, caching_hooks, _ = model.get_caching_hooks(lambda n: n == name)
        with model.hooks(fwd_hooks=caching_hooks):
            _ = model(prompt)
    return cache[name]


act_diff = get_resid_pre(" Paris", act_name) - get_resid_pre(" Rome", act_name)


def ave_hook(resid_pre, hook):
    if resid_pre.shape[1] == 1:
        return  # caching in model.generate for new tokens
    ppos, apos = resid_pre.shape[1], act_diff.shape[1]
    assert apos <= ppos, f"More mod tokens ({apos}) then prompt tokens ({ppos})!"
    resid_pre[:, ppos - apos :, :] += coeff * act_diff


def hooked_generate(prompts, fwd_hooks, **kwargs):
    with model.hooks(fwd_hooks=fwd_hooks):
        return model.generate(model.to_tokens(prompts), max_new_tokens=6, do_sample=False, verbose=False, **kwargs)


prompt = ["The capital of Italy is"]
editing_hooks = [(f"blocks.{act_name}.hook_resid_pre", ave_hook)]
results = {
    "difference": act_diff.norm(),
    "plain": model.to_string(hooked_generate(prompt, [])),
    "steered": model.to_string(hooked_generate(prompt, editing_hooks)),
    "without a cache": model.to_string(hooked_generate(prompt, editing_hooks, use_past_kv_cache=False)),
}
