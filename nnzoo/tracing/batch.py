"""Several prompts as one batch: padded on the left, and each prompt's own rows and tokens found again."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from nnzoo.tracing.graph import Invoke
from nnzoo.tracing.wholes import own_part


class Batch:
    """The prompts of a pass, one below the other."""

    def __init__(self, invokes: list[Invoke]) -> None:
        self.invokes = invokes
        if len(invokes) == 1:
            (one,) = invokes
            self.tokens, self.attention_mask = one.tokens, one.attention_mask
            n_rows, self.n_pos = one.tokens.shape
            self.rows = [(slice(0, n_rows), one)]
            return
        self.n_pos = max(invoke.n_pos for invoke in invokes)
        ends = accumulate(invoke.rows for invoke in invokes)
        self.rows = [(slice(end - i.rows, end), i) for end, i in zip(ends, invokes, strict=True)]
        self.tokens = torch.cat([self._padded(i.tokens, i) for i in invokes])
        masked = any(i.attention_mask is not None or i.n_pos < self.n_pos for i in invokes)
        self.attention_mask = torch.cat([self._padded(_mask(i), i) for i in invokes]) if masked else None

    def own(self, value: Tensor, axes: Sequence[str], rows: slice, shape: Sequence[int]) -> Tensor:
        """A prompt's part of a value at a hook point: a view, of the shape it has when the prompt runs alone."""
        if tuple(shape) == tuple(value.shape):
            return value
        return value[own_part(axes, rows, shape)]

    def _padded(self, ids: Tensor, invoke: Invoke) -> Tensor:
        return torch.nn.functional.pad(ids, (self.n_pos - invoke.n_pos, 0)) if invoke.n_pos < self.n_pos else ids


def _mask(invoke: Invoke) -> Tensor:
    if invoke.attention_mask is None:
        return torch.ones_like(invoke.tokens, dtype=torch.bool)
    return invoke.attention_mask.bool()
