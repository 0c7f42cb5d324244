"""A step of a generation as it usually runs, and the parts that it has: what begins it, the blocks, what ends it."""

from collections.abc import Collection, Iterator
from itertools import pairwise
from operator import getitem, is_
from types import FunctionType, MethodType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules import module as pytorch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.kv_cache import KVCache

BEGIN = -1  # the part before block 0; a block's number is its own, and that of the part which ends a step comes next
KNOWN = ("nnzoo.architectures.", "torch.nn.modules.")  # modules that do the same at every call
OURS = ("nnzoo.", "torch.")  # functions that do
STEP = ("begin", "span", "finish")  # what a model itself does in a step


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

    Hook points count, PyTorch's own hooks, and modules of other makes, which may do anything. A model has this itself:
    a hook may know of the model, which would not go while anybody else has its hooks.
    """

    def __init__(self, model: HookedModel) -> None:
        last = len(model.blocks)
        _, *self._modules = model.modules()  # not the model itself, which has this
        self._parts: dict[int, list[Collection]] = {part: [] for part in range(BEGIN, last + 1)}
        self._foreign: set[int] = set()
        for name, point in model.hook_points.items():
            self._parts[_part(name, last)].append(point.hooks)
        for name, module in model.named_modules():
            if name not in ("", "blocks"):
                self._parts[_part(name, last)] += [module._forward_hooks, module._forward_pre_hooks]
            if name != "blocks" and _is_foreign(module):
                self._foreign.add(_part(name, last))
        self._parts[BEGIN] += [pytorch._global_forward_hooks, pytorch._global_forward_pre_hooks]
        # where weights, and other parts, are registered
        named = [(d, key) for one in (model, *self._modules) for d in (one._parameters, one._modules) for key in d]
        self._weights = _columns([(d, key) for d, key in named if _is_ordinary(d[key])])
        self._others = _columns([(d, key) for d, key in named if not _is_ordinary(d[key])])
        self._found = self._places(), [*map(getitem, *self._others)]  # the parts themselves: an id may be used again
        own = [(vars(module), key) for module in self._modules for key in vars(module) if key[0] != "_"]
        self._attributes = _columns(own)  # such as an epsilon
        self._settings = self._set(model)
        self.devices = {p.device for p in model.parameters()}
        self.n_bytes = sum(p.nbytes for p in model.parameters())  # of weights
        self._all = [one for part in self._parts.values() for one in part]

    def __reduce__(self) -> tuple:
        return type(None), ()  # a copy of the model, or one that is stored, has other modules

    def parts(self) -> tuple[int, ...]:
        """The parts where there are any now, in order."""
        if not any(self._all) and not self._foreign:
            return ()
        return tuple(part for part, lists in self._parts.items() if part in self._foreign or any(lists))

    @classmethod
    def of(cls, model: HookedModel) -> "Listeners":
        """Those of a model as it is now."""
        known = vars(model).setdefault("_listeners", None)
        if known is None or not (known.are_current and known.are_set_as_before(model)):
            known = vars(model)["_listeners"] = cls(model)
        return known

    @property
    def are_current(self) -> bool:
        """Whether the model has the modules and the parameters that it had, and these are where they were."""
        places, others = self._found
        try:
            return places == self._places() and all(map(is_, others, map(getitem, *self._others)))
        except (KeyError, TypeError, RuntimeError):  # there is none, or it is no tensor, or has no place
            return False

    def are_set_as_before(self, model: HookedModel) -> bool:
        """Whether all else is as it was that decides what they do; too much to ask at each step."""
        sizes, values = self._settings
        try:
            new_sizes, new_values = self._set(model)
        except KeyError:
            return False
        return sizes == new_sizes and all(map(is_, values, new_values))

    def _places(self) -> list[int]:
        return [*map(Tensor.data_ptr, map(getitem, *self._weights))]

    def _set(self, model: HookedModel) -> tuple[list, list]:
        """How weights lie, and how many parts and attributes there are; these, classes, and what the classes do."""
        sizes: list[Any] = [(p.shape, p.stride()) for p in map(getitem, *self._weights)]
        sizes += [(len(one._modules), len(vars(one))) for one in (model, *self._modules)]
        values: list[Any] = [type(model), *(getattr(type(model), name) for name in STEP)]
        classes = dict.fromkeys(one for module in (model, *self._modules) for one in _classes(type(module)))
        sizes += [len(vars(one)) for one in classes]
        values += [value for one in classes for value in vars(one).values()]
        values += [value for key, value in vars(model).items() if key[0] != "_"]
        values += [point.hooks for point in model.hook_points.values()]
        values += [x for one in self._modules for x in (type(one), type(one).forward, one._compiled_call_impl)]
        return sizes, [*values, *map(getitem, *self._attributes)]


def _columns(named: list[tuple[dict, str]]) -> tuple[list[dict], list[str]]:
    return [d for d, _ in named], [key for _, key in named]


def _is_ordinary(x: Any) -> bool:
    """Whether it is a tensor whose numbers lie at its address, and nowhere else."""
    return type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided


def _is_foreign(module: nn.Module) -> bool:
    """Whether a module may do something else at each call, or what no tape hears of; PyTorch's may in training."""
    kind, own = type(module), vars(module)
    if isinstance(module, HookedModel):
        methods = [getattr(kind, name) for name in STEP]
    else:
        methods = [kind.forward]
        if not kind.__module__.startswith(KNOWN) or "forward" in own or module._compiled_call_impl is not None:
            return True
        if module.training and kind.__module__.startswith("torch."):
            return True
    others = [*own.values(), *(value for one in _classes(kind) for value in vars(one).values())]
    functions = methods + [value for value in others if isinstance(value, FunctionType | MethodType)]
    return not (
        all(str(function.__module__).startswith(OURS) for function in functions)
        and all(_is_ordinary(p) for p in module._parameters.values() if p is not None)
    )


def _classes(kind: type) -> list[type]:
    """A class and those that it inherits from, as far as they are ours."""
    return [one for one in kind.__mro__ if one.__module__.startswith("nnzoo.")]


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
