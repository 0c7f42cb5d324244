"""Steps that are recorded once and replayed, where a device can do that: on CUDA, as graphs.

With one token a row a graphics card is done with a kernel before Python has asked for the next. Replaying a recording
asks for all of them at once. In a recording no Python runs: a part of the step where somebody listens stays outside,
and what lies between such parts is recorded, a stretch each.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
        if not is_plain():
            return {}
        outside, before = self._listeners.parts(), self._before
        self._before = outside
        if BEGIN in outside or not self._has_room():
            return {}
        if outside not in self._found:
            if outside != before:
                return {}
            self._found[outside] = self._rehearsed(tokens, outside)
        self._fixed.sync()
        return self._found[outside]

    def _has_room(self) -> bool:
        """Whether the next token finds its place in the buffers; recordings that wrote into others are dropped."""
        if self._fixed is None or not self._fixed.fits:
            self._found = {}
            self._fixed = FixedCache(self._cache, self._model.window)
        return self._fixed.fits

    def _rehearsed(self, tokens: Int[Tensor, "batch 1"], outside: tuple[int, ...]) -> dict[int, Stretch]:
        """The stretches between some parts, recorded and found right; nothing, and a warning, where that fails."""
        length = self._cache.length
        try:
            return self._recorded(tokens, outside)
        except RuntimeError as error:
            self._is_sound = False
            warn(f"the steps of this generation run one kernel after the other, since recording them failed: {error}")
            return {}
        finally:
            self._cache.rewind(0, length)

    def _recorded(self, tokens: Int[Tensor, "batch 1"], outside: tuple[int, ...]) -> dict[int, Stretch]:
        length, x, found = self._cache.length, tokens, {}
        usual, fixed = Way(self._model, self._cache), Way(self._model, self._fixed)
        usual.enter(tokens)
        self._fixed.sync()  # to warm up it writes where the token goes, and nowhere else
        for start, stop in between(outside, len(self._model.blocks)):
            # what lies between the stretches is left out: any numbers will do to compare with
            stretch = found[start] = self._stretch(fixed, x, start, stop)
            if start == BEGIN:
                self._fixed.sync()  # recording has moved it on
            replayed = stretch(x)
            self._cache.rewind(0, length)
            x = usual.go(x, start, stop)
            _compare(replayed, x)
            self._cache.rewind(0, length)
        return found

    def _stretch(self, way: Way, x: Tensor, start: int, stop: int) -> Stretch:
        own = x.clone()
        replay, output = self._record(lambda: way.go(own, start, stop))
        return Stretch(start, stop, own, replay, output, self._fixed)


def _compare(replayed: Tensor, usual: Tensor) -> None:
    """Raise RuntimeError unless two results are the same, as far as kernels that add up in another order agree."""
    error = float((replayed.double() - usual.double()).norm() / usual.double().norm())
    if not error <= TOLERANCE.get(usual.dtype, 0.1):
        raise RuntimeError(f"the replay gives other numbers, off by {error:.2g} of the usual step's norm")


def recorded(model: HookedModel, cache: KVCache, new_tokens: int) -> Recorded | None:
    """What runs the steps of a generation faster, if its device can, and it is long enough to be worth it."""
    record = RECORDERS.get(model.device.type)
    if record is None or new_tokens < WORTH or len({p.device for p in model.parameters()}) > 1:
        return None
    return Recorded(model, cache, record(model.device))
