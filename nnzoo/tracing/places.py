"""Places: what a body reads and sets at the model's hook points, for one prompt or for the whole batch."""

from collections.abc import Sequence
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor

from nnzoo.architectures.hooks import HookShapeError
from nnzoo.architectures.shape_errors import explain
from nnzoo.tracing.arguments import to_meta
from nnzoo.tracing.graph import Arrive, Invoke, Node, Place, Put, Stage, Storage
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import Recorder
from nnzoo.tracing.shapes import Shapes
from nnzoo.tracing.wholes import Wholes, parts_of


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

    def __init__(self, recorder: Recorder, shapes: Shapes) -> None:
        self._recorder, self._shapes = recorder, shapes

    @cached_property
    def _wholes(self) -> Wholes:
        return Wholes(self._recorder)

    def read(self, invokes: Sequence[Invoke], hook: str, step: int) -> LazyTensor:
        """The value at a hook point, with all that was done to it so far; of several invokes as one padded batch."""
        self._recorder.check_open()
        if len(invokes) == 1:
            return LazyTensor(self._place(invokes[0], hook, step).current, self._recorder)
        whole = self._wholes.of(self._pieces(invokes, hook, step), self._shapes.axes(hook), hook)
        return LazyTensor(whole, self._recorder)

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
        self._put_whole(invokes, hook, step, source)

    def _put_whole(self, invokes: Sequence[Invoke], hook: str, step: int, source: Node) -> None:
        recorder = self._recorder
        if source.storage.place is not None or source.storage.written is not None:
            source = recorder.function(torch.clone, source)
        parts = parts_of(self._shapes.axes(hook), self._pieces(invokes, hook, step))
        for invoke, part in zip(invokes, parts, strict=True):
            own = recorder.function(Tensor.__getitem__, source, part)
            self._put(self._place(invoke, hook, step), recorder.function(torch.clone, own))
        self._wholes.tie(source, self._pieces(invokes, hook, step), parts)

    # --- one prompt ----------------------------------------------------------------------------------------------

    def _put(self, place: Place, source: Node) -> None:
        recorder = self._recorder
        if source.storage.place is not place and (source.storage.place or source.storage.written):
            source = recorder.function(torch.clone, source)  # another place's own tensor: this one needs its own
        node = recorder.add(Put, (source,), storage=source.storage, meta=source.meta, place=place, hook=place.hook)
        recorder.settle(node, place)
        source.storage.place = place
        place.current = node
        recorder.puts.append(node)

    def _place(self, invoke: Invoke, hook: str, step: int) -> Place:
        place = invoke.places.get((hook, step))
        if place is None:
            place = Place(hook, invoke, Stage(step, self._recorder.order[hook]), self._shapes.axes(hook))
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

    def _pieces(self, invokes: Sequence[Invoke], hook: str, step: int) -> list[Node]:
        return [self._place(invoke, hook, step).current for invoke in invokes]

    def _node_of(self, value: Tensor, hook: str) -> Node:
        if isinstance(value, LazyTensor):
            self._recorder.check_ours(value)
            return value._node
        if not isinstance(value, Tensor):
            raise HookShapeError(f"{hook} takes a tensor, not a {type(value).__name__}")
        return self._recorder.function(torch.clone, value, meta=to_meta(value))

    def _check_fits(self, new: Tensor, old: Tensor, hook: str) -> None:
        if new.shape != old.shape or new.dtype != old.dtype:
            point = self._shapes.points[hook]
            raise HookShapeError(explain(hook, point.axes, point.sizes, old, new))
