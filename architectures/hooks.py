"""Hook points: named, typed places in a forward pass where one can look and change.

A model's equations have hook points standing in them:

    pattern = self.hook_pattern(scores.softmax(dim=-1))

With nobody listening a hook point costs one `if` and gives back what it was given. It is no `nn.Module`: it has
no parameters, and attribute look-up and calling stay cheap.

Names are those of TransformerLens (https://github.com/TransformerLensOrg/TransformerLens): "blocks.3.attn.hook_q".
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, is_grad_enabled, nn

from nnzoo.architectures.shape_errors import explain

HookFunction = Callable[[Tensor, "HookPoint"], Tensor | None]


class HookPoint:
    """A place in a forward pass, with a name and a declared shape.

    `axes` names the dimensions, as in "batch pos head d_head". `on_request` says that the value is large or slow to
    make, so that a cache nobody filtered leaves it out.

    >>> import torch
    >>> point = HookPoint("batch pos d_model")
    >>> point(torch.ones(1, 2, 3)).sum().item()
    6.0
    >>> handle = point.add_hook(lambda value, hook: value * 2)
    >>> point(torch.ones(1, 2, 3)).sum().item()
    12.0
    """

    __slots__ = ("__dict__", "__weakref__", "axes", "ctx", "hooks", "name", "on_request", "sizes")

    def __init__(self, axes: str, *, on_request: bool = False) -> None:
        self.axes = axes
        self.on_request = on_request
        self.name = ""  # "blocks.3.attn.hook_q": given by the model it stands in
        self.sizes: Mapping[str, int] = {}  # what the model's config says of the axes: {"head": 12, ...}
        self.hooks: list[Listener] = []
        self.ctx: dict[str, object] = {}  # for the user's functions to keep things in between calls

    def __call__(self, value: Tensor) -> Tensor:
        if self.hooks:
            for hook in tuple(self.hooks):
                value = hook.fire(value, self)
        return value

    def add_hook(
        self, fn: HookFunction, dir: str = "fwd", *, is_permanent: bool = False, prepend: bool = False
    ) -> "Handle":
        """Call `fn(value, hook_point)` at every pass, and go on with what it returns.

        The value is the function's own copy: it may be kept, or edited in place; None means "go on with the copy".
        With `dir="bwd"` it is called in the backward pass, with the gradient. A parameter named `hook` is given by
        name, wherever it stands. Permanent hooks survive `reset_hooks`; `prepend` puts it before those there.
        """
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"dir is 'fwd' or 'bwd', not {dir!r}")
        kind = Edit if dir == "fwd" else Backward
        return self.attach(kind(by_name(fn), is_permanent), prepend=prepend)

    def add_reader(self, fn: Callable[[Tensor, "HookPoint"], None]) -> "Handle":
        """Call `fn(value, hook_point)` at every pass with the value itself, which must not be changed."""
        return self.attach(Read(fn))

    def layer(self) -> int:
        """The block this hook point stands in; ValueError outside of blocks."""
        if not self.name.startswith("blocks."):
            raise ValueError(f"{self.name or 'this hook point'} does not stand in a block, so it has no layer")
        return int(self.name.split(".")[1])

    def attach(self, hook: "Listener", *, prepend: bool = False) -> "Handle":
        """Let a listener of any kind stand here."""
        self.hooks.insert(0 if prepend else len(self.hooks), hook)
        return Handle(self, hook)

    def __repr__(self) -> str:
        return f"HookPoint({self.name or '?'}: {self.axes})"


@dataclass(eq=False)
class Listener:
    """Somebody at a hook point."""

    fn: Callable
    permanent: bool = False

    def fire(self, value: Tensor, point: HookPoint) -> Tensor:
        raise NotImplementedError


class Edit(Listener):
    def fire(self, value: Tensor, point: HookPoint) -> Tensor:
        own = value.clone()  # so that an edit in place reaches nothing that was computed or cached before
        new = self.fn(own, point)
        new = own if new is None else new
        check_replacement(new, value, point)
        return new if new is own else new.clone()  # one buffer may be filled and given back at several hook points


class Read(Listener):
    def fire(self, value: Tensor, point: HookPoint) -> Tensor:
        self.fn(value, point)
        return value


class Backward(Listener):
    def fire(self, value: Tensor, point: HookPoint) -> Tensor:
        if not value.is_floating_point():
            raise RuntimeError(
                f"{point.name} holds integers, which have no gradient: no backward hook can listen there"
            )
        if not is_grad_enabled():
            raise RuntimeError(f"a backward hook at {point.name} needs gradients, but autograd is off (torch.no_grad?)")
        # a fresh alias: its gradient is that of this place alone, even where two hook points pass the same tensor on
        value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        value.register_hook(lambda gradient: self._replace(gradient, point))
        return value

    def _replace(self, gradient: Tensor, point: HookPoint) -> Tensor | None:
        new = self.fn(gradient.clone(), point)
        if new is not None:
            check_replacement(new, gradient, point)
        return new


@dataclass(eq=False)
class Handle:
    """A listener at its hook point; `remove()` takes it away, and doing so twice is harmless."""

    point: HookPoint
    hook: Listener

    def remove(self) -> None:
        if self.hook in self.point.hooks:
            self.point.hooks.remove(self.hook)


def by_name(fn: HookFunction) -> HookFunction:
    """A function of (value, hook point), for one that takes the hook point as `hook` somewhere else."""
    try:
        named = "hook" in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a builtin that does not tell its parameters
        named = False
    return ByName(fn) if named else fn


@dataclass(frozen=True)
class ByName:
    """A function that takes the hook point as `hook`, called as one of (value, hook point); it can be pickled."""

    fn: Callable[..., Tensor | None]

    def __call__(self, value: Tensor, point: HookPoint) -> Tensor | None:
        return self.fn(value, hook=point)


def pairs_of(hooks: Iterable[Any], argument: str) -> list[tuple[Any, HookFunction]]:
    """The pairs of a name, or another filter, and a function that an argument holds.

    Raises TypeError, and says how the argument is written, where it is anything else.

    >>> pairs_of(("hook_embed", print), "fwd_hooks")
    Traceback (most recent call last):
    TypeError: fwd_hooks is a list of pairs, [(name, function), ...], and has 'hook_embed' where a pair should be
    """
    pairs = [*hooks]
    for one in pairs:
        if not isinstance(one, (tuple, list)) or len(one) != 2 or not callable(one[1]):
            raise TypeError(
                f"{argument} is a list of pairs, [(name, function), ...], and has {one!r:.60} where a pair should be"
            )
    return pairs


class HookShapeError(ValueError):
    """What was put back at a hook point does not fit its place."""


def check_replacement(new: object, old: Tensor, point: HookPoint) -> None:
    """Raise HookShapeError unless `new` has the shape, dtype and device of the value it replaces."""
    if not isinstance(new, Tensor):
        raise HookShapeError(f"{point.name} got a {type(new).__name__} back; a hook returns a tensor or None")
    if new.shape == old.shape and new.dtype == old.dtype and new.device == old.device:
        return
    raise HookShapeError(explain(point.name, point.axes, point.sizes, old, new))


def named_hook_points(root: nn.Module) -> Iterator[tuple[str, HookPoint]]:
    """Every hook point below a module, with its dotted name."""
    for path, module in root.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, HookPoint):
                yield f"{path}.{attribute}" if path else attribute, value
