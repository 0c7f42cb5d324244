"""Models of every family, small, with all sizes different, so that no two axes can be taken for each other."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.gpt2 import GPT2, GPT2Config
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.llama import Llama, LlamaConfig
from nnzoo.architectures.mistral import Mistral, MistralConfig
from nnzoo.architectures.rotary import Rope

BATCH, POS = 3, 7
SHARED: dict[str, Any] = {"d_vocab": 31, "n_ctx": 16, "n_layers": 2, "n_heads": 4, "d_mlp": 28, "eps": 1e-5}
LLAMA = {**SHARED, "d_model": 20, "n_kv_heads": 2, "d_head": 6, "activation": "silu", "rope": Rope(theta=10000.0)}
CONFIGS = {
    "gpt2": GPT2Config(
        **SHARED, d_model=24, activation="gelu_new", scale_scores=True, scale_by_layer=False, tied=False
    ),
    "llama": LlamaConfig(**LLAMA, attn_bias=False, mlp_bias=False, tied=False),
    "mistral": MistralConfig(**LLAMA, attn_bias=False, mlp_bias=False, tied=False, window=3),
}
FAMILIES = list(CONFIGS)
CLASSES = {"gpt2": GPT2, "llama": Llama, "mistral": Mistral}


def small(family: str, dtype: torch.dtype = torch.float64, **changes: Any) -> HookedModel:
    """A model whose every weight is drawn from uniform(-1, 1), so that no part can be left out unseen.

    Queries and keys are smaller: attention to a single token would hide what happens to the others, and to gradients.

    >>> small("llama", tied=True).unembed.weight.shape
    torch.Size([31, 20])
    """
    model = CLASSES[family](replace(CONFIGS[family], **changes))
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)
    with torch.no_grad():
        for block in model.blocks:
            for view in (block.attn.W_Q, block.attn.W_K):
                view.mul_(0.6)
    return model.to(dtype)


def prompts(batch: int = BATCH, pos: int = POS) -> Tensor:
    """Random ids [batch pos].

    >>> prompts().shape
    torch.Size([3, 7])
    """
    return torch.randint(0, SHARED["d_vocab"], (batch, pos))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value; equal infinities differ by nothing.

    >>> difference(torch.tensor([1.0, 4.0, -torch.inf]), torch.tensor([2.0, 4.0, -torch.inf]))
    0.25
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{list(ours.shape)} and {list(theirs.shape)} cannot be compared")
    same = ours == theirs
    if same.all():
        return 0.0
    largest = theirs[theirs.isfinite()].double().abs().max()
    return ((ours[~same].double() - theirs[~same].double()).abs().max() / largest).item()
