"""What a trace has recorded: nodes in program order, the storages they share, and the places they stand at.

A node is an operation. Its stage is the earliest place of the pass at which everything it needs is there. Nodes that
alias one another share a `Storage`, which knows who wrote it last and who reads it: so an edit in place is seen by
those recorded after it and by no one recorded before.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from nnzoo.tracing.infer import map_tensors


class Stage(NamedTuple):
    """A moment of a run: the step of a generation, and how many hook points of the pass come before."""

    step: int
    order: int


BEFORE = Stage(-1, -1)


@dataclass(eq=False)
class Place:
    """A hook point in one pass: what stands there now, as far as the body has been recorded."""

    hook: str
    stage: Stage
    arrived: "Node | None" = None  # the value as it comes from the model
    current: "Node | None" = None  # the value as the model will go on with it


@dataclass(eq=False)
class Storage:
    """Memory that several nodes look at."""

    place: Place | None = None  # where the model reads it, so that it cannot change later
    writes: list["Node"] = field(default_factory=list)
    readers: list["Node"] = field(default_factory=list)


@dataclass(eq=False)
class Line:
    """Where in the user's code something was recorded."""

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}, in {self.function}"


@dataclass(eq=False, kw_only=True)
class Node:
    """One recorded operation; `args` and `kwargs` hold nodes where its inputs stand."""

    index: int
    stage: Stage
    storage: Storage
    line: Line
    inputs: tuple["Node", ...] = ()
    after: tuple["Node", ...] = ()  # writes that its inputs must have seen
    meta: Any = None  # a meta tensor with the result's shape and dtype, where it is one tensor

    def run(self, operand: Callable[["Node"], Any]) -> Any:
        raise NotImplementedError

    def needs(self) -> tuple["Node", ...]:
        return self.inputs + self.after


@dataclass(eq=False, kw_only=True)
class Arrive(Node):
    """The value of a place as the model computed it."""

    place: Place

    def __str__(self) -> str:
        return self.place.hook


@dataclass(eq=False, kw_only=True)
class Put(Node):
    """From here on, the value of a place is another one."""

    place: Place

    def run(self, operand: Callable[[Node], Any]) -> Any:
        return operand(self.inputs[0])

    def __str__(self) -> str:
        return f"{self.place.hook} = ..."


@dataclass(eq=False, kw_only=True)
class Call(Node):
    """A function of other nodes' values and of constants."""

    fn: Callable
    args: tuple
    kwargs: dict
    versions: tuple[tuple[Tensor, int], ...]  # constants, and how often they had been edited when recorded
    writes: bool = False  # it changes its first input in place

    def run(self, operand: Callable[[Node], Any]) -> Any:
        for tensor, version in self.versions:
            if tensor._version != version:
                raise RuntimeError(
                    f"a tensor {list(tensor.shape)} that is used here was changed in place before the trace ran; "
                    "give the trace a clone of it"
                )
        return self.fn(*fill(self.args, operand), **fill(self.kwargs, operand))

    def __str__(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)


@dataclass(eq=False, kw_only=True)
class Pick(Node):
    """One tensor of a call that gives several."""

    which: int

    def run(self, operand: Callable[[Node], Any]) -> Any:
        leaves: list[Tensor] = []
        map_tensors(leaves.append, operand(self.inputs[0]))
        return leaves[self.which]

    def __str__(self) -> str:
        return f"result {self.which}"


def fill(value: Any, operand: Callable[[Node], Any]) -> Any:
    """Arguments with every node replaced by its value."""
    if isinstance(value, Node):
        return operand(value)
    if isinstance(value, (tuple, list)):
        parts = [fill(part, operand) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: fill(part, operand) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(fill(part, operand) for part in (value.start, value.stop, value.step)))
    return value


def needed(roots: Iterable[Node], puts: Iterable[Node]) -> list[Node]:
    """The nodes that must run to give the roots, in program order.

    Everything that changes a place counts whose stage the pass goes through on its way to the last root.
    """
    found: set[Node] = set()
    for root in roots:
        _collect(root, found)
        for write in root.storage.writes:  # the tensor that comes back shows every edit of its memory
            _collect(write, found)
    last = max((node.stage for node in found), default=BEFORE)
    for node in puts:
        if node.stage <= last:
            _collect(node, found)
    return sorted(found, key=lambda node: node.index)


def _collect(root: Node, found: set[Node]) -> None:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.needs())
