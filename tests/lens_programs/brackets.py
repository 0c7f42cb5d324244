"""ARENA's bracket classifier: attention in both directions, padding masked by permanent hooks, two classes."""

import torch
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig, utils

torch.set_grad_enabled(False)
PAD = 1
cfg = HookedTransformerConfig(
    n_ctx=14,
    d_model=24,
    d_head=12,
    n_heads=2,
    d_mlp=24,
    n_layers=3,
    attention_dir="bidirectional",  # defaults to "causal"
    act_fn="relu",
    d_vocab=5,
    d_vocab_out=2,
    use_attn_result=True,
    device="cpu",
    use_hook_tokens=True,
)
model = HookedTransformer(cfg).eval()
generator = torch.Generator().manual_seed(0)
state_dict = {
    name: torch.randn(value.shape, generator=generator) / 2
    for name, value in sorted(model.state_dict().items())
    if not name.endswith(("mask", "IGNORE"))
}
model.load_state_dict(state_dict, strict=False)


def add_perma_hooks_to_mask_pad_tokens(model: HookedTransformer, pad_token: int) -> HookedTransformer:
    def cache_padding_tokens_mask(tokens, hook):
        hook.ctx["padding_tokens_mask"] = (tokens == pad_token)[:, None, None]

    def apply_padding_tokens_mask(attn_scores, hook):
        attn_scores.masked_fill_(model.hook_dict["hook_tokens"].ctx["padding_tokens_mask"], -1e5)
        if hook.layer() == model.cfg.n_layers - 1:
            del model.hook_dict["hook_tokens"].ctx["padding_tokens_mask"]

    for name, hook in model.hook_dict.items():
        if name == "hook_tokens":
            hook.add_perma_hook(cache_padding_tokens_mask)
        elif name.endswith("attn_scores"):
            hook.add_perma_hook(apply_padding_tokens_mask)
    return model


model.reset_hooks(including_permanent=True)
model = add_perma_hooks_to_mask_pad_tokens(model, PAD)
toks = torch.randint(2, 5, (6, 14), generator=generator)
toks[:, 0] = 0
toks[2:, 9:] = PAD


def get_activations(model, toks, names):
    names_list = [names] if isinstance(names, str) else names
    _, cache = model.run_with_cache(toks, return_type=None, names_filter=lambda name: name in names_list)
    return cache[names] if isinstance(names, str) else cache


def get_pre_final_ln_dir(model: HookedTransformer):
    return (model.W_U[:, 0] - model.W_U[:, 1]) @ torch.diag(model.ln_final.w)


def get_out_by_components(model, data):
    names = [utils.get_act_name("result", layer) for layer in range(model.cfg.n_layers)]
    names += [utils.get_act_name("mlp_out", layer) for layer in range(model.cfg.n_layers)] + ["hook_embed"]
    activations: ActivationCache = get_activations(model, data, [*names, "hook_pos_embed"])
    parts = [activations["hook_embed"] + activations["hook_pos_embed"]]
    for layer in range(model.cfg.n_layers):
        parts += [*activations["result", layer].unbind(dim=2), activations["mlp_out", layer]]
    return torch.stack(parts)


logits = model(toks)[:, 0]
out_by_components = get_out_by_components(model, toks)
biases = model.b_O.sum(0)

results = {
    "probabilities": logits.softmax(-1),
    "direction": get_pre_final_ln_dir(model),
    "components": (out_by_components[:, :, 0] @ get_pre_final_ln_dir(model)),
    "sum": (out_by_components.sum(dim=0) + biases - get_activations(model, toks, "blocks.2.hook_resid_post")).norm()
    < 1e-3,
    "pattern": get_activations(model, toks, utils.get_act_name("pattern", 0))[3, :, 0],
    "left": [len(hook.fwd_hooks) for name, hook in model.hook_dict.items() if name.endswith("attn_scores")],
}
