"""A tape: what a part of a body did, to be done again at other steps or in other traces.

It keeps nodes, not lazy tensors: what nobody else holds is not kept alive by it.
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nnzoo.tracing.arguments import lazies, name_of, operands, with_nodes
from nnzoo.tracing.graph import Line, Node, fill
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lengths import SIZES, keys, map_lengths, numbers, tag
from nnzoo.tracing.lines import add_note, user_line
from nnzoo.tracing.modes import Modes, restored

if TYPE_CHECKING:
    from nnzoo.tracing.recorder import Recorder


@dataclass(frozen=True)
class Read:
    """A place was read."""

    hook: str
    step: int
    node: Node

    @property
    def line(self) -> Line:
        return self.node.line

    @property
    def uses(self) -> tuple[Any, ...]:
        return ()

    @property
    def results(self) -> tuple[Any, ...]:
        return (self.node,)


@dataclass(frozen=True)
class Write:
    """A place was set."""

    hook: str
    step: int
    value: Any  # a node, or a real tensor
    line: Line
    results: tuple[Any, ...] = ()

    @property
    def uses(self) -> tuple[Any, ...]:
        return operands((self.value,))[0]


@dataclass(frozen=True)
class Do:
    """A function was called on traced values."""

    fn: Callable
    args: tuple
    kwargs: dict
    shapes: Callable | None
    results: tuple[Any, ...]  # nodes, and the keys of the sizes that it told
    modes: Modes | None  # PyTorch's, where they are not those of the whole body
    line: Line

    @property
    def uses(self) -> tuple[Any, ...]:
        return (*operands((self.args, self.kwargs))[0], *keys((self.args, self.kwargs)))

    def __getstate__(self) -> dict[str, Any]:
        is_attribute = getattr(self.fn, "__name__", "") == "__get__"  # of a tensor; what reads it has no name in Python
        return vars(self) | {"fn": name_of(self.fn) if is_attribute else self.fn}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fn = state["fn"]
        vars(self).update(state, fn=getattr(Tensor, fn).__get__ if isinstance(fn, str) else fn)


@dataclass(frozen=True)
class Watch:
    """A module of the user's own was called and watched."""

    module: nn.Module
    seen: Any  # (args, kwargs, output) with nodes
    step: int
    line: Line
    results: tuple[Any, ...] = ()

    @property
    def uses(self) -> tuple[Any, ...]:
        return tuple(one for one in tree_leaves(self.seen) if isinstance(one, Node))


Entry = Read | Write | Do | Watch


@dataclass(eq=False)
class Tape:
    """The entries, in the order in which they were recorded; `why` says what it is for, where it forbids something."""

    why: str
    entries: list[Entry] = field(default_factory=list)
    kept: list["StepValues"] = field(default_factory=list)
    start: int = 0  # the index of the first node that may be on it

    def did(self, fn: Callable, args: tuple, kwargs: dict, shapes: Callable | None, result: Any, modes: Any) -> Any:
        """A function was called; its result, in which sizes know that they may be others."""
        results: tuple[Any, ...] = tuple(lazy._node for lazy in lazies(result))
        if name_of(fn) in SIZES:
            result, results = tag(result)
        self.entries.append(Do(fn, with_nodes(args), with_nodes(kwargs), shapes, results, modes, user_line()))
        return result

    def keep(self, value: LazyTensor) -> Any:
        """A list that will have a value of this kind for each step."""
        self.kept.append(StepValues(value))
        return self.kept[-1]

    def play(self, player: "Player") -> None:
        """Do it all again."""
        for entry in self.entries:
            player.play(entry)


class Player:
    """Does entries again in a trace, reading and setting places by `read` and `put`: `where`, an error says.

    `new` has the new node for an old one, and the new number for the key of a size; a node that is not in it was
    recorded before the tape, and stands for itself.
    """

    def __init__(
        self,
        recorder: "Recorder",
        read: Callable[[str, int], LazyTensor],
        put: Callable[[str, int, Tensor], None],
        watch: Callable[[nn.Module, Any, int], None],
        where: str,
        new: MutableMapping[Any, Any] | None = None,
    ) -> None:
        self._where = where
        self._recorder, self._read, self._put, self._watch = recorder, read, put, watch
        self.new: MutableMapping[Any, Any] = {} if new is None else new

    def play(self, entry: Entry) -> None:
        """Do one entry again; what it adds to the graph is of the line where it was recorded."""
        nodes = self._recorder.nodes
        before = len(nodes)
        try:
            self._do(entry)
        except Exception as error:
            add_note(error, f"{self._where}, recorded at {entry.line}")
            error.line = entry.line  # type: ignore[attr-defined]  # where its traceback ends
            raise
        for node in nodes[before:]:
            node.line = entry.line

    def _do(self, entry: Entry) -> None:
        if isinstance(entry, Read):
            self.new[entry.node] = self._read(entry.hook, entry.step)._node
        elif isinstance(entry, Write):
            self._put(entry.hook, entry.step, fill(entry.value, self.value))
        elif isinstance(entry, Watch):
            seen = tree_map(lambda one: self.value(one) if isinstance(one, Node) else one, entry.seen)
            self._watch(entry.module, seen, entry.step)
        else:
            self._call(entry)

    def _call(self, entry: Do) -> None:
        args, kwargs = map_lengths(lambda length: length.now(self.new), (entry.args, entry.kwargs))
        with restored(entry.modes):
            result = self._recorder.record(entry.fn, fill(args, self.value), fill(kwargs, self.value), entry.shapes)
        told = numbers(result) if name_of(entry.fn) in SIZES else (lazy._node for lazy in lazies(result))
        self.new.update(zip(entry.results, told, strict=False))

    def value(self, node: Node) -> LazyTensor:
        """What an old node's value is now."""
        return LazyTensor(self.new.get(node, node), self._recorder)


class StepValues(list):
    """One value for each step of a `with tracer.iter[...]`, filled when the steps are known."""

    def __init__(self, first: LazyTensor) -> None:
        super().__init__([first])
        self.first = first

    def save(self) -> "StepValues":
        """Itself: it is kept."""
        return self
