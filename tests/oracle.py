"""An oracle for the random bodies of trace_programs.py, which knows nothing of graphs.

The oracle runs the body as plain PyTorch on the values that arrived at each place of each prompt run alone, in program
order, gives the model what then stands at the places, and repeats this until the values that arrive no longer change:
one pass, one truth. A look sees the fixed point of the body so far.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from trace_programs import WHOLE, Asked, Program, World, run

GROWING = {"pos", "query", "key", "key_pos"}
LAST = "unembed.hook_out"
INTEGERS = {"hook_tokens", "hook_positions"}


@dataclass
class Tie:
    """A prompt's value, and the part of a whole that it is; how often each was written into when they were alike."""

    piece: Tensor
    whole: Tensor
    part: Tensor

    def __post_init__(self) -> None:
        self.seen = self.piece._version, self.whole._version


class Plain(World):
    """The body on real tensors: what stands at the places of each prompt."""

    def __init__(self, program: Program, axes: dict[str, Sequence[str]], arrived: list[dict[str, Tensor]]) -> None:
        self.program, self.axes = program, axes
        self.standing = [{p: value.clone() for p, value in one.items()} for one in arrived]
        self.owners = {
            v.untyped_storage().data_ptr(): (i, p) for i, s in enumerate(self.standing) for p, v in s.items()
        }
        self.keep: list[Any] = [dict(one) for one in self.standing]
        self.wholes: dict[tuple[int, ...], Tensor] = {}  # by the ids of their parts
        self.ties: list[Tie] = []
        self.outcomes: list[float] = []
        self.n_looks = 0
        self.now: list[int] = []
        self.n = 0

    @contextmanager
    def scope(self, which: int) -> Iterator[None]:
        self.now = list(range(self.n)) if which == WHOLE else [which]
        self.n = max(self.n, which + 1)
        yield

    def look(self, value: Tensor) -> float:
        self.n_looks += 1
        if self.n_looks > len(self.outcomes):
            raise Seen(value)
        return self.outcomes[self.n_looks - 1]

    def read(self, place: str) -> Tensor:
        if len(self.now) == 1:
            return self.standing[self.now[0]][place]
        pieces = [self.standing[i][place] for i in self.now]
        key = tuple(id(piece) for piece in pieces)
        if key not in self.wholes:
            self.tie(place, stack(self.axes[place], pieces))
        return self.wholes[key]

    def tie(self, place: str, whole: Tensor) -> None:
        pieces, start = [self.standing[i][place] for i in self.now], 0
        self.wholes[tuple(id(piece) for piece in pieces)] = whole
        self.keep.append(pieces)
        for piece in pieces:
            self.ties.append(Tie(piece, whole, part(self.axes[place], whole, start, piece.shape)))
            start += len(piece)

    def after(self) -> None:
        """What was written is seen through all that shows it: prompts' values first, then wholes."""
        for tie in self.ties:
            if tie.seen[1] != tie.whole._version:
                tie.piece.copy_(tie.part)
        for tie in self.ties:
            if tie.seen[0] != tie.piece._version:
                tie.part.copy_(tie.piece)
        for tie in self.ties:
            tie.seen = tie.piece._version, tie.whole._version

    def put(self, place: str, value: Tensor) -> None:
        if len(self.now) == 1:
            self._put(self.now[0], place, value)
            return
        if value is self.read(place):
            return
        pointer, start = value.untyped_storage().data_ptr(), 0
        if pointer in self.owners or pointer in self.in_wholes:
            value = value.clone()  # it is the memory of another place
        self.keep.append(value)
        for i in self.now:
            shape = self.standing[i][place].shape
            self._put(i, place, part(self.axes[place], value, start, shape).clone())
            start += len(self.program.prompts[i].tokens)
        self.tie(place, value)

    @property
    def in_wholes(self) -> set[int]:
        return {tie.whole.untyped_storage().data_ptr() for tie in self.ties}

    def _put(self, i: int, place: str, value: Tensor) -> None:
        if value is self.standing[i][place]:
            return
        pointer = value.untyped_storage().data_ptr()
        if self.owners.get(pointer, (i, place)) != (i, place) or pointer in self.in_wholes:
            value = value.clone()  # two places do not share memory
        self.keep.append(value)
        self.owners[value.untyped_storage().data_ptr()] = (i, place)
        self.standing[i][place] = value


class Flow(Plain):
    """The body on tensors that know which places' values they were made of: no matter which numbers these are."""

    def __init__(self, program: Program, axes: dict[str, Sequence[str]], arrived: list[dict[str, Tensor]]) -> None:
        super().__init__(program, axes, arrived)
        self.order = list(arrived[0])  # the model's
        self.standing = [
            {place: made_of({(i, place)}, value) for place, value in one.items()} for i, one in enumerate(self.standing)
        ]

    def _put(self, i: int, place: str, value: Tensor) -> None:
        if value is self.standing[i][place]:
            return
        super()._put(i, place, value)
        self.standing[i][place] = made_of({(i, place)} | sources_of(value), self.standing[i][place].detach())

    def look(self, value: Tensor) -> float:
        return 0.0

    def goes_round(self) -> bool:
        """Whether some place is never left, however often every pass goes on as far as it can."""
        needs = {(i, place): sources_of(value) for i, one in enumerate(self.standing) for place, value in one.items()}
        left: set[tuple[int, str]] = set()
        while True:
            come = {(i, p) for i, p in needs if all((i, q) in left for q in self.order[: self.order.index(p)])}
            more = {at for at in come if needs[at] <= come}
            if more == left:
                return len(left) < len(needs)
            left = more


class Known(Tensor):
    """A tensor that knows what it was made of, and shares with its aliases what was written into their memory."""

    made_of: frozenset
    written: set

    @classmethod
    def __torch_function__(cls, fn: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = [one for one in tree_leaves([args, kwargs]) if isinstance(one, Tensor)]
        with torch._C.DisableTorchFunctionSubclass():
            sources = set().union(*map(sources_of, given))
            versions = [one._version for one in given]
            result = fn(*args, **(kwargs or {}))
            for one, version in zip(given, versions, strict=True):
                if one._version != version:
                    one.written.update(sources)
            return tree_map_only(
                Tensor, lambda one: one if isinstance(one, Known) else made_of(sources, one, given), result
            )


def made_of(sources: set, value: Tensor, given: Sequence[Tensor] = ()) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        pointer = value.untyped_storage().data_ptr()
        known = value.as_subclass(Known)
        aliased = [
            one for one in (value, *given) if isinstance(one, Known) and one.untyped_storage().data_ptr() == pointer
        ]
        known.made_of, known.written = frozenset(sources), aliased[0].written if aliased else set()
    return known


def sources_of(value: Tensor) -> set:
    return value.made_of | value.written if isinstance(value, Known) else set()


class Seen(Exception):
    """A look that nobody has answered yet."""


def stack(axes: Sequence[str], pieces: list[Tensor]) -> Tensor:
    sizes = [max(piece.shape[d] for piece in pieces) for d in range(pieces[0].ndim)]
    out = pieces[0].new_zeros(sum(len(piece) for piece in pieces), *sizes[1:])
    start = 0
    for piece in pieces:
        part(axes, out, start, piece.shape).copy_(piece)
        start += len(piece)
    return out


def part(axes: Sequence[str], whole: Tensor, start: int, shape: Sequence[int]) -> Tensor:
    index = [slice(start, start + shape[0])]
    index += [slice(whole.shape[d] - n if axes[d] in GROWING else 0, None) for d, n in enumerate(shape) if d]
    return whole[tuple(index)]


def alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[place].nan_to_num(12345.0), b[place].nan_to_num(12345.0)) for place in a)


@dataclass
class Truth:
    """The oracle of one native model."""

    model: nn.Module
    places: list[str]
    axes: dict[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.axes = {name: point.axes.split() for name, point in self.model.hook_points.items()}

    def __call__(self, program: Program) -> tuple[list[Tensor], list[Tensor], list[float]]:
        """The variables, each prompt's logits, and what looks saw."""
        outcomes: list[float] = []
        while True:
            variables, logits, seen = self._fixed_point(program, outcomes)
            if seen is None:
                return variables, logits, outcomes
            outcomes.append(seen)

    def circle(self, program: Program) -> int | None:
        """The statement that sets a place from what needs it, if there is one."""
        self.used = program.places(self.places)
        world = Flow(program, self.axes, [self._arrivals(one, {}) for one in program.prompts])
        return next((done - 1 for done, _ in run(program, self.places, world) if world.goes_round()), None)

    def _fixed_point(self, program: Program, outcomes: list[float]) -> tuple[list[Tensor], list[Tensor], float | None]:
        self.used = program.places(self.places)
        arrived = [self._arrivals(one, {}) for one in program.prompts]
        stood: list[dict[str, Tensor] | None] = [None] * len(arrived)
        for _ in range(len(program.prompts) * (len(self.places) + 2)):
            world = Plain(program, self.axes, arrived)
            world.outcomes = outcomes
            variables: list[Tensor] = []
            seen = None
            try:
                for _, variables in run(program, self.places, world):  # noqa: B007
                    pass
            except Seen as look:
                seen = float(look.args[0])
            after = [
                old if ran is not None and alike(ran, standing) else self._arrivals(asked, standing)
                for asked, standing, ran, old in zip(program.prompts, world.standing, stood, arrived, strict=True)
            ]
            stood = [{place: value.clone() for place, value in one.items()} for one in world.standing]
            if all(alike(new, old) for new, old in zip(after, arrived, strict=True)):
                return variables, [one[LAST] for one in world.standing], seen
            arrived = after
        raise AssertionError("no fixed point: the body sets a place from a later one")

    def _arrivals(self, asked: Asked, standing: dict[str, Tensor]) -> dict[str, Tensor]:
        arrived: dict[str, Tensor] = {}

        def pass_by(value: Tensor, hook: Any) -> Tensor:
            arrived[hook.name] = value.clone(memory_format=torch.contiguous_format)
            return standing.get(hook.name, value)

        with torch.no_grad():
            places = dict.fromkeys([*self.used, LAST])
            self.model.run_with_hooks(
                asked.tokens, attention_mask=asked.mask, fwd_hooks=[(place, pass_by) for place in places]
            )
        return arrived
