"""Modules of the user's own, put into the tree of a model: `model.transformer.h[3].mlp.sae = my_module`.

They are called on values of a trace's body, or on real tensors. `hook=True` lets the body look at what went in and
what came out, of the module and of every module inside it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils._pytree import tree_map

from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lines import user_line
from nnzoo.tracing.recorder import TraceError
from nnzoo.tracing.tape import Watch

if TYPE_CHECKING:
    from nnzoo.language_model import LanguageModel
    from nnzoo.tracing.tracer import Tracer


@dataclass(frozen=True)
class Kept:
    """A traced value by its node: a lazy tensor that nobody else holds is not computed, and stays so."""

    node: Any
    recorder: Any


@dataclass(frozen=True)
class Seen:
    """What went into a call that was watched, and what came out; of which prompts, at which step of a generation."""

    args: tuple
    kwargs: dict[str, Any]
    output: Any
    invokes: tuple
    step: int
    by_edit: bool  # not by the body itself


def put_away(value: Any) -> Any:
    """A nesting of values without hold on traced ones."""
    return tree_map(lambda t: Kept(t._node, t._recorder) if isinstance(t, LazyTensor) else t, value)


def take_out(value: Any) -> Any:
    """What was put away, as it was."""
    return tree_map(lambda t: LazyTensor(t.node, t.recorder) if isinstance(t, Kept) else t, value)


def note(tracer: "Tracer", module: nn.Module, values: tuple, invokes: tuple, step: int, *, by_edit: bool) -> None:
    """A module was called on values of a trace; `values` are positional arguments, keyword arguments and output."""
    args, kwargs, output = put_away(values)
    seen = tracer.model._watched.setdefault(tracer, {}).setdefault(module, [])
    seen.append(Seen(args, kwargs, output, invokes, step, by_edit))


class Attached:
    """A module of the user's own, by its place in the model. What it does not know, the module itself answers."""

    _module: nn.Module

    def __init__(self, root: "LanguageModel", path: str, module: nn.Module) -> None:
        vars(self).update(_root=root, _path=path, _module=module)

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Call the module; with `hook=True` inside a trace, `.output` and `.input` can be read afterwards."""
        if not hook or self._root._tracer.get() is None:
            return self._module(*args, **kwargs)
        self._reach()
        handles = [
            module.register_forward_hook(self._watch(module), with_kwargs=True) for module in self._module.modules()
        ]
        try:
            return self._module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Attached"]]:
        """The module and all modules inside it with their paths from here, each as it stands in the model's tree."""
        for name, module in self._module.named_modules():
            path = f"{self._path}.{name}" if name else self._path
            yield ".".join(filter(None, [prefix, name])), Attached(self._root, path, module)

    def modules(self) -> Iterator["Attached"]:
        """The module and all modules inside it, each as it stands in the model's tree."""
        for _, module in self.named_modules():
            yield module

    def _watch(self, module: nn.Module) -> Callable[[nn.Module, tuple, dict, Any], None]:
        tracer = self._root.tracer

        def look(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            note(tracer, module, (args, kwargs, output), tuple(tracer._scope), tracer.step, by_edit=False)
            tape = tracer.recorder.tape
            if tape is not None:
                nodes = tree_map(lambda t: t._node if isinstance(t, LazyTensor) else t, (args, kwargs, output))
                tape.entries.append(Watch(module, nodes, tracer.step, user_line()))

        return look

    def _reach(self) -> None:
        """Let edits that call the module come as far as that."""
        tracer = self._root.tracer
        tracer.edits.reach(tracer._scope, self._module, tracer.step)

    def _is_seen(self) -> bool:
        tracer = self._root.tracer
        self._reach()
        found = self._root._watched.get(tracer, {}).get(self._module, [])
        return any(one.invokes == tuple(tracer._scope) and one.step == tracer.step for one in found)

    def _seen(self) -> Seen:
        tracer = self._root.tracer
        invokes, step = tuple(tracer._scope), tracer.step
        self._reach()
        found = self._root._watched.get(tracer, {}).get(self._module, [])
        of_these = [one for one in found if one.invokes == invokes]
        own = [one for one in found if not one.by_edit]
        for fitting in ([one for one in of_these if one.step == step], of_these, own):
            if fitting:
                return fitting[-1]
        raise TraceError(
            f"{self._path} is a module of your own, which no pass calls, and this body has not called it with "
            f"hook=True for this prompt, nor has an edit: model.{self._path}(value, hook=True), then ask for its values"
        )

    @property
    def output(self) -> Any:
        """What the module gave when this body called it last with `hook=True`."""
        return take_out(self._seen().output)

    @property
    def inputs(self) -> tuple[tuple, dict[str, Any]]:
        """What the module was given when this body called it last with `hook=True`: positional and by keyword."""
        seen = self._seen()
        return take_out(seen.args), take_out(seen.kwargs)

    @property
    def input(self) -> Any:
        """The first of `inputs`."""
        args, kwargs = self.inputs
        return args[0] if args else next(iter(kwargs.values()))

    @property
    def path(self) -> str:
        """The dotted path of the module."""
        return self._path

    def _wrap(self, name: Any, found: Any) -> Any:
        return Attached(self._root, f"{self._path}.{name}", found) if isinstance(found, nn.Module) else found

    def __getattr__(self, name: str) -> Any:
        if name in ("_root", "_path", "_module"):  # a copy in the making has none yet
            raise AttributeError(name)
        return self._wrap(name, getattr(self._module, name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "output" and self._is_replaced(value):
            return
        if name in ("output", "input", "inputs"):
            raise AttributeError(
                f"{self._path}.{name} cannot be set: the call is over. Go on with another value in its place, or edit "
                "it: .output[:] = value"
            )
        setattr(self._module, name, value)

    def _is_replaced(self, value: Any) -> bool:
        """Whether `.output = value` is what it was, `.output *= 0`, or what an edit goes on with from now on."""
        if self._root._tracer.get() is None:
            return False
        seen, tracer = self._seen(), self._root.tracer
        if isinstance(value, LazyTensor) and isinstance(seen.output, Kept) and seen.output.node is value._node:
            return True
        if seen.by_edit:
            tracer.edits.replace(tracer._scope, self._module, tracer.step, value)
        return seen.by_edit

    def __delattr__(self, name: str) -> None:
        delattr(self._module, name)

    def __getitem__(self, index: Any) -> Any:
        found = self._module[index]  # type: ignore[index]  # a ModuleList or ModuleDict; others say that they are none
        return self._wrap(index, found)

    def __len__(self) -> int:
        return len(self._module)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        names: Any = iter(self._module)  # type: ignore[call-overload]
        return (self._wrap(i, one) for i, one in enumerate(names))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attached) and other._module is self._module

    def __hash__(self) -> int:
        return hash(self._module)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *dir(self._module)]

    def __repr__(self) -> str:
        return repr(self._module)
