"""Names for the shapes of hook points, for annotations of your own functions.

Each is a jaxtyping annotation with the axes that the hook points declare, so that a function says what it takes in the
words of the model, and a run-time checker (`pip install beartype`) finds a swapped axis at the call:

>>> import torch
>>> from beartype import beartype
>>> from jaxtyping import jaxtyped
>>> from nnzoo.typing import Heads, Pattern
>>> @jaxtyped(typechecker=beartype)
... def gather(pattern: Pattern, v: Heads) -> Heads:
...     return torch.einsum("bhqk,bkhd->bqhd", pattern, v)
>>> gather(torch.ones(1, 2, 3, 3), torch.ones(1, 3, 2, 4)).shape
torch.Size([1, 3, 2, 4])
>>> gather(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 4))
Traceback (most recent call last):
jaxtyping.TypeCheckError: ...
The current values for each jaxtyping axis annotation are as follows.
batch=1
head=2
...

An axis of the same name has the same size in all arguments and the result of one call. `head` and `kv_head` are of the
same number unless a model has grouped queries (LLaMA 3, Mistral). Inside a trace the checks hold as well, before the
model runs.
"""

from jaxtyping import Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]  # hook_tokens; and hook_positions: where each token stands
Resid = Float[Tensor, "batch pos d_model"]  # the residual stream, and whatever is read from it or added to it
Scale = Float[Tensor, "batch pos 1"]  # ln1.hook_scale: what a norm divides by
QKV = Float[Tensor, "batch pos 3*d_model"]  # attn.hook_qkv of GPT-2; after an argument that has d_model itself
Heads = Float[Tensor, "batch pos head d_head"]  # attn.hook_q, attn.hook_z
KVHeads = Float[Tensor, "batch pos kv_head d_head"]  # attn.hook_k, attn.hook_v
Keys = Float[Tensor, "batch key_pos kv_head d_head"]  # attn.hook_rot_k: rotated, with those from the KV cache
HeadResid = Float[Tensor, "batch pos head d_model"]  # attn.hook_result, hook_attn_in, hook_q_input
KVHeadResid = Float[Tensor, "batch pos kv_head d_model"]  # hook_k_input, hook_v_input
Scores = Float[Tensor, "batch head query key"]  # attn.hook_attn_scores
Pattern = Float[Tensor, "batch head query key"]  # attn.hook_pattern
Rotation = Float[Tensor, "batch pos d_head"]  # rotary.hook_cos, rotary.hook_sin
Neurons = Float[Tensor, "batch pos d_mlp"]  # mlp.hook_pre, mlp.hook_post
Logits = Float[Tensor, "batch pos d_vocab"]  # unembed.hook_out

__all__ = [
    "QKV",
    "HeadResid",
    "Heads",
    "KVHeadResid",
    "KVHeads",
    "Keys",
    "Logits",
    "Neurons",
    "Pattern",
    "Resid",
    "Rotation",
    "Scale",
    "Scores",
    "Tokens",
]
