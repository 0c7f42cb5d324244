"""The recorder: turns what a body does to lazy tensors into a graph.

Every operation is answered from shapes alone (so a wrong shape is an error at the user's line), gets its stage, and is
tied to the writes that it must see. An operation that needs numbers makes the model run that far.
"""

import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

import einops
import jaxtyping
import torch
from torch import Tensor

from nnzoo.architectures.hooks import HookPoint, HookShapeError
from nnzoo.architectures.shape_errors import explain
from nnzoo.tracing.graph import BEFORE, Arrive, Call, Line, Node, Pick, Place, Put, Stage, Storage
from nnzoo.tracing.infer import Answer, NeedsValues, infer, map_tensors, moves
from nnzoo.tracing.lazy import LazyTensor

_OURS = os.path.dirname(os.path.dirname(__file__))
_LIBRARIES = (_OURS, *(library.__path__[0] for library in (torch, einops, jaxtyping)))
_REAL_DEVICE = {"device", "is_cpu", "is_cuda", "is_meta", "get_device"}  # asked of the model, not of the meta device

_GRADIENTS = {"backward", "grad", "register_hook", "requires_grad_", "retain_grad"}
_LOOKS = {"__reduce_ex__", "data_ptr", "untyped_storage"}  # pickle, copy.copy, torch.save: of numbers, not of shapes
_EDITS = {"__setitem__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}


class TraceError(RuntimeError):
    """What a body asks for cannot be had from one pass of the model."""


class Recorder:
    """The graph of one trace while its body runs.

    `order` numbers the hook points as they fire, `shape_of` gives a hook point's shape and dtype in this pass, and
    `run` runs the model for some nodes and gives their values.
    """

    def __init__(
        self,
        points: dict[str, HookPoint],
        order: dict[str, int],
        shape_of: Callable[[str], Tensor],
        device: torch.device,
        run: Callable[["Recorder", list[Node]], dict[Node, Any]],
    ) -> None:
        self.points, self.order, self.shape_of, self.device = points, order, shape_of, device
        self._run = run
        self._moves = moves(device)
        self.nodes: list[Node] = []
        self.puts: list[Node] = []  # nodes that change what the model goes on with
        self.places: dict[str, Place] = {}
        self.saved: set[Node] = set()
        self.alive: list[weakref.ref[LazyTensor]] = []
        self.open = True
        self.needs_grad = False

    # --- places --------------------------------------------------------------------------------------------------

    def read(self, hook: str) -> LazyTensor:
        """The value at a hook point, with all that was done to it so far."""
        self._check_open()
        return LazyTensor(self._current(self._place(hook)), self)

    def put(self, hook: str, value: Tensor) -> None:
        """From here on the model goes on with `value` at a hook point.

        Raises HookShapeError where it does not fit, TraceError where it comes too late in the pass.
        """
        self._check_open()
        place = self._place(hook)
        arrived = self._current(place)
        source = self._node_of(value, place)
        if source is arrived:
            return
        self._check_fits(source.meta, arrived.meta, hook)
        if source.storage.place not in (None, place):  # another place's own tensor: this place needs one for itself
            source = self._call(torch.clone, (source,), {}, infer(torch.clone, (source.meta,), {}, [source.meta]))
        node = self._add(Put, (source,), storage=source.storage, meta=source.meta, place=place)
        self._check_in_time(node, place)
        node.stage = place.stage
        source.storage.place = place
        place.current = node
        self.puts.append(node)

    def is_logits(self, node: Node) -> bool:
        """Whether a node is the model's output."""
        return isinstance(node, (Arrive, Put)) and node.place.hook == "unembed.hook_out"

    def _place(self, hook: str) -> Place:
        if hook not in self.places:
            self.places[hook] = Place(hook, Stage(0, self.order[hook]))
        return self.places[hook]

    def _current(self, place: Place) -> Node:
        if place.current is None:
            node = self._add(Arrive, (), storage=Storage(place=place), meta=self.shape_of(place.hook), place=place)
            node.stage = place.stage
            place.arrived = place.current = node
        return place.current

    def _node_of(self, value: Tensor, place: Place) -> Node:
        if isinstance(value, LazyTensor):
            self._check_ours(value)
            return value._node
        if not isinstance(value, Tensor):
            raise HookShapeError(f"{place.hook} takes a tensor, not a {type(value).__name__}")
        meta = to_meta(value)
        return self._call(torch.clone, (value,), {}, infer(torch.clone, (meta,), {}, []))

    def _check_fits(self, new: Tensor, old: Tensor, hook: str) -> None:
        if new.shape != old.shape or new.dtype != old.dtype:
            point = self.points[hook]
            raise HookShapeError(explain(hook, point.axes, point.sizes, old, new))

    # --- operations ----------------------------------------------------------------------------------------------

    def record(self, fn: Callable, args: tuple, kwargs: dict, shapes: Callable | None = None) -> Any:
        """What a function of lazy tensors gives: lazy tensors, or plain numbers where shapes decide them.

        `shapes` is a function that answers on the meta device for one that cannot.
        """
        self._check_open()
        name = name_of(fn)
        if getattr(fn, "__name__", "") == "__set__":
            raise TraceError(f".{name} of a traced value cannot be set; make a new value instead")
        if name in _GRADIENTS:
            raise TraceError(
                f".{name} does not work inside a trace yet. Gradients at hook points: "
                'model._model.run_with_cache(prompt, return_type="loss", incl_bwd=True)'
            )
        if name in _REAL_DEVICE:
            empty = torch.empty(0, device=self.device)
            return fn(*map_tensors(lambda t: empty, args), **kwargs)
        if torch.is_autocast_enabled(self.device.type):
            raise TraceError("autocast inside a trace is not implemented: convert values with .to(dtype)")
        if name in _LOOKS:
            return self._now(fn, args, kwargs)
        if name == "__getitem__":
            args = (args[0], _without_masks(args[1]))
        target = _edited(name, args, kwargs)
        if target is not None and not isinstance(target, LazyTensor):
            return self._now(fn, args, kwargs)  # a real tensor is written: it needs the numbers
        inputs = lazies((args, kwargs))
        try:
            answer = self._infer(shapes or self._moves.get(name, fn), name, args, kwargs, inputs)
        except NeedsValues:
            if target is None:
                return self._now(fn, args, kwargs)
            answer = Answer(None, (), ())  # numbers decide which elements are written; shape and dtype stay
        if not answer.leaves and target is None:
            return answer.result
        args, kwargs = _with_nodes(args), _with_nodes(kwargs)
        node = self._call(fn, args, kwargs, answer, edits=None if target is None else target._node)
        if target is not None:
            return None if name == "__setitem__" else target
        return self._lazy_results(node, answer)

    def look(self, node: Node) -> Any:
        """A node's value now: the model runs as far as it needs, with what was recorded so far."""
        self._check_open()
        return self._run(self, [node])[node]

    def _now(self, fn: Callable, args: tuple, kwargs: dict) -> Any:
        nodes = [lazy._node for lazy in lazies((args, kwargs))]
        values = self._run(self, nodes)

        def real(t: Tensor) -> Tensor:
            return values[t._node] if isinstance(t, LazyTensor) else t

        return fn(*map_tensors(real, args), **map_tensors(real, kwargs))

    def _infer(self, fn: Callable, name: str, args: tuple, kwargs: dict, inputs: list[LazyTensor]) -> Answer:
        for lazy in inputs:
            self._check_ours(lazy)
        if name == "__setitem__" and any(m.dtype == torch.bool for m in _index_metas(args[1])):
            return Answer(None, (), ())  # which elements a mask picks only numbers tell; nothing else is to be known
        metas = [lazy._node.meta for lazy in inputs]
        return infer(fn, map_tensors(to_meta, args), map_tensors(to_meta, kwargs), metas)

    def _lazy_results(self, node: Call, answer: Answer) -> Any:
        if isinstance(answer.result, Tensor):
            return LazyTensor(node, self)
        picks = iter(
            [
                self._add(
                    Pick, (node,), storage=node.inputs[a].storage if a is not None else Storage(), meta=meta, which=i
                )
                for i, (meta, a) in enumerate(zip(answer.leaves, answer.aliases, strict=True))
            ]
        )
        return map_tensors(lambda _: LazyTensor(next(picks), self), answer.result)

    def _call(self, fn: Callable, args: tuple, kwargs: dict, answer: Answer, edits: Node | None = None) -> Call:
        inputs, constants = _operands((args, kwargs))
        self.needs_grad |= any(t.requires_grad and not t.is_meta for t in constants)
        aliased = next((a for a in answer.aliases if a is not None), None)
        storage = (
            edits.storage if edits is not None else (inputs[aliased].storage if aliased is not None else Storage())
        )
        meta = answer.leaves[0] if len(answer.leaves) == 1 else None
        versions = tuple((t, t._version) for t in constants if not t.is_inference())
        node = self._add(
            Call,
            inputs,
            storage=storage,
            meta=meta,
            fn=fn,
            args=args,
            kwargs=kwargs,
            versions=versions,
            writes=edits is not None,
        )
        if edits is not None:
            self._edit(node)
        return node

    def _edit(self, node: Call) -> None:
        place = node.storage.place
        if place is not None:
            self._check_in_time(node, place)
            node.stage = place.stage
            self.puts.append(node)
        node.storage.writes.append(node)

    def _add(self, kind: type, inputs: tuple[Node, ...], storage: Storage, meta: Tensor | None, **fields: Any) -> Any:
        after = tuple(node.storage.writes[-1] for node in inputs if node.storage.writes)
        stage = max((node.stage for node in (*inputs, *after)), default=BEFORE)
        node = kind(
            index=len(self.nodes),
            stage=stage,
            storage=storage,
            line=user_line(),
            inputs=inputs,
            after=after,
            meta=meta,
            **fields,
        )
        self.nodes.append(node)
        for one in inputs:
            one.storage.readers.append(node)
        return node

    def _check_in_time(self, node: Node, place: Place) -> None:
        if node.stage > place.stage:
            late = next(hook for hook, order in self.order.items() if order == node.stage.order)
            raise TraceError(
                f"{place.hook} cannot be set from {late}, which the same pass computes later. Take the value from a "
                "trace of its own first, or clone what you want to change: value.clone()"
            )

    def _check_ours(self, lazy: LazyTensor) -> None:
        if lazy._recorder is not self:
            raise TraceError(f"{lazy!r} belongs to another trace")

    def close(self) -> None:
        """The body is over: nodes let go of one another, and of the tensors that they were given."""
        self.open = False
        for node in self.nodes:
            node.inputs = node.after = ()
            node.storage = Storage()
            if isinstance(node, Call):
                node.args, node.kwargs, node.versions = (), {}, ()
        self.nodes, self.puts, self.places = [], [], {}

    def _check_open(self) -> None:
        if not self.open:
            raise TraceError("this value belongs to a trace that ended with an error; it was never computed")


def to_meta(t: Tensor) -> Tensor:
    """A tensor's shape, strides and dtype, without its numbers."""
    if isinstance(t, LazyTensor):
        return t._node.meta
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def name_of(fn: Any) -> str:
    """A function's name; for the getter of a tensor's attribute, the attribute's."""
    name = getattr(fn, "__name__", "")
    return fn.__self__.__name__ if name in ("__get__", "__set__") else name


def lazies(value: Any) -> list[LazyTensor]:
    """The traced values in a nesting of arguments, in order."""
    found: list[LazyTensor] = []
    map_tensors(lambda t: found.append(t) if isinstance(t, LazyTensor) else None, value)
    return found


def user_line() -> Line:
    """The innermost line that is neither ours, nor PyTorch's, nor a type checker's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((*_LIBRARIES, "<@beartype")):
        frame = frame.f_back
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def _edited(name: str, args: tuple, kwargs: dict) -> Tensor | None:
    """The tensor that a function changes in place."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    in_place = name in _EDITS or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace") is True
    first = args[0] if args else next(iter(kwargs.values()), None)  # nn.init.constant_ names even its first
    return first if in_place and isinstance(first, Tensor) else None


def _index_metas(index: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(to_meta(t)), index)
    return found


def _without_masks(index: Any) -> Any:
    """An index whose real boolean masks are replaced by the positions that they pick."""

    def positions(part: Any) -> tuple:
        is_mask = isinstance(part, Tensor) and not isinstance(part, LazyTensor) and part.dtype == torch.bool
        return part.nonzero(as_tuple=True) if is_mask else (part,)

    parts = index if isinstance(index, tuple) else (index,)
    flat = tuple(one for part in parts for one in positions(part))
    return flat if isinstance(index, tuple) or len(flat) != 1 else flat[0]


def _with_nodes(value: Any) -> Any:
    return map_tensors(lambda t: t._node if isinstance(t, LazyTensor) else t, value)


def _operands(value: Any) -> tuple[tuple[Node, ...], list[Tensor]]:
    nodes: list[Node] = []
    constants: list[Tensor] = []
    _visit(value, nodes, constants)
    return tuple(nodes), constants


def _visit(part: Any, nodes: list[Node], constants: list[Tensor]) -> None:
    if isinstance(part, Node):
        nodes.append(part)
    elif isinstance(part, Tensor):
        constants.append(part)
    elif isinstance(part, (tuple, list)):
        for one in part:
            _visit(one, nodes, constants)
    elif isinstance(part, dict):
        _visit(tuple(part.values()), nodes, constants)
    elif isinstance(part, slice):
        _visit((part.start, part.stop, part.step), nodes, constants)
