"""Steps that are recorded once and replayed: on CUDA as graphs, on the CPU as tapes.

With one token a row, asking for a kernel takes about as long as the kernel does, or longer. In a replay nobody asks: a
part of the step where somebody listens stays outside, and what lies between such parts is recorded, a stretch each.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.kv_cache import KVCache
from nnzoo.generation.options import warn
from nnzoo.generation.steps import BEGIN, Listeners, Way, is_plain, next_logits

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # of the usual step's result, by norms; else 0.1


class Stretch(ABC):
    """Consecutive parts of a step as one recording."""

    start: int
    stop: int  # the part after it

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """What comes out of its parts of what goes into them; the token is in the cache then."""


class Recorded(ABC):
    """The steps of one generation, which fill one cache: as usual at first, and where that will not do.

    A step is recorded when it has run as usual once with the same listeners. What was recorded is compared with the
    usual step; where that fails, a warning says why, and all goes on as usual. A module or a parameter that is
    replaced, or a parameter whose memory is, ends all recordings there are. What else a module does, by an attribute or
    a method, is what it did when the generation began.
    `alone`: where nobody listens, nothing but this runs between two steps, so nobody will listen at the next.
    """

    def __init__(self, model: HookedModel, cache: KVCache, *, listeners: Listeners, alone: bool) -> None:
        self._model, self._cache, self._alone, self._listeners = model, cache, alone, listeners
        self._found: dict[tuple, Mapping[int, Stretch]] = {}  # by the parts where somebody listens, and inference mode
        self._before: tuple | None = None  # those of the step before
        self._failures: list[str] = []  # one is enough

    def next_logits(
        self,
        model: HookedModel,
        tokens: Int[Tensor, "batch new"],
        mask: Bool[Tensor, "batch new"] | None,
        cache: KVCache,
    ) -> Float[Tensor, "batch d_vocab"]:
        """What follows the last token of each row."""
        stretches = self.stretches(tokens)
        if not stretches:
            return next_logits(model, tokens, mask, cache)
        way, part, x = Way(model, cache), BEGIN, tokens
        if stretches[BEGIN].stop <= len(model.blocks):
            way.enter(tokens)
        while part <= len(model.blocks):
            stretch = stretches.get(part)
            if stretch is not None:
                x, part = stretch(x), stretch.stop
                continue
            x, part = way.go(x, part, part + 1), part + 1
            if stretches and self._before is not None and self._listeners.parts() != self._before[0]:
                stretches = {}  # somebody who listened here has let others come: the rest of the step is as usual
        return x[:, -1]

    def stretches(self, tokens: Int[Tensor, "batch new"]) -> Mapping[int, Stretch]:
        """What of the next step can be replayed, by the part with which it begins; nothing, or the beginning too."""
        if self._failures or not (tokens.shape[1] == 1 and 0 < self._cache.length < self._model.max_tokens):
            return {}
        if not self._is_ready():
            return {}
        if self._alone and self._before is not None and not self._before[0] and self._before in self._found:
            return self._found[self._before]
        if not is_plain(tokens.device):
            return {}
        if not self._listeners.are_current:
            self._listeners, self._found, self._before = Listeners.of(self._model), {}, None
        key, before = (self._listeners.parts(), torch.is_inference_mode_enabled()), self._before
        self._before = key
        if BEGIN in key[0]:
            return {}
        if key not in self._found:
            found = self._recorded(tokens, *key, again=key == before)
            if found is None:
                return {}
            self._found[key] = found
        return self._found[key]

    def _is_ready(self) -> bool:
        """Whether the cache can be replayed into; forgets recordings that cannot."""
        return True

    @abstractmethod
    def _recorded(
        self, tokens: Int[Tensor, "batch 1"], outside: tuple[int, ...], mode: bool, *, again: bool
    ) -> Mapping[int, Stretch] | None:
        """The stretches between some parts; nothing, and a warning, where that fails.

        `mode`: in inference mode; `again`: the step before was the same in all this. None: not worth it yet.
        """


def fail(failures: list[str], error: RuntimeError) -> None:
    """Note that a recording has failed, and warn of it."""
    failures.append(str(error))
    warn(f"the steps of this generation run one kernel after the other, since recording them failed: {error}")


def compare(replayed: Tensor, usual: Tensor) -> None:
    """Raise RuntimeError unless two results are the same, as far as kernels that add up in another order agree."""
    a, b = (x.double().nan_to_num(nan=1e30) for x in (replayed, usual))
    error, norm = float((a - b).norm()), float(b.norm())
    if not error <= TOLERANCE.get(usual.dtype, 0.1) * norm:
        raise RuntimeError(f"a replay gives other numbers, off by {error:.2g} where their norm is {norm:.2g}")
