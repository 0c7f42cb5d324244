"""Steps as CUDA graphs: a graphics card is done with a kernel before Python has asked for the next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from jaxtyping import Int
from torch import Tensor

from nnzoo.architectures.fixed_cache import FixedCache
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.kv_cache import KVCache
from nnzoo.generation.cuda_graphs import Recording
from nnzoo.generation.recordings import Recorded, Stretch, compare, fail
from nnzoo.generation.steps import BEGIN, Listeners, Way, between


@dataclass(frozen=True, eq=False)
class Graph(Stretch):
    """A stretch of a step as a graph, which writes into whole buffers of the cache."""

    start: int
    stop: int
    input: Tensor  # the tokens [batch 1], or the residual stream
    replay: Callable[[], None]
    output: Tensor  # the residual stream, or the logits [batch 1 d_vocab]
    cache: FixedCache

    def __call__(self, x: Tensor) -> Tensor:
        if self.start == BEGIN:
            self.cache.sync()
        self.input.copy_(x)
        self.replay()
        blocks = range(max(self.start, 0), min(self.stop, len(self.cache.layers)))
        self.cache.replayed(blocks, advanced=self.start == BEGIN)
        return self.output.clone()  # the next replay writes where this one did


class Graphed(Recorded):
    """Steps that are recorded at once, and again when the cache has moved its buffers."""

    def __init__(
        self,
        model: HookedModel,
        cache: KVCache,
        record: Callable[[Callable[[], Tensor]], Recording],
        *,
        listeners: Listeners,
        alone: bool,
    ) -> None:
        super().__init__(model, cache, listeners=listeners, alone=alone)
        self._record = record
        self._fixed: FixedCache | None = None

    def _is_ready(self) -> bool:
        if self._fixed is None or not self._fixed.fits:
            self._found = {}
            self._fixed = FixedCache(self._cache, self._model.window)
        return self._fixed.fits

    def _recorded(
        self, tokens: Int[Tensor, "batch 1"], outside: tuple[int, ...], mode: bool, *, again: bool
    ) -> Mapping[int, Stretch] | None:
        assert self._fixed is not None
        if not again:
            return None
        length = self._cache.length
        try:
            return self._rehearsed(self._fixed, tokens, outside)
        except RuntimeError as error:
            fail(self._failures, error)
            return {}
        finally:
            self._cache.rewind(0, length)

    def _rehearsed(
        self, fixed: FixedCache, tokens: Int[Tensor, "batch 1"], outside: tuple[int, ...]
    ) -> Mapping[int, Stretch]:
        """The stretches between some parts, recorded and found right."""
        length, x, found = self._cache.length, tokens, dict[int, Stretch]()
        usual, way = Way(self._model, self._cache), Way(self._model, fixed)
        usual.enter(tokens)
        fixed.sync()  # to warm up it writes where the token goes, and nowhere else
        for start, stop in between(outside, len(self._model.blocks)):
            # what lies between the stretches is left out: any numbers will do to compare with
            own = x.clone()
            replay, output = self._record(partial(way.go, own, start, stop))
            found[start] = Graph(start, stop, own, replay, output, fixed)
            replayed = found[start](x)
            self._cache.rewind(0, length)
            x = usual.go(x, start, stop)
            compare(replayed, x)
        return found
