"""Steps as tapes, on the CPU: the first time that a stretch runs it is written down, for later generations too."""

import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Lock

from jaxtyping import Int
from torch import Tensor

from nnzoo.architectures import products
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.kv_cache import KVCache
from nnzoo.generation.recordings import Recorded, Stretch, compare, fail
from nnzoo.generation.steps import BEGIN, Listeners, Way, between
from nnzoo.generation.tapes import Call, LiveCache, Tape, check_class

MUCH = 2**14  # numbers in the residual stream of a step: from there on its kernels are what takes the time
HEAVY = 2**30  # bytes of weights: so long as to read them takes what Python does is not seen
KEPT = 4  # steps a model, for generations to come: with other numbers of prompts, or other listeners


class Taped(Recorded):
    """Steps of few numbers, by models that are read quickly: of others nothing would become faster.

    What was written for a generation serves the next one of as many prompts, when it is over. So a model's tapes, and
    the weights that they have, go with the model, or at the first long generation after it has changed.
    """

    def _is_ready(self) -> bool:
        numbers = self._cache.layers[0].batch * self._model.config.d_model
        return numbers < MUCH and self._listeners.n_bytes < HEAVY

    def _recorded(
        self, tokens: Int[Tensor, "batch 1"], outside: tuple[int, ...], mode: bool, *, again: bool
    ) -> Mapping[int, Stretch] | None:
        kind = (outside, mode, len(tokens), self._cache.mask is None, products.choice())
        with _lock:
            kept = _kept.setdefault(self._listeners, [])
            kept[:] = [one for one in kept if one.is_taken or one.is_whole]
            for one in kept:
                if one.kind == kind and not one.is_taken:
                    one.take(self, self._cache, self._failures)
                    return one.stretches
            if not again:
                return None
            del kept[: max(0, len(kept) - KEPT + 1)]  # the oldest; who has taken one has its stretches
            common, parts = Common(self._model), list(between(outside, len(self._model.blocks)))
            stretches = {start: TapedStretch(common, start, stop) for start, stop in parts}
            kept.append(Kept(kind, common, stretches))
            kept[-1].take(self, self._cache, self._failures)
            return stretches


class Common:
    """What the stretches of one step share: the tape, so that what the first one finds is found for the others."""

    def __init__(self, model: HookedModel) -> None:
        self.tape = Tape()
        self.live = LiveCache(self.tape, n_ctx=model.max_tokens, window=model.window)
        self.way: Way | None = Way(model, self.live)  # None: all is written
        self.cache: KVCache | None = None  # of the generation that has taken them
        self.failures: list[str] = []

    def begin(self, cache: KVCache, failures: list[str]) -> None:
        """Serve a generation."""
        self.cache = self.live.cache = cache
        self.failures = failures

    def end(self, _: object = None) -> None:
        """Keep nothing of a generation, and not the model."""
        self.tape.forget()
        self.live.cache = self.way = None
        self.cache = None  # the last: now another one may begin


@dataclass(eq=False)
class Kept:
    """A step's stretches, which one generation at a time may take."""

    kind: Hashable
    common: Common
    stretches: "Mapping[int, TapedStretch]"
    taken_by: weakref.ref | None = None

    @property
    def is_taken(self) -> bool:
        return self.common.cache is not None

    @property
    def is_whole(self) -> bool:
        return all(stretch.is_written for stretch in self.stretches.values())

    def take(self, steps: Taped, cache: KVCache, failures: list[str]) -> None:
        """Until these steps are no more."""
        self.common.begin(cache, failures)
        self.taken_by = weakref.ref(steps, self.common.end)


# of a model as it is: when it has changed there are other listeners
_kept: weakref.WeakKeyDictionary[Listeners, list[Kept]] = weakref.WeakKeyDictionary()
_lock = Lock()


class TapedStretch(Stretch):
    """A stretch of a step on a tape."""

    def __init__(self, common: Common, start: int, stop: int) -> None:
        self.start, self.stop, self._common = start, stop, common
        self._calls: list[Call] | None = None  # None: nothing is written yet
        self._input: Tensor  # the tokens [batch 1], or the residual stream
        self._output: Tensor  # the residual stream, or the logits [batch 1 d_vocab]

    @property
    def is_written(self) -> bool:
        return self._calls is not None

    def __call__(self, x: Tensor) -> Tensor:
        if self._common.failures:
            return self._usual(x)
        return self._written(x) if self._calls is None else self._replayed(x, self._calls)

    def _replayed(self, x: Tensor, calls: list[Call]) -> Tensor:
        self._input.copy_(x)
        for call in calls:
            call()
        return self._output.clone()  # the next replay writes where this one did

    def _written(self, x: Tensor) -> Tensor:
        """What the parts give; they run twice, the second time as they will from now on."""
        common, layer = self._common, max(self.start, 0)
        assert common.cache is not None and common.way is not None
        seen = common.cache.layers[layer].seen if layer < len(common.cache.layers) else 0
        try:
            check_class(x)
            self._input = x.clone()
            work = partial(common.way.go, self._input, self.start, self.stop)
            self._output, calls = common.tape.written(work)
            usual = self._output.clone()
            common.cache.rewind(layer, seen)
            compare(replayed := self._replayed(x, calls), usual)
        except RuntimeError as error:
            fail(common.failures, error)
            common.cache.rewind(layer, seen)
            return self._usual(x)
        self._calls = calls  # now it can be relied on, whatever has interrupted the comparison of another
        return replayed

    def _usual(self, x: Tensor) -> Tensor:
        way = self._common.way
        assert way is not None
        if self.start != BEGIN:
            way.span.mask = self._common.tape.now(way.span.mask)
        return way.go(x, self.start, self.stop)
