"""A graph as JSON and tensors, and back. What is read is checked: every wrong word is a GraphError that names its node.

{"format": "nnzoo graph", "version": 1, "model": {...}, "trace": {...}, "tensors": {...}, "prompts": [...],
 "nodes": [{"kind": "arrive", "line": [file, number, function], "meta": [dtype, sizes], "invoke": 0, "hook": ...}, ...],
 "saved": [3, 4]}

Nodes know only earlier ones, so there are no cycles. Functions are names of `functions.py`, arguments are as in
`values.py`.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.entries import FIELDS, Entry, Meta, Parameter, Program, PromptEntry, Ref
from nnzoo.tracing.functions import GraphError, decode_function, encode_function
from nnzoo.tracing.graph import Line
from nnzoo.tracing.modes import Modes
from nnzoo.tracing.stored_tensors import TensorStore, is_sizes, restored_tensors
from nnzoo.tracing.values import DTYPES, decode_value, encode_value

FORMAT, VERSION = "nnzoo graph", 1
MOST_NODES = 1_000_000
_GPU_STATE = 16  # bytes of the state of a GPU's generator
_INTEGERS = ("invoke", "step", "of", "by", "which", "end")
_EARLIER = ("of", "by")  # fields that number an earlier node


def encode(program: Program, model: Any, device: torch.device) -> tuple[str, dict[str, Tensor]]:
    """JSON and tensors of a program; weights of the `model` are named instead of kept."""
    store = store_for(program, model, device)
    return write(program, store), store.tensors


def store_for(program: Program, model: Any, device: torch.device) -> TensorStore:
    """Where the tensors of a program go; weights of the `model` are named instead of kept."""
    follows = program.grad or any(e.kind == "backward" or e.fn is torch.autograd.grad for e in program.entries)
    return TensorStore(model, device, follows_gradients=follows)


def write(program: Program, store: TensorStore) -> str:
    """The JSON of a program, whose tensors are put into the store."""
    data = {
        "format": FORMAT,
        "version": VERSION,
        "model": program.about,
        "trace": {
            "grad": program.grad,
            "needs_grad": program.needs_grad,
            "max_batch": program.max_batch,
            "modes": _encode_modes(program.modes),
            "kept_gradients": list(program.kept_gradients),
        },
        "prompts": [_encode_prompt(one, store) for one in program.prompts],
        "nodes": [_encode_entry(number, one, store) for number, one in enumerate(program.entries)],
        "saved": list(program.saved),
        "tensors": store.about,
    }
    return json.dumps(data, allow_nan=False)


def _encode_entry(number: int, entry: Entry, store: TensorStore) -> dict[str, Any]:
    meta = None if entry.meta is None else [_name(entry.meta.dtype), list(entry.meta.shape)]
    line = [entry.line.file, entry.line.number, entry.line.function]
    data: dict[str, Any] = {"kind": entry.kind, "line": line, "meta": meta}
    try:
        for name in FIELDS[entry.kind]:
            data[name] = _encode_field(name, getattr(entry, name), store)
    except GraphError as error:
        raise GraphError(f"%{number}, recorded at {entry.line}: {error}") from error
    return data


def _encode_field(name: str, value: Any, store: TensorStore) -> Any:
    if name == "fn":
        return encode_function(value)
    if name == "args":
        return [_encode(part, store) for part in value]
    if name == "kwargs":
        return {key: _encode(part, store) for key, part in value.items()}
    if name == "random":
        return None if value is None else store.name(value)
    if name == "modes":
        return None if value is None else _encode_modes(value)
    return value


def _encode(value: Any, store: TensorStore) -> Any:
    return encode_value(value, lambda one: one.number if isinstance(one, Ref) else None, store.put)


def _encode_modes(modes: Modes) -> dict[str, Any]:
    autocast = None if modes.autocast is None else _name(modes.autocast)
    return {
        "grad": modes.grad,
        "inference": modes.inference,
        "default_dtype": _name(modes.default_dtype),
        "autocast": autocast,
    }


def _encode_prompt(prompt: PromptEntry, store: TensorStore) -> dict[str, Any]:
    tensors = {
        name: None if (value := getattr(prompt, name)) is None else store.name(value)
        for name in ("tokens", "attention_mask", "labels", "generator")
    }
    options = None if prompt.options is None else {key: _encode(one, store) for key, one in prompt.options.items()}
    return {**tensors, "last_only": prompt.last_only, "options": options}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- reading ---------------------------------------------------------------------------------------------------------


def decode(text: str, tensors: Mapping[str, Tensor], device: torch.device) -> Program:
    """The program of JSON and tensors. Raises GraphError for whatever is not as `encode` writes it."""
    return decode_data(parse(text), tensors, device)


def decode_data(data: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Program:
    """The program of what `parse` gives and of tensors. Raises GraphError for whatever is not as `encode` writes it."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise GraphError(f'this is no graph: "format" is to be {FORMAT!r}')
    if data.get("version") != VERSION:
        raise GraphError(f"version {data.get('version')!r:.20} of a graph's format; this nnzoo reads version {VERSION}")
    _keys(data, "format version model trace prompts nodes saved tensors", "the graph")
    reader = _Reader(restored_tensors(data["tensors"], tensors, device), device)
    trace = data["trace"]
    _keys(trace, "grad needs_grad max_batch modes kept_gradients", "the trace")
    _check(isinstance(data["nodes"], list) and len(data["nodes"]) <= MOST_NODES, "the nodes are no list")
    most = trace["max_batch"]
    _check(most is None or (_is_int(most) and most > 0), "max_batch is a number of rows")
    _check(isinstance(data["model"], dict) and isinstance(data["prompts"], list), "model or prompts are none")
    prompts = [reader.prompt(number, one) for number, one in enumerate(data["prompts"])]
    return Program(
        about=data["model"],
        prompts=prompts,
        entries=[
            reader.entry(number, one, len(prompts), len(data["nodes"])) for number, one in enumerate(data["nodes"])
        ],
        saved=_numbers(data["saved"], len(data["nodes"]), "saved"),
        kept_gradients=_numbers(trace["kept_gradients"], len(data["nodes"]), "kept_gradients"),
        grad=_bool(trace["grad"], "grad"),
        needs_grad=_bool(trace["needs_grad"], "needs_grad"),
        max_batch=most,
        modes=reader.modes(trace["modes"]),
        tensors=reader.tensors,
    )


def parse(text: str) -> Any:
    """What JSON says, with no key twice. Raises GraphError."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError, TypeError) as error:
        raise error if isinstance(error, GraphError) else GraphError(f"this is no JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise GraphError(f"{name} is no JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    _check(len(found) == len(pairs), "a key stands twice in one object")
    return found


class _Reader:
    """Reads the parts of a graph; what is wrong in one is a GraphError that names it."""

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.tensors, self._device = tensors, device

    def entry(self, number: int, data: Any, n_prompts: int, n_nodes: int) -> Entry:
        """One node."""
        try:
            _check(isinstance(data, dict), "it is no object")
            kind = data.get("kind")
            _check(isinstance(kind, str) and kind in FIELDS, f"{kind!r:.40} is no kind of node")
            _keys(data, " ".join(("kind", "line", "meta", *FIELDS[kind])), "the node")
            values = {name: self._field(name, data[name], number) for name in FIELDS[kind]}
            _check(values.get("invoke", 0) < max(n_prompts, 1), f"there is no invoke {values.get('invoke')}")
            _check(number < values.get("end", n_nodes) <= n_nodes, "its body ends before it, or beyond all nodes")
            return Entry(kind=kind, line=_line(data["line"]), meta=_meta(data["meta"]), **values)
        except GraphError as error:
            line = _line_or_none(data)
            said = GraphError(f"%{number}{'' if line is None else f', recorded at {line}'}: {error}")
            said.line = line
            raise said from error

    def _field(self, name: str, value: Any, number: int) -> Any:
        if name in _INTEGERS:
            _check(_is_int(value) and value >= 0, f"{name} is a number from 0 on, not {value!r:.40}")
            _check(name not in _EARLIER or value < number, f"{name} is to be an earlier node, not {value}")
            return value
        if name in ("retain_graph", "create_graph"):
            return _bool(value, name)
        if name in ("hook", "view"):
            _check(value is None or isinstance(value, str), f"{name} is a name")
            return value
        if name == "edits":
            return None if value is None else self._ref(value, number).number
        return self._of_call(name, value, number)

    def _of_call(self, name: str, value: Any, number: int) -> Any:
        def decoded(part: Any) -> Any:
            return decode_value(part, lambda one: self._ref(one, number), self._tensor)

        if name == "fn":
            return decode_function(value)
        if name == "random":
            return None if value is None else self._state(value)
        if name == "modes":
            return None if value is None else self.modes(value)
        if name == "args":
            _check(isinstance(value, list), "args are a list")
            return tuple(decoded(part) for part in value)
        _check(isinstance(value, dict), "kwargs are an object")
        return {key: decoded(part) for key, part in value.items()}

    @staticmethod
    def _ref(value: Any, number: int) -> Ref:
        _check(_is_int(value) and 0 <= value < number, f"it uses node {value!r:.40}, which is no earlier one")
        return Ref(value)

    def _tensor(self, content: Any, kind: str) -> Any:
        if kind == "parameter":
            return _parameter(content)
        _check(isinstance(content, str) and content in self.tensors, f"there is no tensor {content!r:.40}")
        return self.tensors[content]

    def _state(self, name: Any) -> Tensor:
        state = self._tensor(name, "tensor").cpu()
        _check(state.dtype == torch.uint8 and state.dim() == 1, f"{name} is no state of random numbers")
        if len(state) == _GPU_STATE:
            return state
        try:
            torch.Generator().set_state(state)
        except RuntimeError as error:
            raise GraphError(f"{name} is no state of random numbers: {error}") from error
        return state

    def modes(self, data: Any) -> Modes:
        """PyTorch's modes."""
        _keys(data, "grad inference default_dtype autocast", "modes")
        autocast = None if data["autocast"] is None else _dtype(data["autocast"])
        default = _dtype(data["default_dtype"])
        _check(default.is_floating_point and default.itemsize > 1, f"{default} is no default dtype")
        _check(autocast in (None, torch.float16, torch.bfloat16, torch.float32), f"{autocast} is none of autocast's")
        grad, inference = _bool(data["grad"], "grad"), _bool(data["inference"], "inference")
        return Modes(grad, inference, default, autocast, self._device.type)

    def prompt(self, number: int, data: Any) -> PromptEntry:
        """One prompt."""
        try:
            return self._prompt(data)
        except GraphError as error:
            raise GraphError(f"prompt {number}: {error}") from error

    def _prompt(self, data: Any) -> PromptEntry:
        _keys(data, "tokens attention_mask labels generator last_only options", "a prompt")
        tokens = self._tensor(data["tokens"], "tensor")
        mask, labels = (
            None if data[name] is None else self._tensor(data[name], "tensor") for name in ("attention_mask", "labels")
        )
        _check(tokens.dim() == 2 and tokens.numel() > 0 and tokens.dtype == torch.long, "tokens are ids [batch pos]")
        for one, name in ((mask, "attention_mask"), (labels, "labels")):
            _check(one is None or one.shape == tokens.shape, f"{name} is to have the shape of the tokens")
            _check(one is None or not (one.is_floating_point() or one.is_complex()), f"{name} is of integers")
        state = None if data["generator"] is None else self._state(data["generator"])
        options, decoded = data["options"], None
        if options is not None:
            _check(isinstance(options, dict), "options are an object")
            decoded = {key: decode_value(one, _no_node, self._tensor) for key, one in options.items()}
        return PromptEntry(tokens, mask, labels, _bool(data["last_only"], "last_only"), decoded, state)


def _no_node(value: Any) -> Any:
    raise GraphError("an option is no node")


def _parameter(content: Any) -> Parameter:
    _keys(content, "name view detached", "a weight")
    _check(isinstance(content["name"], str), "a weight has a name")
    view, part = content["view"], None
    if view is not None:
        _check(isinstance(view, list) and len(view) == 3 and is_sizes(view[0]) and is_sizes(view[1]), "no such part")
        _check(_is_int(view[2]) and 0 <= view[2] < 2**62, "no such part")
        part = (tuple(view[0]), tuple(view[1]), view[2])
    return Parameter(content["name"], part, _bool(content["detached"], "detached"))


def _meta(data: Any) -> Meta | None:
    if data is None:
        return None
    _check(isinstance(data, list) and len(data) == 2 and is_sizes(data[1]), "meta is a dtype and sizes")
    return Meta(tuple(data[1]), _dtype(data[0]))


def _line(data: Any) -> Line:
    _check(isinstance(data, list) and [type(one) for one in data] == [str, int, str], "line is file, number, function")
    return Line(*data)


def _line_or_none(data: Any) -> Line | None:
    try:
        return _line(data["line"])
    except (GraphError, KeyError, TypeError):
        return None


def _numbers(data: Any, below: int, what: str) -> tuple[int, ...]:
    _check(isinstance(data, list) and all(_is_int(n) and 0 <= n < below for n in data), f"{what} is a list of nodes")
    return tuple(data)


def _keys(data: Any, names: str, what: str) -> None:
    _check(isinstance(data, dict), f"{what}: an object is expected")
    wrong = sorted(set(data) ^ set(names.split()))
    _check(not wrong, f"{what}: missing or unknown is {', '.join(wrong)[:200]}")


def _bool(value: Any, what: str) -> bool:
    _check(isinstance(value, bool), f"{what} is true or false")
    return value


def _dtype(name: Any) -> torch.dtype:
    _check(isinstance(name, str) and name in DTYPES, f"{name!r:.40} is no dtype")
    return DTYPES[name]


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**62


def _check(holds: Any, otherwise: str) -> None:
    if not holds:
        raise GraphError(otherwise)
