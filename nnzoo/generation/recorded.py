"""Steps that are recorded once and replayed, where a device can do that: on CUDA, as graphs.

With one token a row a graphics card is done with a kernel before Python has asked for the next. Replaying a recording
asks for all of them at once. In a recording no Python runs: a part of the step where somebody listens stays outside,
and what lies between such parts is recorded, a stretch each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnzoo.architectures.fixed_cache import FixedCache
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.kv_cache import KVCache
from nnzoo.generation.cuda_graphs import RECORDERS, Recording
from nnzoo.generation.options import warn
from nnzoo.generation.steps import BEGIN, Listeners, Way, between, is_plain, next_logits

WORTH = 16  # new tokens: recording takes about as long as four steps
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # of the usual step's result, by norms; else 0.1


@dataclass(frozen=True, eq=False)
class Stretch:
    """Consecutive parts of a step as one recording."""

    start: int
    stop: int  # the part after it
    input: Tensor  # the tokens [batch 1], or the residual stream
    replay: Callable[[], None]
    output: Tensor  # the residual stream, or the logits [batch 1 d_vocab]
    cache: FixedCache

    def __call__(self, x: Tensor) -> Tensor:
        """What comes out of its parts of what goes into them; the token is in the cache then."""
        self.input.copy_(x)
        self.replay()
        blocks = range(max(self.start, 0), min(self.stop, len(self.cache.layers)))
        self.cache.replayed(blocks, advanced=self.start == BEGIN)
        return self.output.clone()  # the next replay writes where this one did


class Recorded:
    """The steps of one generation, which fill one cache: as usual at first, and where that will not do.

    A step is recorded when it has run as usual once with the same listeners, and again when the cache has moved its
    buffers. What was recorded is compared with the usual step before it counts; where that fails, a warning says why,
    and all goes on as usual.
    """

    def __init__(self, model: HookedModel, cache: KVCache, record: Callable[[Callable[[], Tensor]], Recording]) -> None:
        self._model, self._cache, self._record = model, cache, record
        self._listeners = Listeners(model)
        self._fixed: FixedCache | None = None
        self._found: dict[tuple[int, ...], dict[int, Stretch]] = {}  # by the parts where somebody listens
        self._before: tuple[int, ...] | None = None  # such parts of the step before
        self._is_sound = True

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
            x = way.go(x, part, part + 1) if stretch is None else stretch(x)
            part = part + 1 if stretch is None else stretch.stop
        return x[:, -1]

    def stretches(self, tokens: Int[Tensor, "batch new"]) -> dict[int, Stretch]:
        """What of the next step can be replayed, by the part with which it begins; nothing, or the beginning too."""
        if not (self._is_sound and tokens.shape[1] == 1 and 0 < self._cache.length < self._model.max_tokens):
            return {}
        if not is_plain(tokens.device):
            return {}
        outside, before = self._listeners.parts(), self._before
        self._before = outside
        fixed = self._fixed_cache()
        if BEGIN in outside or not fixed.fits:
            return {}
        if outside not in self._found:
            if outside != before:
                return {}
            self._found[outside] = self._rehearsed(fixed, tokens, outside)
        fixed.sync()
        return self._found[outside]

    def _fixed_cache(self) -> FixedCache:
        """The cache's buffers as they are now; recordings that wrote into others are dropped."""
        if self._fixed is None or not self._fixed.fits:
            self._found = {}
            self._fixed = FixedCache(self._cache, self._model.window)
        return self._fixed

    def _rehearsed(
        self, fixed: FixedCache, tokens: Int[Tensor, "batch 1"], outside: tuple[int, ...]
    ) -> dict[int, Stretch]:
        """The stretches between some parts, recorded and found right; nothing, and a warning, where that fails."""
        length = self._cache.length
        try:
            return self._recorded(fixed, tokens, outside)
        except RuntimeError as error:
            self._is_sound = False
            warn(f"the steps of this generation run one kernel after the other, since recording them failed: {error}")
            return {}
        finally:
            self._cache.rewind(0, length)

    def _recorded(
        self, fixed: FixedCache, tokens: Int[Tensor, "batch 1"], outside: tuple[int, ...]
    ) -> dict[int, Stretch]:
        length, x, found = self._cache.length, tokens, {}
        usual, way = Way(self._model, self._cache), Way(self._model, fixed)
        usual.enter(tokens)
        fixed.sync()  # to warm up it writes where the token goes, and nowhere else
        for start, stop in between(outside, len(self._model.blocks)):
            # what lies between the stretches is left out: any numbers will do to compare with
            own = x.clone()
            replay, output = self._record(partial(way.go, own, start, stop))
            found[start] = Stretch(start, stop, own, replay, output, fixed)
            if start == BEGIN:
                fixed.sync()  # recording has moved it on
            replayed = found[start](x)
            self._cache.rewind(0, length)
            x = usual.go(x, start, stop)
            _compare(replayed, x)
        return found


def _compare(replayed: Tensor, usual: Tensor) -> None:
    """Raise RuntimeError unless two results are the same, as far as kernels that add up in another order agree."""
    a, b = (x.double().nan_to_num(nan=1e30) for x in (replayed, usual))
    error, norm = float((a - b).norm()), float(b.norm())
    if not error <= TOLERANCE.get(usual.dtype, 0.1) * norm:
        raise RuntimeError(f"a replay gives other numbers, off by {error:.2g} where their norm is {norm:.2g}")


def recorded(model: HookedModel, cache: KVCache, new_tokens: int) -> Recorded | None:
    """What runs the steps of a generation faster, if its device can, and it is long enough to be worth it."""
    record = RECORDERS.get(model.device.type)
    if record is None or new_tokens < WORTH or len({p.device for p in model.parameters()}) > 1:
        return None
    return Recorded(model, cache, record(model.device))
