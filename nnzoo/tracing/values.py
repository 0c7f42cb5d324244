"""Arguments of recorded calls as JSON, and back: exact, and nothing but data.

What JSON has stands for itself (None, bool, int, str, finite floats); anything else is an object of one key that says
what it is: `{"tuple": [...]}`, `{"slice": [...]}`, `{"node": 3}`, `{"tensor": "t0"}`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.functions import GraphError, full_name

DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float16 bfloat16 float32 float64 complex32 complex64 complex128 int8 int16 int32 int64 uint8 uint16 uint32 "
        "uint64 bool float8_e4m3fn float8_e5m2"
    ).split()
    if hasattr(torch, name)
}
_NAMED = {
    "dtype": DTYPES,
    "memory_format": {
        name: getattr(torch, name)
        for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
    },
    "layout": {"strided": torch.strided},
    "type": {"bool": bool, "int": int, "float": float, "complex": complex},
    "float": {"nan": math.nan, "inf": math.inf, "-inf": -math.inf},
    "constant": {"Ellipsis": Ellipsis},
}
_TAGS = {
    value: {kind: name}
    for kind, table in _NAMED.items()
    if kind not in ("float", "constant")
    for name, value in table.items()
}
DEVICES = {"cpu", "cuda", "mps", "xpu", "meta"}
MOST_NESTED = 20


def encode_value(value: Any, node: Callable[[Any], int | None], tensor: Callable[[Tensor], Any]) -> Any:
    """A value as JSON; `node` numbers nodes (None for what is none), `tensor` puts a tensor away and gives its name.

    Raises GraphError for what cannot be written down.

    >>> encode_value((slice(None), -1, torch.float16), lambda one: None, str)
    {'tuple': [{'slice': [None, None, None]}, -1, {'dtype': 'float16'}]}
    """

    def encode(part: Any) -> Any:
        return encode_value(part, node, tensor)

    if value is None or type(value) in (bool, int, str):
        return value
    number = node(value)
    if number is not None:
        return {"node": number}
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if isinstance(value, (tuple, list)):
        return _encode_sequence(value, [encode(part) for part in value])
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(part)] for key, part in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(part) for part in (value.start, value.stop, value.step)]}
    return _encode_constant(value, tensor)


def _encode_sequence(value: Any, parts: list) -> Any:
    if type(value).__module__ == "torch.return_types":
        return {"return_type": [type(value).__name__, parts]}
    return {"list": parts} if isinstance(value, list) else {"tuple": parts}


def _encode_constant(value: Any, tensor: Callable[[Tensor], Any]) -> Any:
    if value is Ellipsis:
        return {"constant": "Ellipsis"}
    if isinstance(value, float):  # NumPy's is one
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, complex):
        return {"complex": [_encode_constant(value.real, tensor), _encode_constant(value.imag, tensor)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.Generator):
        return {"generator": [str(value.device), tensor(value.get_state())]}
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout, type)) and value in _TAGS:
        return dict(_TAGS[value])
    if isinstance(value, (int, str)):  # an enum's
        return int(value) if isinstance(value, int) else str(value)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        number = value.item()
        return number if isinstance(number, (bool, int)) else _encode_constant(number, tensor)
    what = full_name(value) if callable(value) else f"{type(value).__module__}.{type(value).__qualname__}"
    raise GraphError(f"{what} cannot be written into a graph; tensors, numbers, strings, tuples and slices of them can")


def decode_value(data: Any, node: Callable[[Any], Any], tensor: Callable[[Any, str], Any], nested: int = 0) -> Any:
    """The value of its JSON; `node` and `tensor` give what a number and a name stand for. Raises GraphError.

    >>> decode_value({"tuple": [{"slice": [None, None, None]}, -1]}, int, str)
    (slice(None, None, None), -1)
    """
    if nested > MOST_NESTED:
        raise GraphError(f"arguments are nested more than {MOST_NESTED} deep")
    if data is None or type(data) in (bool, int, str, float):
        return data
    if not isinstance(data, dict) or len(data) != 1:
        raise GraphError(f"an argument is written as an object of one key, not as {data!s:.60}")
    ((kind, content),) = data.items()

    def parts(content: Any, exactly: int | None = None) -> list:
        if not isinstance(content, list) or exactly not in (None, len(content)):
            raise GraphError(f"{kind!r} takes a list{'' if exactly is None else f' of {exactly}'}")
        return [decode_value(part, node, tensor, nested + 1) for part in content]

    if kind == "node":
        return node(content)
    if kind in ("tensor", "parameter"):
        return tensor(content, kind)
    if kind == "list":
        return parts(content)
    if kind == "tuple":
        return tuple(parts(content))
    if kind == "slice":
        return slice(*parts(content, 3))
    if kind == "dict":
        return _decode_dict([tuple(parts(pair, 2)) for pair in _list(content)])
    if kind in _NAMED:
        return _named(_NAMED[kind], content, kind)
    return _decode_other(kind, content, parts, tensor)


def _decode_other(kind: str, content: Any, parts: Callable, tensor: Callable[[Any, str], Any]) -> Any:
    if kind == "size":
        sizes = parts(content)
        if not all(type(n) is int and 0 <= n < 2**62 for n in sizes):
            raise GraphError(f"{sizes} is no size")
        return torch.Size(sizes)
    if kind == "complex":
        real, imaginary = parts(content, 2)
        if type(real) is not float or type(imaginary) is not float:
            raise GraphError("a complex number is two floats")
        return complex(real, imaginary)
    if kind == "device":
        return _device(content)
    if kind == "return_type":
        return _return_type(content, parts)
    if kind == "generator":
        return _generator(content, tensor)
    raise GraphError(f"{kind!r:.40} is no kind of argument")


def _list(content: Any) -> list:
    if not isinstance(content, list):
        raise GraphError(f"a list is expected, not {content!s:.40}")
    return content


def _decode_dict(pairs: list[tuple]) -> dict:
    if not all(isinstance(key, (str, int)) for key, _ in pairs):
        raise GraphError("the keys of a dict are strings or numbers")
    return dict(pairs)


def _named(table: dict[str, Any], name: Any, kind: str) -> Any:
    if not isinstance(name, str) or name not in table:
        raise GraphError(f"{name!r:.40} is no {kind}; known are {', '.join(table)}")
    return table[name]


def _device(name: Any) -> torch.device:
    if not isinstance(name, str) or name.partition(":")[0] not in DEVICES:
        raise GraphError(f"{name!r:.40} is no device")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise GraphError(f"{name!r:.40} is no device") from error


def _return_type(content: Any, parts: Callable) -> Any:
    name, values = _list(content) if len(_list(content)) == 2 else (None, None)
    kind = vars(torch.return_types).get(name) if isinstance(name, str) else None
    values = parts(values)
    if not isinstance(kind, type) or not issubclass(kind, tuple) or kind.n_fields != len(values):  # type: ignore[attr-defined]
        raise GraphError(f"{name!r:.40} is none of PyTorch's named results of {len(values)} values")
    return kind(values)


def _generator(content: Any, tensor: Callable[[Any, str], Any]) -> torch.Generator:
    if len(_list(content)) != 2 or not isinstance(content[1], dict) or [*content[1]] != ["tensor"]:
        raise GraphError("a generator is a device and a state")
    device, state = _device(content[0]), tensor(content[1]["tensor"], "tensor")
    try:
        generator = torch.Generator(device)
        generator.set_state(state)
    except (RuntimeError, TypeError) as error:
        raise GraphError(f"a generator's state does not fit: {error}") from error
    return generator
