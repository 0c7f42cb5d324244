"""The KV cache: keys and values of the tokens a model has read, so that the next token costs one position."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROOM = 64  # tokens: buffers are multiples of it, as attention's kernels on a graphics card want them


class KVCache:
    """Keys (after rotary) and values of every layer, and which of the tokens read were padding.

    >>> cache = KVCache(n_layers=2)
    >>> k = torch.zeros(1, 5, 4, 8)  # [batch pos kv_head d_head]
    >>> keys, values = cache.append(0, k, k)
    >>> keys, values = cache.append(0, k[:, :1], k[:, :1])
    >>> keys.shape
    torch.Size([1, 6, 4, 8])
    """

    def __init__(self, n_layers: int) -> None:
        self.mask: Bool[Tensor, "batch seen"] | None = None  # False: padding. None: no token was
        self.oldest = 0  # the first token that anybody may still look at: a sliding window moves it on
        self.layers = [LayerCache() for _ in range(n_layers)]

    def append(
        self, layer: int, k: Float[Tensor, "batch pos kv_head d_head"], v: Float[Tensor, "batch pos kv_head d_head"]
    ) -> tuple[Float[Tensor, "batch key_pos kv_head d_head"], Float[Tensor, "batch key_pos kv_head d_head"]]:
        """Add a pass's keys and values to a layer; what comes back are all from `oldest` on."""
        return self.layers[layer].append(k, v, self.oldest)

    def first(
        self, layer: int, length: int
    ) -> tuple[Float[Tensor, "batch pos kv_head d_head"], Float[Tensor, "batch pos kv_head d_head"]]:
        """A layer's keys and values of the first `length` tokens, where none has left the window."""
        return self.layers[layer].first(length)

    def rewind(self, layer: int, length: int) -> None:
        """Forget what the blocks from `layer` on have read after the first `length` tokens."""
        for one in self.layers[layer:]:
            one.rewind(length)

    def check_batch(self, batch: int) -> None:
        """Raise ValueError if the cache was filled with another number of prompts."""
        filled = self.layers[0].batch
        if self.length and filled != batch:
            raise ValueError(f"this cache was filled with a batch of {filled}, and now gets one of {batch}")

    @property
    def length(self) -> int:
        """Tokens read so far. Raises RuntimeError if a pass stopped half-way and left the layers at odds."""
        lengths = [layer.seen for layer in self.layers]
        if len(set(lengths)) > 1:
            raise RuntimeError(
                f"the blocks of this cache have keys of {lengths} tokens: a pass that filled it stopped half-way. "
                "Start again with a new cache."
            )
        return lengths[0]


class StepCache(KVCache):
    """A KV cache as a step sees it that is recorded once and replayed: one token a prompt, and none of it padding."""

    def advance(self) -> tuple[Int[Tensor, "batch 1"], Bool[Tensor, "#batch 1 1 key"] | None]:
        """Go on to the next token: where it stands in each prompt, and what it may look at; None: at everything."""
        raise NotImplementedError


class LayerCache:
    """One layer's keys and values, in buffers that grow by doubling."""

    def __init__(self) -> None:
        self.seen = 0  # tokens appended so far
        self._k = self._v = torch.empty(0, 0, 0, 0)  # [batch capacity kv_head d_head], of the first append's kind
        self._used = 0  # of them, in the buffers: the last

    @property
    def batch(self) -> int:
        return len(self._k)

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """All of the memory for keys and values, [batch capacity kv_head d_head]; the first `used` are filled."""
        return self._k, self._v

    @property
    def used(self) -> int:
        return self._used

    def count(self) -> None:
        """Take the token that follows in the buffers, written by somebody else, for appended."""
        self._used, self.seen = self._used + 1, self.seen + 1

    def append(self, k: Tensor, v: Tensor, oldest: int) -> tuple[Tensor, Tensor]:
        self._make_room(k, oldest)
        start, end = self._used, self._used + k.shape[1]
        if k.requires_grad:  # an in-place write would spoil what autograd keeps
            self._k = torch.cat([self._k[:, :start], k], dim=1)
            self._v = torch.cat([self._v[:, :start], v], dim=1)
        else:
            self._k[:, start:end] = k
            self._v[:, start:end] = v
        self._used, self.seen = end, self.seen + k.shape[1]
        first = oldest - (self.seen - end)
        return self._k[:, first:end], self._v[:, first:end]

    def first(self, length: int) -> tuple[Tensor, Tensor]:
        return self._k[:, :length], self._v[:, :length]

    def rewind(self, length: int) -> None:
        """Forget the tokens after the first `length`."""
        self._used -= max(0, self.seen - length)
        self.seen = min(self.seen, length)

    def _make_room(self, k: Tensor, oldest: int) -> None:
        batch, n_pos, heads, d_head = k.shape
        if not self.seen:
            self._k, self._v = (k.new_empty(batch, 0, heads, d_head) for _ in range(2))
        if self._used + n_pos <= self._k.shape[1]:
            return
        keep = min(self._used, self.seen - oldest)
        capacity = ROOM * (2 * (keep + n_pos) // ROOM + 1)
        self._k, self._v = (self._moved(old, keep, capacity) for old in (self._k, self._v))
        self._used = keep

    def _moved(self, old: Tensor, keep: int, capacity: int) -> Tensor:
        batch, _, heads, d_head = old.shape
        new = old.new_empty(batch, heads, capacity, d_head).transpose(1, 2)  # attention reads a head's tokens in a row
        new[:, :keep] = old[:, self._used - keep : self._used]
        return new
