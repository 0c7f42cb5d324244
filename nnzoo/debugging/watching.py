"""`nnzoo.debug()`: every hook point that a pass goes by is checked, whichever model it is and however it is run.

Outside of the context nothing is there: hook points are called as always. Inside, `HookPoint.__call__` is one that
checks, for what runs in the context that opened it; other threads go on as before. Norms and attention compute their
statistics and patterns, as they do when somebody listens there, so that these are checked as well.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from nnzoo.architectures.hooks import Handle, HookPoint, Read
from nnzoo.debugging.checks import Checks, Scene


@contextmanager
def debug() -> Iterator[Checks]:
    """Check every hook point while models run inside the `with`: plain passes, caches, traces, generations.

    At each hook point: the axes are those that it declares, and each has one size in all of the run (a mismatch names
    both places); numbers are of one dtype; all are finite. What is wrong is raised where it first is: `HookShapeError`
    for a shape or a dtype, `NonFiniteError` for NaN or infinity, with the position and head, and the hook point before
    that was still finite. What it gives prints as a table of the sizes of axes in each run.

    Passes take two to four times as long inside. Values that are made on request only (`hook_result`, `hook_attn_in`,
    the heads' own inputs) are checked where somebody listens to them.

    >>> import nnzoo
    >>> model = nnzoo.LanguageModel("nnzoo/tiny-gpt2")
    >>> with nnzoo.debug() as checks:
    ...     with model.trace("The capital of France is"):
    ...         logits = model.output.save()
    >>> checks.runs[0].sizes["pos"]
    (5, 'hook_tokens')
    >>> with nnzoo.debug(), model.trace("The capital of France is"):
    ...     model.transformer.h[1].mlp.act.output[:, 3] /= 0
    ...     logits = model.output.save()
    Traceback (most recent call last):
    nnzoo.debugging.faults.NonFiniteError: blocks.1.mlp.hook_post is the first hook point of this run that is not ...
    """
    watch = Watch()
    with ExitStack() as stack:
        stack.enter_context(_CHECKED.on())
        stack.enter_context(watch.asking())
        token = _WATCH.set(watch)
        stack.callback(_WATCH.reset, token)
        yield watch.checks


class Watch:
    """Follows modules and hook points, and hands each value to the checks."""

    def __init__(self) -> None:
        self.checks, self.scene = Checks(), Scene()
        self._asked: dict[int, list[Handle]] = {}  # by module that is running

    def passing(self, point: HookPoint, value: Tensor) -> Tensor:
        """A value at a hook point: before somebody changes it, and after."""
        self.checks.check(self.scene, point, value)
        if all(hook is _ASKED for hook in point.hooks):
            return value
        with self._aside():
            new = _CHECKED.plain(point, value)
        if new is not value:
            self.checks.check(self.scene, point, new, put_back=True)
        return new

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """What hooks run is no part of the pass."""
        here, self.scene = self.scene, Scene()
        try:
            yield
        finally:
            self.scene = here

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Follow which modules run, and let each compute what it has hook points for."""
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if _WATCH.get() is self and not is_compiling():
            self.checks.enter(self.scene, module)
            if not self._is_apart(args):
                points = [p for p in vars(module).values() if isinstance(p, HookPoint) and not p.on_request]
                self._asked.setdefault(id(module), []).extend(point.attach(_ASKED) for point in points)

    def _is_apart(self, args: tuple) -> bool:
        """Whether a module was called on something else than a pass has: shapes alone, or more axes."""
        shape_only = any(isinstance(value, Tensor) and value.is_meta for value in args)
        return shape_only or (self.scene.apart is not None and bool(args) and getattr(args[0], "ndim", 3) > 3)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if _WATCH.get() is self and not is_compiling():
            for handle in self._asked.pop(id(module), []):
                handle.remove()
            self.checks.leave(self.scene, module)


class Checked:
    """`HookPoint.__call__` while anybody debugs; counted, since contexts of several threads overlap."""

    def __init__(self) -> None:
        self.plain = HookPoint.__call__
        self._lock, self._users = Lock(), 0

    @contextmanager
    def on(self) -> Iterator[None]:
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._users += change
            type.__setattr__(HookPoint, "__call__", _checked if self._users else self.plain)


def _checked(point: HookPoint, value: Any) -> Any:
    watch = _WATCH.get()
    if watch is None or is_compiling() or not isinstance(value, Tensor):  # a toy model's hook point may hold anything
        return _CHECKED.plain(point, value)
    if value.is_meta:  # shapes that a trace works out before it runs
        return _CHECKED.plain(point, value)
    return watch.passing(point, value)


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)
_CHECKED = Checked()
_ASKED = Read(lambda value, point: None)  # somebody listens: the slower path, which has the value
