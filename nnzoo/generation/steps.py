"""A step of a generation as it usually runs, and the parts that it has: what begins it, the blocks, what ends it."""

from collections.abc import Collection, Iterator
from itertools import pairwise
from operator import getitem
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.modules import module as pytorch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.kv_cache import KVCache

BEGIN = -1  # the part before block 0; a block's number is its own, and that of the part which ends a step comes next
State = list[int]  # which modules and parameters a model has, and where these lie
KNOWN = ("nnzoo.architectures.", "torch.nn.modules.")  # modules that do the same at every call


def next_logits(
    model: HookedModel, tokens: Int[Tensor, "batch new"], mask: Bool[Tensor, "batch new"] | None, cache: KVCache
) -> Float[Tensor, "batch d_vocab"]:
    """What follows the last token of each row; only that position is unembedded."""
    x, span = model.begin(tokens, mask, cache)
    for block in model.blocks:
        x = block(x, span)
    return model.finish(x[:, -1:])[:, -1]


class Way:
    """A step of one token a row, part by part, with one cache."""

    def __init__(self, model: HookedModel, cache: KVCache) -> None:
        self._model, self._cache, self._blocks = model, cache, list(model.blocks)
        self.span: Any = None  # what the blocks need to know of the token

    def go(self, x: Tensor, start: int, stop: int) -> Tensor:
        """What comes out of the parts from `start` to before `stop`, of what goes into them."""
        if start == BEGIN:
            x, self.span = self._model.begin(x, None, self._cache)
        for block in self._blocks[max(start, 0) : stop]:
            x = block(x, self.span)
        return self._model.finish(x) if stop > len(self._blocks) else x

    def enter(self, tokens: Int[Tensor, "batch 1"]) -> None:
        """Know of a token what the blocks need, where another has begun the step."""
        self.span = self._model.span(tokens, None, self._cache)


class Listeners:
    """The parts of a model's step in which somebody listens, so that Python has to run in them at every step.

    Hook points count, PyTorch's own hooks, and modules of other makes, which may do anything.
    """

    def __init__(self, model: HookedModel) -> None:
        last = len(model.blocks)
        self._parts: dict[int, list[Collection]] = {part: [] for part in range(BEGIN, last + 1)}
        self._foreign: set[int] = set()
        for name, point in model.hook_points.items():
            self._parts[_part(name, last)].append(point.hooks)
        for name, module in model.named_modules():
            if name not in ("", "blocks"):
                self._parts[_part(name, last)] += [module._forward_hooks, module._forward_pre_hooks]
                if not type(module).__module__.startswith(KNOWN) or "forward" in vars(module):
                    self._foreign.add(_part(name, last))
        self._parts[BEGIN] += [pytorch._global_forward_hooks, pytorch._global_forward_pre_hooks]
        # where weights, and other parts, are registered; not the modules, of which one is the model
        named = [(d, key) for module in model.modules() for d in (module._parameters, module._modules) for key in d]
        self._weights = _columns([(d, key) for d, key in named if isinstance(d[key], Tensor)])
        self._others = _columns([(d, key) for d, key in named if not isinstance(d[key], Tensor | HookPoint)])
        self.found = self._state()
        self.devices = {p.device for p in model.parameters()}
        self.n_bytes = sum(p.nbytes for p in model.parameters())  # of weights
        self._all = [one for part in self._parts.values() for one in part]

    def parts(self) -> tuple[int, ...]:
        """The parts where there are any now, in order."""
        if not any(self._all) and not self._foreign:
            return ()
        return tuple(part for part, lists in self._parts.items() if part in self._foreign or any(lists))

    @classmethod
    def of(cls, model: HookedModel) -> "Listeners":
        """Those of a model as it is now."""
        known = _known.get(model)
        if known is None or not known.are_current:
            known = _known[model] = cls(model)
        return known

    @property
    def are_current(self) -> bool:
        """Whether the model has the modules and the parameters that it had, and these are where they were."""
        try:
            return self.found == self._state()
        except (KeyError, TypeError):  # there is none, or it is no tensor
            return False

    def _state(self) -> State:
        return [*map(Tensor.data_ptr, map(getitem, *self._weights)), *map(id, map(getitem, *self._others))]


def _columns(named: list[tuple[dict, str]]) -> tuple[list[dict], list[str]]:
    return [d for d, _ in named], [key for _, key in named]


_known: WeakKeyDictionary[HookedModel, Listeners] = WeakKeyDictionary()


def _part(name: str, last: int) -> int:
    """The part of a step that a module or a hook point stands in."""
    first, *rest = name.split(".")
    if first == "blocks":
        return int(rest[0])
    return last if first in ("ln_final", "unembed") else BEGIN


def between(parts: tuple[int, ...], n_blocks: int) -> Iterator[tuple[int, int]]:
    """The stretches of a step between some parts, each with the part that it begins with and the one after it.

    >>> list(between((2, 3), n_blocks=6))
    [(-1, 2), (4, 7)]
    """
    for before, after in pairwise((BEGIN - 1, *parts, n_blocks + 1)):
        if before + 1 < after:
            yield before + 1, after


def is_plain(device: torch.device) -> bool:
    """Whether nothing is on that looks into operations, or changes them, or follows them for gradients."""
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(device.type)
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())
    )
