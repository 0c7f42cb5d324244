"""Attribution patching: activations and gradients kept by hooks, as in ARENA and Neel Nanda's demo."""

from transformer_lens import ActivationCache, HookedTransformer

model = HookedTransformer.from_pretrained("nnzoo/tiny-llama", device="cpu")
clean_tokens = model.to_tokens("When Mary and John went to the store, John gave a drink to")
corrupted_tokens = model.to_tokens("When Mary and John went to the store, Mary gave a drink to")
right, wrong = model.to_single_token(" Mary"), model.to_single_token(" John")
off = ("_input", "attn_in", "mlp_in", "hook_result")  # hook points that TransformerLens switches on by flags
filter_not_qkv_input = lambda name: not name.endswith(off)  # noqa: E731


def metric(logits):
    return logits[0, -1, right] - logits[0, -1, wrong]


def get_cache_fwd_and_bwd(model, tokens, metric):
    model.reset_hooks()
    cache = {}

    def forward_cache_hook(act, hook):
        cache[hook.name] = act.detach()

    model.add_hook(filter_not_qkv_input, forward_cache_hook, "fwd")
    grad_cache = {}

    def backward_cache_hook(act, hook):
        grad_cache[hook.name] = act.detach()

    model.add_hook(filter_not_qkv_input, backward_cache_hook, "bwd")
    value = metric(model(tokens))
    value.backward()
    model.reset_hooks()
    return value.item(), ActivationCache(cache, model), ActivationCache(grad_cache, model)


clean_value, clean_cache, _ = get_cache_fwd_and_bwd(model, clean_tokens, metric)
corrupted_value, corrupted_cache, corrupted_grad_cache = get_cache_fwd_and_bwd(model, corrupted_tokens, metric)


def attr_patch(name):
    change = corrupted_grad_cache.stack_activation(name) * (
        clean_cache.stack_activation(name) - corrupted_cache.stack_activation(name)
    )
    return change.sum(dim=-1).squeeze(1)


loss, grads = model.run_with_cache(clean_tokens, return_type="loss", incl_bwd=True)

results = {
    "values": [clean_value, corrupted_value],
    "resid_pre": attr_patch("resid_pre"),
    "mlp_out": attr_patch("mlp_out"),
    "z": attr_patch("z").sum(1),
    "loss": loss,
    "gradients": [grads[f"blocks.{i}.hook_resid_post_grad"].norm() for i in range(model.cfg.n_layers)],
}
