"""circuit-tracer's ways: patterns and norms frozen by permanent hooks, transcoders for MLPs, gradients as edges."""

import torch
from torch import nn
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint


class Transcoder(nn.Module):
    def __init__(self, d_model, d_transcoder, layer):
        super().__init__()
        generator = torch.Generator().manual_seed(layer)
        self.W_enc = nn.Parameter(torch.randn(d_transcoder, d_model, generator=generator) / d_model**0.5)
        self.W_dec = nn.Parameter(torch.randn(d_transcoder, d_model, generator=generator) / d_model**0.5)

    def encode(self, x):
        return torch.relu(x @ self.W_enc.T)

    def decode(self, acts):
        return acts @ self.W_dec


class ReplacementModel(HookedTransformer):
    """A model whose MLPs are their transcoders, with what these miss as a constant."""

    def configure(self, transcoders):
        self.transcoders = transcoders
        self.set_use_hook_mlp_in(True)
        for param in self.parameters():
            param.requires_grad = False

        def stop_gradient(acts, hook):
            return acts.detach()

        def enable_gradient(acts, hook):
            acts.requires_grad = True
            return acts

        for block in self.blocks:
            block.attn.hook_pattern.add_hook(stop_gradient, is_permanent=True)
            block.ln1.hook_scale.add_hook(stop_gradient, is_permanent=True)
            block.ln2.hook_scale.add_hook(stop_gradient, is_permanent=True)
        self.ln_final.hook_scale.add_hook(stop_gradient, is_permanent=True)
        self.hook_embed.add_hook(enable_gradient, is_permanent=True)
        return self

    def get_activations(self, tokens):
        """Feature activations [layer pos feature], and what each MLP wrote beside them."""
        with torch.no_grad():
            logits, cache = self.run_with_cache(tokens)
        features, errors = [], []
        for layer, transcoder in enumerate(self.transcoders):
            acts = transcoder.encode(cache["normalized", layer, "ln2"][0])
            features.append(acts)
            errors.append(cache["mlp_out", layer][0] - transcoder.decode(acts))
        return logits, torch.stack(features), torch.stack(errors)

    def run_frozen(self, tokens, features, errors):
        """Logits of the run in which features are leaves, each MLP's output their sum."""
        leaves = [acts.detach().clone().requires_grad_() for acts in features]

        def splice(value, hook: HookPoint):
            layer = hook.layer()
            return (self.transcoders[layer].decode(leaves[layer]) + errors[layer])[None]

        hooks = [(f"blocks.{layer}.hook_mlp_out", splice) for layer in range(self.cfg.n_layers)]
        return self.run_with_hooks(tokens, fwd_hooks=hooks), leaves


model = ReplacementModel.from_pretrained(
    "nnzoo/tiny-gpt2", fold_ln=True, center_writing_weights=False, center_unembed=False, device="cpu"
)
model.configure([Transcoder(model.cfg.d_model, 20, layer) for layer in range(model.cfg.n_layers)])
tokens = model.to_tokens("The capital of France is")
logits, features, errors = model.get_activations(tokens)
frozen, leaves = model.run_frozen(tokens, features, errors)
target = frozen[0, -1, model.to_single_token(" Paris")] - frozen[0, -1, model.to_single_token(" Rome")]
target.backward()
edges = torch.stack([leaf.grad * leaf.detach() for leaf in leaves])
ablated = features.clone()
ablated[1] = 0
model.reset_hooks()
with torch.no_grad():
    without, _ = model.run_frozen(tokens, ablated, errors)
frozen_hooks = len(model.ln_final.hook_scale.fwd_hooks)
model.reset_hooks(including_permanent=True)

results = {
    "same": (frozen - logits).abs().max() < 1e-3,
    "features": features.sum(dim=1),
    "edges": edges.sum(dim=-1),
    "ablated": without[0, -1, :9],
    "still frozen": frozen_hooks,
    "free": len(model.ln_final.hook_scale.fwd_hooks),
    "class": type(model).__name__,
    "attributes": [type(getattr(model, name)).__name__ != "" for name in ("hook_embed", "hook_pos_embed")],
}
