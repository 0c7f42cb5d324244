"""Running from and to a layer, parts by themselves, caches of few positions, KV caches, and the residual stream."""

import torch
from transformer_lens import HookedTransformer, utils

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu")
llama = HookedTransformer.from_pretrained("nnzoo/tiny-llama", device="cpu")
tokens = model.to_tokens("The capital of France is Paris.")
stream = model(tokens, stop_at_layer=2)
logits = model(stream, start_at_layer=2)
_, cache = model.run_with_cache(tokens, pos_slice=-1)
_, some = model.run_with_cache(tokens, names_filter=["hook_embed", "blocks.1.hook_mlp_out"], pos_slice=(1, 4))
_, whole = model.run_with_cache(tokens)
model.set_use_split_qkv_input(True)
split = model.run_with_hooks(
    tokens, fwd_hooks=[("blocks.1.hook_q_input", lambda x, hook: x * torch.tensor([1.0, 0.5, 2.0, 1.0])[:, None])]
)

results = {
    "stream": stream.norm(dim=-1),
    "logits": logits[:, -1, :10],
    "minus one": model(tokens, stop_at_layer=-1).norm(),
    "loss": model(stream, start_at_layer=2, tokens=tokens, return_type="loss"),
    "unembedded": model.unembed(model.ln_final(whole["resid_post", -1]))[:, -1, :10],
    "mlp": model.blocks[1].mlp(whole["normalized", 1, "ln2"]).norm(),
    "block": model.blocks[2](whole["resid_pre", 2]).norm(),
    "embedded": (model.embed(tokens) + model.pos_embed(tokens)).norm(),
    "attention": llama.blocks[1].attn.W_K.norm(),
    "last": {name: cache[name].norm() for name in ("blocks.0.attn.hook_q", "hook_embed", "blocks.2.attn.hook_pattern")},
    "some": {name: list(value.shape) for name, value in some.items()},
    "split": split[:, -1, :10],
    "llama": llama("The capital of France is")[:, -1, :10],
    "gates": llama.W_gate.norm(),
    "shapes": [list(getattr(llama, name).shape) for name in ("W_Q", "W_K", "W_V", "W_O", "b_K", "W_in", "W_U")],
    "E and pos": list(model.W_E_pos.shape),
    "mask": utils.get_attention_mask(model.tokenizer, torch.tensor([[5, 6, 0], [0, 0, 7]]), True),
    "config": [
        [getattr(one.cfg, name) for name in ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_mlp", "d_vocab",
         "act_fn", "normalization_type", "positional_embedding_type", "n_key_value_heads", "gated_mlp", "eps")]
        for one in (model, llama)
    ],
}  # fmt: skip
