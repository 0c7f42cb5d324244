"""What a trace has recorded: nodes in program order, the storages they share, and the places they stand at.

A node is an operation. `needs` says how far each invoke's pass must have come before it can run. Nodes that alias one
another share a `Storage`, which knows who wrote it last and who reads it: so an edit in place is seen by those recorded
after it and by no one recorded before.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Generator, Tensor

from nnzoo.tracing.infer import map_tensors
from nnzoo.tracing.modes import Modes, restored


class Stage(NamedTuple):
    """A moment of a pass: the step of a generation, and how many hook points of the step come before."""

    step: int
    order: int

    @property
    def is_end(self) -> bool:
        return self.step == LATEST


LOGITS = "unembed.hook_out"  # the place whose value answers .logits and .loss
BEGIN = -1  # before the first hook point of a step
LATEST = sys.maxsize
END = Stage(LATEST, 0)  # the pass is over, the last step of a generation included
AFTER = Stage(LATEST, 1)  # then come the backward passes
BEYOND = Stage(LATEST, 2)  # after all there is


@dataclass(eq=False, repr=False)
class Invoke:
    """The rows of one prompt in a trace: what its body sees is what running it alone would give."""

    index: int
    tokens: Tensor  # [batch pos]
    attention_mask: Tensor | None = None  # [batch pos], False: padding
    labels: Tensor | None = None  # [batch pos], for `.loss`
    decoder: Any = None  # a nnzoo.generation.Decoder, where tokens are generated
    last_only: bool = False  # of the prompt too, only the last position is unembedded
    places: dict[tuple[str, int], "Place"] = field(default_factory=dict)  # by hook point and step

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def n_pos(self) -> int:
        return self.tokens.shape[1]

    def __str__(self) -> str:
        return f"invoke {self.index}"


Needs = Mapping[Invoke, Stage]
NOTHING: Needs = {}


@dataclass(eq=False, repr=False)
class Place:
    """A hook point in one step of an invoke: what stands there now, as far as the body has been recorded."""

    hook: str
    invoke: Invoke
    stage: Stage
    axes: tuple[str, ...] = ()  # the names of its dimensions
    arrived: Any = None  # the node of the value as it comes from the model
    current: Any = None  # the node of the value as the model will go on with it


@dataclass(eq=False, repr=False)
class Storage:
    """Memory that several nodes look at."""

    place: Place | None = None  # where the model reads it, so that it cannot change later
    writes: list["Node"] = field(default_factory=list)
    readers: list["Node"] = field(default_factory=list)
    written: Callable[["Node"], None] | None = None  # who is told of each write


@dataclass(eq=False)
class Line:
    """Where in the user's code something was recorded."""

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}, in {self.function}"


@dataclass(eq=False, kw_only=True, repr=False)
class Node:
    """One recorded operation; `args` and `kwargs` hold nodes where its inputs stand."""

    index: int
    needs: Needs
    storage: Storage
    line: Line
    inputs: tuple["Node", ...] = ()
    after: tuple["Node", ...] = ()  # writes that its inputs must have seen
    meta: Any = None  # a meta tensor with the result's shape and dtype, where it is one tensor
    hook: str | None = None  # the place whose value it is, if it is one
    differentiates: tuple["Node", ...] = ()  # nodes whose gradient it asks for
    view: Any = None  # a nnzoo.tracing.places.View, where it is a place's value in another arrangement
    is_taken = False  # a pass goes on with its value

    def run(self, operand: Callable[["Node"], Any]) -> Any:
        raise NotImplementedError

    def run_in(self, run: Any) -> None:
        """Run, and give a `nnzoo.tracing.run.Run` the value."""
        run.give(self, self.run(lambda one: run.operand(self, one)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.index}: {self}>"

    def __reduce__(self) -> tuple:
        """Of a node on a tape its copies and pickles keep what a tape needs: that it is one and the same, and its line.

        What it was made of is a chain that may be too long for either.
        """
        return named, (self.index, self.line)

    def sources(self) -> tuple["Node", ...]:
        return self.inputs + self.after


def named(index: int, line: Line) -> Node:
    """A node that stands for a value and for nothing else."""
    return Node(index=index, needs=NOTHING, storage=Storage(), line=line)


@dataclass(eq=False, kw_only=True, repr=False)
class Given(Node):
    """A value that the pass itself gives: nothing is to be run."""

    invoke: Invoke | None


@dataclass(eq=False, kw_only=True, repr=False)
class Arrive(Given):
    """The value of a place as the model computed it."""

    def __str__(self) -> str:
        return f"{self.hook}"


@dataclass(eq=False, kw_only=True, repr=False)
class Result(Given):
    """The ids that an invoke's generation ends with."""

    def __str__(self) -> str:
        return "generated ids"


@dataclass(eq=False, kw_only=True, repr=False)
class Chosen(Given):
    """Whether an invoke's generation goes on after a step."""

    def __str__(self) -> str:
        return "goes on"


@dataclass(eq=False, kw_only=True, repr=False)
class Put(Node):
    """From here on, the value of a place is another one."""

    place: Place

    def run(self, operand: Callable[[Node], Any]) -> Any:
        return operand(self.inputs[0])

    def __str__(self) -> str:
        return f"{self.hook} = ..."


@dataclass(eq=False, kw_only=True, repr=False)
class Call(Node):
    """A function of other nodes' values and of constants."""

    fn: Callable
    args: tuple
    kwargs: dict
    versions: tuple[tuple[Tensor, int], ...] = ()  # constants, and how often they had been edited when recorded
    writes: bool = False  # it changes its first input in place
    random: Tensor | None = None  # the random number generator's state at its line, where it draws from it
    changes: tuple[Tensor, ...] = ()  # real tensors that it changes in place
    modes: Modes | None = None  # PyTorch's modes at its line, where they are not those of the trace

    def run(self, operand: Callable[[Node], Any]) -> Any:
        for tensor, version in self.versions:
            if tensor._version != version:
                raise RuntimeError(
                    f"a tensor {list(tensor.shape)} that is used here was changed in place before the trace ran; "
                    "give the trace a clone of it"
                )
        args, kwargs = fill(self.args, operand), fill(self.kwargs, operand)
        if isinstance(kwargs.get("generator"), Generator):
            kwargs["generator"] = kwargs["generator"].clone_state()  # it may run again, and draws the same then
        if self.modes is None and self.random is None:
            return self.fn(*args, **kwargs)
        with restored(self.modes, self.random):
            return self.fn(*args, **kwargs)

    def __str__(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)


@dataclass(eq=False, kw_only=True, repr=False)
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


def changed_by(node: Node) -> Place | None:
    """The place that a node changes, unless another value has been put there since."""
    place = node.storage.place
    if place is None:
        return None
    changes = place.current is node if isinstance(node, Put) else place.current.storage is node.storage
    return place if changes else None


def together(nodes: Iterable[Node]) -> Needs:
    """What must have happened before all of some nodes have run."""
    all_needs: Needs = NOTHING
    for node in nodes:
        needs = node.needs
        if needs is all_needs or not needs:
            continue
        if not all_needs:
            all_needs = needs
        else:
            all_needs = {**all_needs, **{i: max(stage, all_needs.get(i, stage)) for i, stage in needs.items()}}
    return all_needs
