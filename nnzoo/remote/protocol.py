r"""What goes over the wire, both ways: a version, a msgpack header, tensors as safetensors. Nothing is ever unpickled.

b"nnzoo\0", version (uint16, little-endian), length of the header (uint32, little-endian),
header (msgpack: {"kind": ..., **fields, "others": {...}}; a request's first field is its model),
safetensors to the end.

Dtypes that safetensors has not travel as bytes; `others` says of each such tensor what it is.
"""

import json
import math
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from mmap import mmap
from typing import Any

import msgpack
import safetensors.torch
import torch
from torch import Tensor

from nnzoo.tracing.stored_tensors import AS_THEY_ARE, is_sizes
from nnzoo.tracing.values import DTYPES

VERSION = 1
MEDIA_TYPE = "application/x-nnzoo"
MOST_HEADER = 2**30  # bytes
_MAGIC = b"nnzoo\0"
_START = struct.Struct("<6sHI")
_OPENING = 2**12  # bytes of a header in which its kind and its model stand
_MOST_PARTS = 2**17  # of a list in a header: msgpack makes room for as many as are announced
_MOST_KEYS = 2**20
_MOST_TENSOR_HEADER = 2**26  # bytes of safetensors' own header


class ProtocolError(ValueError):
    """Bytes that are no message of this version of the protocol."""


@dataclass(frozen=True)
class Message:
    """What was sent: its kind says which fields it has."""

    kind: str
    fields: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


# --- what the fields of each kind are --------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _maybe(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _is_names(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(part) for pair in value.items() for part in pair)


def _is_numbered_names(value: Any) -> bool:
    return _is_names(value) and all(key.isascii() and key.isdigit() and len(key) < 19 for key in value)


def _is_line(value: Any) -> bool:
    return isinstance(value, list) and [type(one) for one in value] == [str, int, str]


_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "request": {"model": _is_text, "graph": _is_text},
    "result": {
        "saved": _is_numbered_names,  # node -> tensor
        "grads": _is_numbered_names,  # node -> tensor that is the `.grad` of its value
        "gradients": _is_names,  # tensor that was given -> tensor that is its gradient
        "absent": _list_of(_is_number),  # saved nodes that a generation did not come to
        "made": _list_of(_maybe(_is_number)),  # steps of each prompt's generation
        "drawn": _list_of(_maybe(_is_text)),  # state of each prompt's generator after its generation -> tensor
    },
    "error": {"type": _is_text, "message": _is_text, "line": _maybe(_is_line), "code": _is_text},
}


# --- writing ---------------------------------------------------------------------------------------------------------


def pack(kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """A message as bytes. Raises ProtocolError where its fields are not those of its kind.

    >>> data = pack("error", {"type": "GraphError", "message": "no", "line": None, "code": "graph"})
    >>> unpack(data, kinds=["result", "error"]).fields["message"]
    'no'
    """
    _check_fields(kind, dict(fields))
    stored = {name: _storable(t) for name, t in (tensors or {}).items()}
    others = {
        name: [str(t.dtype).removeprefix("torch."), list(t.shape)]
        for name, t in (tensors or {}).items()
        if t.dtype not in AS_THEY_ARE
    }
    try:
        parts = {name: fields[name] for name in _FIELDS[kind]}  # in their order: `opening` reads the first
        header = msgpack.packb({"kind": kind, **parts, "others": others}, use_bin_type=True)
    except (UnicodeEncodeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the fields of a {kind!r} cannot be written: {error}") from error
    if len(header) > MOST_HEADER:
        raise ProtocolError(f"a header of {len(header)} bytes; at most {MOST_HEADER} can be sent")
    return _START.pack(_MAGIC, VERSION, len(header)) + header + safetensors.torch.save(stored)


def _storable(t: Tensor) -> Tensor:
    if t.layout != torch.strided or t.is_meta or t.dtype not in DTYPES.values():
        raise ProtocolError(f"a tensor {list(t.shape)} ({t.layout}, {t.dtype}, {t.device}) cannot be sent")
    plain = t.detach().resolve_conj().resolve_neg().cpu().contiguous()
    kept = plain if t.dtype in AS_THEY_ARE else plain.reshape(-1).view(torch.uint8)
    return kept.clone()  # each has memory of its own, and no more than its own


# --- reading ---------------------------------------------------------------------------------------------------------


def unpack(data: bytes, *, kinds: Collection[str], most_bytes: int | None = None) -> Message:
    """The message of bytes, of one of some kinds. Raises ProtocolError for anything else; nothing is run.

    Its tensors are on the CPU, and their memory is their own.
    """
    if most_bytes is not None and len(data) > most_bytes:
        raise ProtocolError(f"a message of {len(data)} bytes; at most {most_bytes} are read")
    message, others = _headed(data, kinds)
    tensors = _tensors(data[_START.size + header_bytes(data, kinds) :], others)
    _check_named(message.kind, message.fields, tensors)
    return replace(message, tensors=tensors)


def opening(data: bytes | mmap, *, kinds: Collection[str]) -> tuple[str, str]:
    """The kind of a message and, of a request, its model. Raises ProtocolError.

    No more is decoded than its first bytes: a header may take a thousand times as long, and is not ours to check.
    """
    start = data[_START.size : _START.size + min(header_bytes(data, kinds), _OPENING)]
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=_OPENING)
    unpacker.feed(start)
    try:
        unpacker.read_map_header()
        kind = _named(unpacker, "kind")
        if kind not in kinds:
            raise ProtocolError(f"a message of kind {kind!r:.40}, where {' or '.join(kinds)} is expected")
        return kind, _named(unpacker, "model") if kind == "request" else ""
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError) as error:
        said = str(error) if isinstance(error, ProtocolError) else "its kind, and of a request the model, come first"
        raise ProtocolError(f"the header of a message cannot be read: {said}") from error


def _named(unpacker: Any, name: str) -> str:
    found = unpacker.unpack(), unpacker.unpack()
    if found[0] != name or not isinstance(found[1], str):
        raise ProtocolError(f"its kind, and of a request the model, come first, and {name} does not")
    return found[1]


def _headed(data: bytes, kinds: Collection[str]) -> tuple[Message, Any]:
    """A message without its tensors, and what its header says of those whose dtype safetensors has not."""
    fields = _fields(data[_START.size : _START.size + header_bytes(data, kinds)])
    kind, others = fields.pop("kind", None), fields.pop("others", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise ProtocolError(f"a message of kind {kind!r:.40}, where {' or '.join(kinds)} is expected")
    _check_fields(kind, fields)
    return Message(kind, fields), others


def header_bytes(data: bytes | mmap, kinds: Collection[str]) -> int:
    """How long the header of a message is; the version is looked at before anything else. Raises ProtocolError."""
    if len(data) < _START.size or data[: len(_MAGIC)] != _MAGIC:
        raise ProtocolError("this is no message of nnzoo's protocol")
    _, version, size = _START.unpack_from(data)
    if version != VERSION:
        there, here = ("client", "server") if "request" in kinds else ("server", "client")
        old = here if version > VERSION else there
        raise ProtocolError(
            f"the {there} speaks version {version} of nnzoo's protocol, this {here} version {VERSION}: "
            f"update the {old} (pip install -U nnzoo)"
        )
    if size > min(MOST_HEADER, len(data) - _START.size):
        raise ProtocolError(f"a message that ends early: its header is to have {size} bytes")
    return size


def _fields(header: bytes) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(
            header,
            raw=False,
            strict_map_key=True,
            ext_hook=_no_extension,
            max_ext_len=0,
            max_bin_len=0,
            max_str_len=len(header),
            max_array_len=min(_MOST_PARTS, len(header)),
            max_map_len=min(_MOST_KEYS, len(header)),
            object_pairs_hook=_no_duplicates,
        )
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError, MemoryError) as error:
        raise ProtocolError(f"the header of a message cannot be read: {error or type(error).__name__}") from error
    if not isinstance(fields, dict):
        raise ProtocolError("the header of a message is no map")
    return fields


def _no_extension(code: int, data: bytes) -> Any:
    raise ProtocolError(f"a header has no extension types, and here is {code}")


def _no_duplicates(pairs: Any) -> dict[Any, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError("a name stands twice")
    return found


def _check_fields(kind: str, fields: dict[str, Any]) -> None:
    if kind not in _FIELDS:
        raise ProtocolError(f"{kind!r:.40} is no kind of message; known are {', '.join(_FIELDS)}")
    wrong = sorted(map(str, set(fields) ^ set(_FIELDS[kind])))
    if wrong:
        raise ProtocolError(f"a message of kind {kind!r}: missing or unknown is {', '.join(wrong):.200}")
    for name, holds in _FIELDS[kind].items():
        if not holds(fields[name]):
            raise ProtocolError(f"a message of kind {kind!r}: {name} is not what it is to be")


def _check_named(kind: str, fields: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Every tensor of an answer is one that its fields name; what a request's are for, its graph says."""
    if kind == "request":
        return
    names = [name for field in ("saved", "grads", "gradients") for name in fields.get(field, {}).values()]
    names += [name for name in fields.get("drawn", []) if name is not None]
    wrong = sorted(set(names) ^ set(tensors))
    if wrong:
        raise ProtocolError(f"a message of kind {kind!r}: missing or unused is the tensor {wrong[0]!r:.40}")


def _tensors(data: bytes, others: Any) -> dict[str, Tensor]:
    _check_tensor_header(data)
    try:
        found = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        raise ProtocolError(f"the tensors of a message cannot be read: {error}") from error
    if not isinstance(others, dict):
        raise ProtocolError("a message says nothing of its tensors")
    if any(t.dtype not in AS_THEY_ARE for t in found.values()):
        raise ProtocolError("a tensor whose dtype travels as bytes does not")
    for name, t in found.items():
        if t.dtype == torch.bool:
            found[name] = t.view(torch.uint8) != 0  # a bool of any other byte is counted as that byte
    for name, about in others.items():
        found[name] = _as_other(name, found.get(name), about)
    return found


def _check_tensor_header(data: bytes) -> None:
    """What safetensors does not check: that no name stands twice, and that the header is not the most of it."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, _MOST_TENSOR_HEADER):
        raise ProtocolError("the tensors of a message are cut off")
    try:
        header = json.loads(data[8 : 8 + size], object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the tensors of a message cannot be read: {error}") from error
    if not isinstance(header, dict) or "__metadata__" in header:
        raise ProtocolError("the tensors of a message have a header that is none")


def _as_other(name: Any, kept: Tensor | None, about: Any) -> Tensor:
    is_pair = isinstance(about, list) and len(about) == 2 and isinstance(about[0], str) and is_sizes(about[1])
    dtype = DTYPES.get(about[0]) if is_pair else None
    if dtype is None or dtype in AS_THEY_ARE:
        raise ProtocolError(f"tensor {name!r:.40}: {about!r:.40} is no dtype and sizes")
    if kept is None or kept.dtype != torch.uint8 or kept.numel() != dtype.itemsize * math.prod(about[1]):
        raise ProtocolError(f"tensor {name!r:.40}: its bytes are no {dtype} {about[1]}")
    return kept.reshape(-1).view(dtype).reshape(about[1])
