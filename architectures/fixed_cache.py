"""A KV cache for a step that is recorded once and replayed: nothing in it but tensors says which step it is.

A CUDA graph repeats kernels with the addresses and the numbers that they had. So the usual cache, which cuts out the
keys there are by a length that Python counts, will not do inside one. Here the step gets whole buffers, those of the
usual cache, and three tensors that it moves on itself: where its token goes, where that stands in its text, and where
the tokens stand that fill the buffers, by which it knows what to look at.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnzoo.architectures.kv_cache import KVCache, StepCache

NOWHERE = -(2**62)  # where padding stands, and what is not filled yet: too far back for any query


class FixedCache(StepCache):
    """The buffers of a KV cache, as they are seen by a step of one token a prompt that never changes.

    Before a step `sync` it with the cache. It is of use as long as it `fits`: the cache may grow, and move its buffers.

    >>> cache = KVCache(n_layers=1)
    >>> k = torch.zeros(1, 5, 4, 8)  # [batch pos kv_head d_head]
    >>> _ = cache.append(0, k, k)
    >>> fixed = FixedCache(cache)
    >>> positions, mask = fixed.advance()
    >>> keys, values = fixed.append(0, k[:, :1] + 1, k[:, :1])
    >>> positions.item(), keys.shape, mask.sum().item(), keys[mask[:, 0, 0]].sum(dim=(1, 2)).tolist()
    (5, torch.Size([1, 64, 4, 8]), 6, [0.0, 0.0, 0.0, 0.0, 0.0, 32.0])
    """

    def __init__(self, cache: KVCache, window: int | None = None) -> None:
        self._cache, self._window = cache, window
        self.layers = cache.layers  # the very same: what is counted here is counted there
        self._buffers = [layer.buffers for layer in self.layers]
        for keys, values in self._buffers:
            for buffer in (keys, values):  # attention takes hidden values nothing times, and nothing times NaN is NaN
                buffer[:, self.layers[0].used :] = 0
        self._length = -1  # of the cache, where this stands
        keys = self._buffers[0][0]
        rows = 1 if cache.mask is None else len(keys)  # without padding all prompts are alike
        self._slot = torch.zeros(1, dtype=torch.long, device=keys.device)  # of the buffers: the last token's
        self._position = self._slot.new_zeros(rows, 1)  # of the last token, in each prompt
        self._positions = self._slot.new_zeros(rows, keys.shape[1])  # of what is in each slot
        self.sync()

    def sync(self) -> None:
        """Stand where the cache stands."""
        cache, length = self._cache, self.length
        if self._length == length:
            return
        used, seen = self.layers[0].used, None if cache.mask is None else cache.mask[:, :length]
        everywhere = torch.arange(length, device=self._slot.device)[None] if seen is None else seen.cumsum(dim=-1) - 1
        self._slot.fill_(used - 1)
        self._position.copy_(everywhere[:, -1:])
        if seen is not None:
            everywhere = everywhere.masked_fill(~seen, NOWHERE)
        self._positions.fill_(NOWHERE)
        self._positions[:, :used] = everywhere[:, length - used :]
        self._length = length

    @property
    def fits(self) -> bool:
        """Whether the cache has room for one more token, and all its buffers where they were."""
        return all(
            layer.buffers[0] is keys and layer.used < keys.shape[1]
            for layer, (keys, _) in zip(self.layers, self._buffers, strict=True)
        )

    def advance(self) -> tuple[Int[Tensor, "batch 1"], Bool[Tensor, "#batch 1 1 capacity"]]:
        """Go on to the next token: where it stands in each prompt, and which slots it may look at."""
        self._slot.add_(1)
        self._position.add_(1)
        self._positions.index_copy_(1, self._slot, self._position)
        oldest = 0 if self._window is None else self._position - self._window + 1
        mask = (self._positions >= oldest)[:, None, None]
        self._length += 1
        return self._position.expand(len(self._buffers[0][0]), 1), mask

    def append(
        self, layer: int, k: Float[Tensor, "batch 1 kv_head d_head"], v: Float[Tensor, "batch 1 kv_head d_head"]
    ) -> tuple[Float[Tensor, "batch capacity kv_head d_head"], Float[Tensor, "batch capacity kv_head d_head"]]:
        """Write the token's keys and values into a layer's buffers; what comes back are these, filled or not."""
        keys, values = self._buffers[layer]
        return keys.index_copy_(1, self._slot, k), values.index_copy_(1, self._slot, v)

    def replayed(self, layers: range, *, advanced: bool) -> None:
        """A recording has written its token into these layers, which the cache takes for appended.

        `advanced`: it began with `advance`.
        """
        if advanced:
            self._length += 1
            mask = self._cache.mask
            if mask is not None and mask.shape[1] < self._length:  # what was generated is no padding
                self._cache.mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        for i in layers:
            self.layers[i].count()
