"""ARENA's chapter 1.2: two layers of attention, heads by their patterns, logits as a sum, circuits."""

import einops
import torch
import transformer_lens.utils as utils
from transformer_lens import ActivationCache, FactoredMatrix, HookedTransformer, HookedTransformerConfig

torch.set_grad_enabled(False)
cfg = HookedTransformerConfig(
    d_model=32,
    d_head=8,
    n_heads=4,
    n_layers=2,
    n_ctx=64,
    d_vocab=60,
    attention_dir="causal",
    attn_only=True,  # defaults to False
    seed=398,
    use_attn_result=True,
    normalization_type=None,  # defaults to "LN", i.e. layernorm with weights & biases
    positional_embedding_type="shortformer",
    device="cpu",
)
model = HookedTransformer(cfg)
generator = torch.Generator().manual_seed(0)
shapes = {name: value.shape for name, value in model.state_dict().items() if not name.endswith(("mask", "IGNORE"))}
pretrained_weights = {name: torch.randn(shapes[name], generator=generator) / 4 for name in sorted(shapes)}
model.load_state_dict(pretrained_weights, strict=False)

seq_len, batch = 12, 3
rep_tokens_half = torch.randint(0, cfg.d_vocab, (batch, seq_len), generator=generator)
rep_tokens = torch.cat([torch.zeros(batch, 1, dtype=torch.long), rep_tokens_half, rep_tokens_half], dim=-1)
rep_logits, rep_cache = model.run_with_cache(rep_tokens)
_, one_cache = model.run_with_cache(rep_tokens[0], remove_batch_dim=True)


def current_attn_detector(cache: ActivationCache):
    """The heads that look at the token they stand on."""
    attn_heads = []
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            score = cache["pattern", layer][head].diagonal().mean()
            if score > 0.15:
                attn_heads.append(f"{layer}.{head}")
    return attn_heads


def logit_attribution(embed, l1_results, l2_results, W_U, tokens):
    W_U_correct_tokens = W_U[:, tokens[1:]]
    direct = einops.einsum(W_U_correct_tokens, embed[:-1], "emb seq, seq emb -> seq")
    l1 = einops.einsum(W_U_correct_tokens, l1_results[:-1], "emb seq, seq nhead emb -> seq nhead")
    l2 = einops.einsum(W_U_correct_tokens, l2_results[:-1], "emb seq, seq nhead emb -> seq nhead")
    return torch.concat([direct.unsqueeze(-1), l1, l2], dim=-1)


def head_zero_ablation_hook(z, hook, head_index_to_ablate):
    z[:, :, head_index_to_ablate, :] = 0.0


head_index, layer = 2, 1
W_O, W_V, W_E, W_U = model.W_O[layer, head_index], model.W_V[layer, head_index], model.W_E, model.W_U
full_OV_circuit = W_E @ FactoredMatrix(W_V, W_O) @ W_U
W_pos = model.W_pos
pos_by_pos_scores = W_pos @ model.W_Q[0, 3] @ model.W_K[0, 3].T @ W_pos.T / cfg.d_head**0.5
decomposed_qk_input = torch.cat(
    [one_cache["embed"].unsqueeze(0), one_cache["pos_embed"].unsqueeze(0), one_cache["result", 0].transpose(0, 1)]
)
W_QK = FactoredMatrix(model.W_Q[1, 1], model.W_K[1, 1].T)
composed = FactoredMatrix(model.W_V[0, 2], model.W_O[0, 2]) @ W_QK
ablated = model.run_with_hooks(
    rep_tokens,
    return_type="loss",
    fwd_hooks=[(utils.get_act_name("z", 1), lambda z, hook: head_zero_ablation_hook(z, hook, 1))],
)

results = {
    "current": current_attn_detector(one_cache),
    "attribution": logit_attribution(
        one_cache["embed"], one_cache["result", 0], one_cache["result", 1], model.W_U, rep_tokens[0]
    ),
    "logits": rep_logits[:, -1, :9],
    "loss": [model(rep_tokens, return_type="loss"), ablated],
    "accuracy": (full_OV_circuit.AB.argmax(dim=-1) == torch.arange(cfg.d_vocab)).float().mean(),
    "positions": pos_by_pos_scores[:5, :5],
    "queries": einops.einsum(
        decomposed_qk_input[:, 5], model.W_Q[1], "component d_model, head d_model d_head -> component head d_head"
    ).norm(dim=-1),
    "composition": composed.norm() / (W_QK.norm() * FactoredMatrix(model.W_V[0, 2], model.W_O[0, 2]).norm()),
    "sum": (one_cache["resid_pre", 0] + one_cache["attn_out", 0] + one_cache["attn_out", 1]) @ model.W_U
    + model.b_U
    - rep_logits[0],
    "names": [name for name in one_cache if name.startswith(("hook", "blocks.1"))],
    "heads": one_cache.stack_head_results(return_labels=True)[1],
    "embedded": one_cache["embed"].norm(),
}
results["sum"] = results["sum"].abs().max() < 1e-3
