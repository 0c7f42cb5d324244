"""How far greedy decoding goes the way of transformers: what `nnzoo verify` measures beside single values."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.generation import generate


@dataclass(frozen=True)
class Continuation:
    """How far greedy decoding goes the same way."""

    n_tokens: int
    n_same: int
    gap: float = 0.0  # at the first other token: how far apart the two candidates are, relative to the largest logit


def compare_generation(model: HookedModel, tokens: Int[Tensor, "1 pos"], theirs: Int[Tensor, "1 new"]) -> Continuation:
    """Our greedy ids next to those of transformers."""
    n_pos, n_new = tokens.shape[1], theirs.shape[1]
    ours = generate(model, tokens, max_new_tokens=n_new)[:, n_pos:]
    differing = (ours != theirs)[0].nonzero()
    if not len(differing):
        return Continuation(n_new, n_new)
    first = int(differing[0])
    logits = model(torch.cat([tokens, ours[:, :first]], dim=1))[0, -1]
    gap = (logits[ours[0, first]] - logits[theirs[0, first]]).abs() / logits.abs().max()
    return Continuation(n_new, first, gap.item())
