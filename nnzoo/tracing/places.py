"""Places: what a body reads and sets at the model's hook points, for one prompt or for the whole batch."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from einops import rearrange
from torch import Tensor

from nnzoo.architectures.hooks import HookPoint, HookShapeError
from nnzoo.architectures.shape_errors import explain
from nnzoo.tracing.arguments import to_meta
from nnzoo.tracing.graph import Arrive, Invoke, Node, Place, Put, Stage, Storage
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import Recorder, TraceError
from nnzoo.tracing.shapes import Shapes

GROWING = {"pos", "query", "key", "key_pos"}  # axes on which prompts of a batch are padded, on the left


class View:
    """A place's value in another arrangement of its axes, by an einops pattern, and the way back."""

    def __init__(self, pattern: str, shape: Sequence[int]) -> None:
        self.pattern = pattern
        ours, theirs = (side.strip() for side in pattern.split("->"))
        self._back, self._sizes = f"{theirs} -> {ours}", dict(zip(ours.split(), shape, strict=True))

    def undone(self, value: Tensor) -> Tensor:
        """The value as the place holds it."""
        return rearrange(value, self._back, **self._sizes)


class Places:
    """The hook points of a trace's invokes."""

    def __init__(self, recorder: Recorder, shapes: Shapes, points: dict[str, HookPoint]) -> None:
        self._recorder, self._shapes, self._points = recorder, shapes, points
        self._wholes: dict[tuple[str, int], tuple[list, Node]] = {}

    def read(self, invokes: Sequence[Invoke], hook: str, step: int) -> LazyTensor:
        """The value at a hook point, with all that was done to it so far; of several invokes as one padded batch."""
        self._recorder.check_open()
        if len(invokes) == 1:
            return LazyTensor(self._current(invokes[0], hook, step), self._recorder)
        return LazyTensor(self._whole(invokes, hook, step), self._recorder)

    def put(self, invokes: Sequence[Invoke], hook: str, step: int, value: Tensor) -> None:
        """From here on the model goes on with `value` at a hook point.

        Raises HookShapeError where it does not fit, TraceError where it comes too late in the pass.
        """
        self._recorder.check_open()
        here = self.read(invokes, hook, step)._node
        source = self._node_of(value, hook)
        if source is here:
            return
        self._check_fits(source.meta, here.meta, hook)
        if len(invokes) == 1:
            self._put(self._place(invokes[0], hook, step), source)
            return
        if source.storage.place is not None or source.storage.written is not None:
            source = self._recorder.function(torch.clone, source)
        self._pass_on(source, invokes, hook, step)
        for rows, invoke in self._rows(invokes):
            place = self._place(invoke, hook, step)
            self._put(place, self._part(source, rows, place.current.meta, hook))
        self._wholes[hook, step] = (self._version(invokes, hook, step), source)

    # --- one prompt ----------------------------------------------------------------------------------------------

    def _put(self, place: Place, source: Node) -> None:
        recorder = self._recorder
        if source.storage.place not in (None, place) or source.storage.written is not None:
            source = recorder.function(torch.clone, source)  # another place's own tensor: this one needs its own
        node = recorder.add(Put, (source,), storage=source.storage, meta=source.meta, place=place, hook=place.hook)
        recorder.settle(node, place)
        source.storage.place = place
        place.current = node
        recorder.puts.append(node)

    def _place(self, invoke: Invoke, hook: str, step: int) -> Place:
        place = invoke.places.get((hook, step))
        if place is None:
            place = Place(hook, invoke, Stage(step, self._recorder.order[hook]))
            place.arrived = place.current = self._recorder.add(
                Arrive,
                (),
                storage=Storage(place=place),
                needs={invoke: place.stage},
                meta=self._shapes.at(hook, invoke, step),
                invoke=invoke,
                hook=hook,
            )
            invoke.places[hook, step] = place
        return place

    def _current(self, invoke: Invoke, hook: str, step: int) -> Node:
        return self._place(invoke, hook, step).current

    def _node_of(self, value: Tensor, hook: str) -> Node:
        if isinstance(value, LazyTensor):
            self._recorder.check_ours(value)
            return value._node
        if not isinstance(value, Tensor):
            raise HookShapeError(f"{hook} takes a tensor, not a {type(value).__name__}")
        return self._recorder.function(torch.clone, value, meta=to_meta(value))

    def _check_fits(self, new: Tensor, old: Tensor, hook: str) -> None:
        if new.shape != old.shape or new.dtype != old.dtype:
            point = self._points[hook]
            raise HookShapeError(explain(hook, point.axes, point.sizes, old, new))

    # --- the whole batch -----------------------------------------------------------------------------------------

    def _whole(self, invokes: Sequence[Invoke], hook: str, step: int) -> Node:
        """All prompts' values in one tensor, padded on the left; what is written into it goes on to the prompts."""
        version = self._version(invokes, hook, step)
        known = self._wholes.get((hook, step))
        if known is not None and known[0] == version:
            return known[1]
        node = self._recorder.function(stack_prompts, self._shapes.axes(hook), *(piece for piece, _ in version))
        node.hook = hook
        self._pass_on(node, invokes, hook, step)
        self._wholes[hook, step] = (version, node)
        return node

    def _version(self, invokes: Sequence[Invoke], hook: str, step: int) -> list[tuple[Node, int]]:
        """The prompts' values, and how often each was written into."""
        pieces = [self._current(invoke, hook, step) for invoke in invokes]
        return [(piece, len(piece.storage.writes)) for piece in pieces]

    def _pass_on(self, whole: Node, invokes: Sequence[Invoke], hook: str, step: int) -> None:
        """From here on, what is written into the whole is written into the prompts' values too."""

        def pass_on(write: Node) -> None:
            if self._wholes[hook, step] != (self._version(invokes, hook, step), whole):
                raise TraceError(
                    f"this value of the whole batch at {hook} was read before a prompt's own value there changed, and "
                    "writing it would undo that: read it again"
                )
            for rows, invoke in self._rows(invokes):
                piece = self._current(invoke, hook, step)
                part = self._part(whole, rows, piece.meta, hook)
                self._recorder.function(torch.Tensor.copy_, piece, part, edits=piece, meta=piece.meta)
            self._wholes[hook, step] = (self._version(invokes, hook, step), whole)

        whole.storage.written = pass_on

    def _part(self, whole: Node, rows: slice, piece: Tensor, hook: str) -> Node:
        index = own_part(self._shapes.axes(hook), rows, piece.shape)
        return self._recorder.function(torch.Tensor.__getitem__, whole, index)

    @staticmethod
    def _rows(invokes: Sequence[Invoke]) -> list[tuple[slice, Invoke]]:
        ends = accumulate(invoke.rows for invoke in invokes)
        return [(slice(end - i.rows, end), i) for end, i in zip(ends, invokes, strict=True)]


def own_part(axes: Sequence[str], rows: slice, shape: Sequence[int]) -> tuple[slice, ...]:
    """The index of a prompt's own rows and tokens in a batch that is padded on the left."""
    return tuple(
        rows if axis == "batch" else slice(-n, None) if axis in GROWING else slice(None)
        for axis, n in zip(axes, shape, strict=True)
    )


def stack_prompts(axes: Sequence[str], *pieces: Tensor) -> Tensor:
    """Prompts' values at a hook point with these axes as one batch, padded on the left with zeros."""
    longest = [max(sizes) for sizes in zip(*(piece.shape for piece in pieces), strict=True)]

    def padded(piece: Tensor) -> Tensor:
        missing = [n - have if axis in GROWING else 0 for axis, n, have in zip(axes, longest, piece.shape, strict=True)]
        sides = [side for n in reversed(missing) for side in (n, 0)]
        return torch.nn.functional.pad(piece, sides) if any(missing) else piece

    return torch.cat([padded(piece) for piece in pieces])
