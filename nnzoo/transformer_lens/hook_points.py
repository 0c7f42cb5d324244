"""HookPoint and its methods by TransformerLens's names, for toy models of your own and for the hook points of ours.

class Toy(HookedRootModule):
    def __init__(self):
        super().__init__()
        self.hook_square = HookPoint()
        self.setup()

    def forward(self, x):
        return self.hook_square(x * x)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nnzoo.architectures import hooks
from nnzoo.architectures.hooks import Handle, by_name

HookFunction = Callable[..., Any]  # fn(value, hook) gives a replacement, or None
HEADS = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result")  # an axis of heads follows that of positions


@dataclass
class LensHandle:
    """A hook as `fwd_hooks` and `bwd_hooks` show it; `hook.remove()` takes it away."""

    hook: Handle
    is_permanent: bool = False
    context_level: int | None = None
    user_hook: Callable | None = None


@dataclass(eq=False)
class Edit(hooks.Edit):
    user_hook: Callable | None = None
    level: int | None = None


@dataclass(eq=False)
class FreeEdit(Edit):
    """What is put back may have any shape: a toy model declares none."""

    def fire(self, value: Any, point: hooks.HookPoint) -> Any:
        own = value.clone() if isinstance(value, Tensor) else value
        new = self.fn(own, point)
        return own if new is None else new


@dataclass(eq=False)
class Backward(hooks.Backward):
    user_hook: Callable | None = None
    level: int | None = None


class LensPoint(hooks.HookPoint):
    """A hook point with TransformerLens's methods; those of a HookedTransformer are of this class."""

    edit: type[Edit] = Edit

    def add_hook(  # their order of arguments
        self,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> Handle:
        """Call `hook(value, hook=point)` at every pass, and go on with what it returns, or what it made of the value.

        `dir="bwd"` listens to the gradient. Raises ValueError for another direction.
        """
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"dir is 'fwd' or 'bwd', not {dir!r}")
        kind = self.edit if dir == "fwd" else Backward
        return self.attach(kind(by_name(hook), is_permanent, hook, level), prepend=prepend)

    def add_perma_hook(self, hook: HookFunction, dir: str = "fwd") -> Handle:
        """A hook that `reset_hooks` leaves."""
        return self.add_hook(hook, dir, is_permanent=True)

    @property
    def fwd_hooks(self) -> list[LensHandle]:
        return [self._shown(one) for one in self.hooks if not isinstance(one, hooks.Backward)]

    @property
    def bwd_hooks(self) -> list[LensHandle]:
        return [self._shown(one) for one in self.hooks if isinstance(one, hooks.Backward)]

    def handles(self, dir: str = "both") -> list[LensHandle]:
        """The hooks of a direction: "fwd", "bwd" or "both"."""
        if dir not in ("fwd", "bwd", "both"):
            raise ValueError(f"dir is 'fwd', 'bwd' or 'both', not {dir!r}")
        return (self.fwd_hooks if dir != "bwd" else []) + (self.bwd_hooks if dir != "fwd" else [])

    def has_hooks(self, dir: str = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether somebody listens, of a direction and of a level of nested `hooks` contexts."""
        found = [one for one in self.handles(dir) if including_permanent or not one.is_permanent]
        return any(level is None or one.context_level == level for one in found)

    def remove_hooks(self, dir: str = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Take hooks away: all, permanent ones too, if asked; else those of the level."""
        for one in self.handles(dir):
            of_level = level is None or one.context_level == level
            if including_permanent or (of_level and not one.is_permanent):
                one.hook.remove()

    def clear_context(self) -> None:
        """Empty `ctx`, where hooks keep what they like."""
        self.ctx = {}

    def _shown(self, one: hooks.Listener) -> LensHandle:
        level, fn = getattr(one, "level", None), getattr(one, "user_hook", one.fn)
        return LensHandle(Handle(self, one), one.permanent, level, fn)


class _AnyPoint(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return super().__instancecheck__(instance) or (cls is HookPoint and isinstance(instance, LensPoint))


class HookPoint(nn.Module, LensPoint, metaclass=_AnyPoint):
    """A place in the forward pass of a toy model: gives back what it is given, and lets hooks look and change.

    `isinstance(point, HookPoint)` holds for the hook points of a HookedTransformer as well.

    >>> import torch
    >>> point = HookPoint()
    >>> handle = point.add_hook(lambda value, hook: value + 1)
    >>> point(torch.zeros(2))
    tensor([1., 1.])
    """

    edit = FreeEdit

    def __init__(self) -> None:
        super().__init__()
        LensPoint.__init__(self, "pos _")
        # nn.Module calls `forward`, and so PyTorch's own hooks work here too

    def forward(self, x: Any) -> Any:
        return LensPoint.__call__(self, x)

    def give_name(self, name: str) -> None:
        """Called by `setup`: the name decides which axis `pos_slice` cuts, as in TransformerLens."""
        self.name = name
        self.axes = "pos head _" if name.endswith(HEADS) else "pos _"

    def __repr__(self) -> str:
        counts = ((len(self.fwd_hooks), "fwd"), (len(self.bwd_hooks), "bwd"))
        parts = [f"name={self.name!r}"] * bool(self.name) + [f"{n} {which}" for n, which in counts if n]
        return f"HookPoint({', '.join(parts)})"


def __getattr__(name: str) -> Any:
    if name == "HookedRootModule":  # where version 2 has it
        from nnzoo.transformer_lens.HookedRootModule import HookedRootModule

        return HookedRootModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
