"""Edits in a file: data that holds no code. One safetensors file, with JSON in its header:

{"format": "nnzoo edits", "version": 1, "model": {...}, "tensors": {...},
 "edits": [[{"steps": null, "at": 0, "entries": [{"kind": "read", "hook": ..., "step": 0, "results": [0]}, ...]}]]}

Functions and arguments are written as a graph's are (`functions.py`, `values.py`). What is read is checked: a function
that is not in the list, or that would edit a tensor which is not the trace's own, is a GraphError.
"""

import json
import sys
from itertools import count
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from nnzoo.envoys.attached import Attached
from nnzoo.tracing.arguments import edited, name_of
from nnzoo.tracing.edits import Edit, Part
from nnzoo.tracing.entries import Parameter, about
from nnzoo.tracing.functions import GraphError, ModuleCall, decode_function, encode_function
from nnzoo.tracing.graph import Line, Node, named
from nnzoo.tracing.lengths import OPERATORS, SIZES, Length
from nnzoo.tracing.modes import Modes
from nnzoo.tracing.stored_tensors import TensorStore, is_sizes, restored_tensors, weight_of
from nnzoo.tracing.tape import Do, Entry, Read, Tape, Watch, Write
from nnzoo.tracing.values import decode_value, encode_value

FORMAT, VERSION = "nnzoo edits", 1
_MOST_NESTED = 50  # operations on sizes


# --- writing ---------------------------------------------------------------------------------------------------------


def save_edits(model: Any, path: str | Path) -> None:
    """Write a model's edits into a file. Raises GraphError where one is more than data."""
    if not model.edits:
        raise ValueError(
            "the model has no edits to save: with model.edit() as edited: ..., then edited.save_edits(path)"
        )
    writer = _Writer(model)
    data = {
        "format": FORMAT,
        "version": VERSION,
        "model": about(model),
        "edits": [writer.edit(edit) for edit in model.edits],
        "tensors": writer.store.about,
    }
    Path(path).write_bytes(save(writer.store.tensors, metadata={"edits": json.dumps(data, allow_nan=False)}))


class _Writer:
    def __init__(self, model: Any) -> None:
        self.store = TensorStore(model._native, model.device)
        self._own = {id(one): path for path, one in _own_modules(model).items()}
        self._numbers: dict[Any, int] = {}  # of nodes, and of the keys of sizes
        self._next = count()

    def edit(self, edit: Edit) -> list[dict[str, Any]]:
        if edit.custom is not None:
            raise GraphError(f"the torch.autograd.Function at {edit.custom} is code, and cannot be stored")
        return [
            {"steps": _encode_steps(part.steps), "at": part.at, "entries": [self._entry(e) for e in part.tape.entries]}
            for part in edit.parts
        ]

    def _entry(self, entry: Entry) -> dict[str, Any]:
        line = [entry.line.file, entry.line.number, entry.line.function]
        try:
            data = self._fields(entry)
        except GraphError as error:
            raise GraphError(f"an edit cannot be stored, for what was recorded at {entry.line}: {error}") from error
        return {**data, "line": line, "results": [self._number(one) for one in entry.results]}

    def _fields(self, entry: Entry) -> dict[str, Any]:
        if isinstance(entry, Read):
            return {"kind": "read", "hook": entry.hook, "step": entry.step}
        if isinstance(entry, Write):
            return {"kind": "write", "hook": entry.hook, "step": entry.step, "value": self._value(entry.value)}
        if isinstance(entry, Watch):
            path = self._own.get(id(entry.module))
            if path is None:
                raise GraphError("a module that was called with hook=True is not attached to the model any more")
            return {"kind": "watch", "module": path, "step": entry.step, "seen": self._value(entry.seen)}
        name = name_of(entry.fn)
        fn = f"size:{name}" if name in SIZES else encode_function(entry.fn)
        modes = None if entry.modes is None else self._value(tuple(entry.modes))
        args, kwargs = self._value(entry.args), self._value(entry.kwargs)
        return {"kind": "do", "fn": fn, "args": args, "kwargs": kwargs, "modes": modes}

    def _value(self, value: Any) -> Any:
        return encode_value(value, self._reference, self.store.put)

    def _reference(self, value: Any) -> Any:
        if isinstance(value, Length):
            return [int(value), self._computed(value)]
        return self._number(value) if isinstance(value, Node) else None

    def _computed(self, number: int) -> Any:
        if not isinstance(number, Length):
            return int(number)
        if number.op == "size":
            return {"size": self._number(number.operands[0])}
        return {number.op: [self._computed(one) for one in number.operands]}

    def _number(self, one: Any) -> int:
        if one not in self._numbers:
            self._numbers[one] = next(self._next)
        return self._numbers[one]


def _encode_steps(steps: Any) -> Any:
    if not isinstance(steps, range):
        return steps
    return {"from": steps.start, "to": None if steps.stop == sys.maxsize else steps.stop, "by": steps.step}


def _own_modules(model: Any) -> dict[str, nn.Module]:
    """The user's own modules in a model, and all inside them, by their paths."""
    return {
        module._path: module._module
        for path, one in model._attached.items()
        for _, module in Attached(model, path, one).named_modules()
    }


# --- reading ---------------------------------------------------------------------------------------------------------


def load_edits(model: Any, path: str | Path) -> tuple[Edit, ...]:
    """The edits of a file that `save_edits` wrote, for a model. Raises GraphError for anything else."""
    raw = Path(path).read_bytes()
    try:
        size = int.from_bytes(raw[:8], "little")
        text = json.loads(raw[8 : 8 + size])["__metadata__"]["edits"]
        data, tensors = json.loads(text), load(raw)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GraphError(f"{path} holds no edits: a file that save_edits wrote is expected") from error
    try:
        _check(isinstance(data, dict) and data.get("format") == FORMAT, f'"format" is to be {FORMAT!r}')
        _check(data.get("version") == VERSION, f"this nnzoo reads version {VERSION}, not {data.get('version')!r:.20}")
        _check_model(data["model"], about(model))
        reader = _Reader(model, restored_tensors(data["tensors"], tensors, model.device))
        return tuple(reader.edit(one) for one in _list(data["edits"]))
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise error if isinstance(error, GraphError) else GraphError(f"{path}: {error!r:.200}") from error


def _check_model(asked: dict[str, Any], here: dict[str, Any]) -> None:
    for name in ("kind", "n_layers", "d_model", "d_vocab"):
        _check(
            asked[name] == here[name], f"the edits are of a model whose {name} is {asked[name]!r}, not {here[name]!r}"
        )


class _Reader:
    def __init__(self, model: Any, tensors: dict[str, Tensor]) -> None:
        self._model, self._tensors = model, tensors
        self._own = _own_modules(model)
        self._known: dict[int, Any] = {}  # nodes, and the keys of sizes
        self._weights: dict[str, Tensor] = {}

    def edit(self, data: Any) -> Edit:
        edit = Edit(tuple(self._part(one) for one in _list(data)), None)
        edit.check()
        return edit

    def _part(self, data: Any) -> Part:
        steps, tape = _decode_steps(data["steps"]), Tape("an edit that was read from a file")
        for one in _list(data["entries"]):
            tape.entries.append(self._entry(one))
        return Part(tape, steps, _count(data["at"]))

    def _entry(self, data: Any) -> Entry:
        file, number, function = data["line"]
        _check([type(one) for one in (file, number, function)] == [str, int, str], "a line is none")
        line = Line(file, number, function)
        try:
            return self._of_kind(data["kind"], data, line)
        except GraphError as error:
            raise GraphError(f"the edit recorded at {line}: {error}") from error

    def _of_kind(self, kind: Any, data: Any, line: Line) -> Entry:
        if kind == "read":
            (node,) = self._results(data, line)
            return Read(self._hook(data), _count(data["step"]), node)
        if kind == "write":
            value = self._value(data["value"])
            _check(isinstance(value, (Node, Tensor)), "a place is set to a tensor")
            return Write(self._hook(data), _count(data["step"]), value, line)
        if kind == "watch":
            _check(data["module"] in self._own, f"attach your module first: model.{data['module']!s:.80} = module")
            return Watch(self._own[data["module"]], self._value(data["seen"]), _count(data["step"]), line)
        _check(kind == "do", f"{kind!r:.40} is nothing that an edit does")
        return self._do(data, line)

    def _do(self, data: Any, line: Line) -> Do:
        args, kwargs, modes = (self._value(data[name]) for name in ("args", "kwargs", "modes"))
        _check(isinstance(args, tuple) and isinstance(kwargs, dict), "arguments are a tuple and a dict")
        told = str(data["fn"]).removeprefix("size:")
        if told != data["fn"]:
            _check(told in SIZES, f"{told!r:.40} tells no size")
            fn: Any = Tensor.shape.__get__ if told == "shape" else getattr(Tensor, told)  # type: ignore[attr-defined]
        else:
            fn = decode_function(data["fn"], self._model)
        _check(edited(name_of(fn), args, kwargs) is None, "it edits a tensor that is not the trace's own")
        results = self._results(data, line, sizes=told != data["fn"])
        shapes = fn.shapes if isinstance(fn, ModuleCall) else None
        return Do(fn, args, kwargs, shapes, results, None if modes is None else self._modes(modes), line)

    def _modes(self, values: Any) -> Modes:
        grad, inference, default, autocast, _ = values
        _check(type(grad) is bool and type(inference) is bool, "modes are none")
        _check(isinstance(default, torch.dtype) and default.is_floating_point and default.itemsize > 1, "no dtype")
        _check(autocast in (None, torch.float16, torch.bfloat16, torch.float32), "autocast has no such dtype")
        return Modes(grad, inference, default, autocast, self._model.device.type)

    def _results(self, data: Any, line: Line, *, sizes: bool = False) -> tuple[Any, ...]:
        for number in _list(data["results"]):
            if _count(number) not in self._known:
                node = object() if sizes else named(number, line)
                self._known[number] = node
            _check(isinstance(self._known[number], Node) != sizes, f"%{number} is a size, or none")
        return tuple(self._known[number] for number in data["results"])

    def _hook(self, data: Any) -> str:
        _check(isinstance(data["hook"], str) and data["hook"] in self._model.order, f"no place {data['hook']!r:.80}")
        return data["hook"]

    def _value(self, data: Any) -> Any:
        return decode_value(data, self._referred, self._tensor)

    def _referred(self, data: Any) -> Any:
        if isinstance(data, list):
            number, how = data
            computed = self._computed(how)
            _check(isinstance(computed, Length) and type(number) is int, "a size is none")
            return computed
        _check(isinstance(self._known.get(_count(data)), Node), f"it uses %{data}, which is no earlier value")
        return self._known[data]

    def _computed(self, data: Any, nested: int = 0) -> int:
        _check(nested < _MOST_NESTED, "sizes are computed in too many steps")
        if type(data) is int:
            return data
        ((op, operands),) = data.items()
        if op == "size":
            key = self._known.get(_count(operands))
            _check(key is not None and not isinstance(key, Node), f"%{operands} is no size")
            return Length.of(0, "size", key)
        _check(op in OPERATORS and len(_list(operands)) == 2, f"{op!r:.40} is no operation on sizes")
        return Length.of(0, op, *(self._computed(one, nested + 1) for one in operands))

    def _tensor(self, content: Any, kind: str) -> Tensor:
        if kind == "tensor":
            _check(isinstance(content, str) and content in self._tensors, f"there is no tensor {content!r:.40}")
            return self._tensors[content]
        name, view, detached = (content[key] for key in ("name", "view", "detached"))
        _check(isinstance(name, str) and type(detached) is bool, "a weight is none")
        if view is not None:
            _check(is_sizes(view[0]) and is_sizes(view[1]), "no such part of a weight")
            view = (tuple(view[0]), tuple(view[1]), _count(view[2]))
        key = f"{name} {view}"
        if key not in self._weights:  # a copy: nothing that is read edits the model
            self._weights[key] = weight_of(self._model._model, Parameter(name, view, detached)).detach().clone()
        return self._weights[key]


def _decode_steps(data: Any) -> Any:
    if isinstance(data, dict):
        stop = sys.maxsize if data["to"] is None else _count(data["to"])
        return range(_count(data["from"]), stop, max(1, _count(data["by"])))
    return None if data is None else [_count(step) for step in _list(data)]


def _list(data: Any) -> list:
    _check(isinstance(data, list), "a list is expected")
    return data


def _count(data: Any) -> int:
    _check(type(data) is int and 0 <= data < 2**62, f"{data!r:.40} is no number from 0 on")
    return data


def _check(holds: Any, otherwise: str) -> None:
    if not holds:
        raise GraphError(otherwise)
