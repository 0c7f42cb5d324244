"""The KV cache by TransformerLens's names; what it holds is nnzoo's KVCache."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.kv_cache import KVCache


@dataclass(frozen=True)
class TransformerLensKeyValueCacheEntry:
    """One layer's keys (after rotary) and values, [batch pos kv_head d_head]."""

    past_keys: Tensor
    past_values: Tensor


class TransformerLensKeyValueCache:
    """Keys and values of the tokens read so far, to pass as `past_kv_cache`.

    While it is frozen, a run reads it and adds nothing.

    >>> from nnzoo.transformer_lens import HookedTransformer
    >>> model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
    >>> cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", batch_size=1)
    >>> _ = model("The capital of", past_kv_cache=cache)
    >>> logits = model(" France is", prepend_bos=False, past_kv_cache=cache)
    >>> model.to_string(logits[0, -1].argmax())
    ' Paris'
    """

    def __init__(self, cfg: Any, device: Any, batch_size: int) -> None:
        self.native = KVCache(cfg.n_layers)
        self.frozen = False
        heads = cfg.n_heads if cfg.n_key_value_heads is None else cfg.n_key_value_heads
        self._nothing = torch.empty(batch_size, 0, heads, cfg.d_head, device=device, dtype=cfg.dtype)

    @classmethod
    def init_cache(cls, cfg: Any, device: Any, batch_size: int = 1) -> "TransformerLensKeyValueCache":
        """An empty cache for so many prompts."""
        return cls(cfg, device, batch_size)

    def freeze(self) -> None:
        """Add nothing from now on."""
        self.frozen = True

    def unfreeze(self) -> None:
        """Add what is read again."""
        self.frozen = False

    @contextmanager
    def running(self) -> Iterator[KVCache]:
        """What a run reads and fills; what it added is forgotten afterwards while this is frozen."""
        length, mask = self.native.length, self.native.mask
        yield self.native
        if self.frozen:
            self.native.rewind(0, length)
            self.native.mask = mask

    @property
    def previous_attention_mask(self) -> Tensor:
        """[batch pos] of the tokens read: 1, and 0 for padding."""
        if self.native.mask is not None:
            return self.native.mask.long()
        return self._nothing.new_ones(len(self._nothing), self.native.length, dtype=torch.long)

    def __getitem__(self, idx: int) -> TransformerLensKeyValueCacheEntry:
        keys, values = self.native.append(idx, self._nothing, self._nothing)  # adds nothing, gives what is there
        return TransformerLensKeyValueCacheEntry(keys, values)


HookedTransformerKeyValueCache = TransformerLensKeyValueCache  # version 2
HookedTransformerKeyValueCacheEntry = TransformerLensKeyValueCacheEntry
