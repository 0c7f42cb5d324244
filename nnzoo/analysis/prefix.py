"""What stands before a position in a run, for others that begin there."""

import torch
from jaxtyping import Float
from torch import Tensor

from nnzoo.architectures.kv_cache import KVCache


class Prefix(KVCache):
    """The first tokens of a run, for `copies` of it that go on from there in blocks of their own.

    What a block appends comes back behind them and is not kept, so that the copies may be more in the next.

    >>> run = KVCache(n_layers=1)
    >>> k = torch.zeros(1, 5, 4, 8)  # [batch pos kv_head d_head]
    >>> _ = run.append(0, k, k)
    >>> keys, values = Prefix(run, 3, copies=2).append(0, k.repeat(2, 1, 1, 1), k.repeat(2, 1, 1, 1))
    >>> keys.shape
    torch.Size([2, 8, 4, 8])
    """

    def __init__(self, run: KVCache, length: int, copies: int) -> None:
        self.mask = None if run.mask is None else run.mask[:, :length].repeat(copies, 1)
        self.oldest = 0
        self._run, self._length, self._copies = run, length, copies

    def append(
        self, layer: int, k: Float[Tensor, "batch pos kv_head d_head"], v: Float[Tensor, "batch pos kv_head d_head"]
    ) -> tuple[Float[Tensor, "batch key_pos kv_head d_head"], Float[Tensor, "batch key_pos kv_head d_head"]]:
        """Keys and values of a pass behind those of the run, from `oldest` on."""
        before = self._run.first(layer, self._length)
        keys, values = (self._joined(old[:, self.oldest :], new) for old, new in zip(before, (k, v), strict=True))
        return keys, values

    def check_batch(self, batch: int) -> None:
        """Any number of rows may look back."""

    @property
    def length(self) -> int:
        return self._length

    def _joined(self, old: Tensor, new: Tensor) -> Tensor:
        rows = new.unflatten(0, (self._copies, -1))
        return torch.cat([old.expand(self._copies, -1, -1, -1, -1), rows], dim=2).flatten(0, 1)
