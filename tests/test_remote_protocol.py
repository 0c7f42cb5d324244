"""Messages: what is packed is unpacked, and any other bytes are a ProtocolError that says why."""

import json
import struct
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnzoo.remote.protocol import MEDIA_TYPE, VERSION, Message, ProtocolError, opening, pack, unpack

REQUEST = {"model": "nnzoo/tiny-gpt2", "graph": "{}"}
RESULT: dict[str, Any] = {
    "saved": {"3": "a", "5": "a"},
    "grads": {},
    "gradients": {"t0": "b"},
    "absent": [7],
    "made": [None, 4],
    "drawn": [None],
}
ERROR = {"type": "GraphError", "message": "no \u2260", "line": ["a.py", 3, "f"], "code": "graph"}
KINDS = ("request", "result", "error")
TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3).T,
    "b": torch.tensor([1 + 2j, 3j], dtype=torch.complex128).conj(),
    "c": torch.zeros(0, 3),
    "d": torch.tensor(True),
    "e": torch.tensor([1, 2**16 - 1], dtype=torch.uint16),
    "f": torch.ones(3, dtype=torch.bfloat16).expand(2, 3),
    "g": torch.zeros(0, dtype=torch.complex64),
}


def read(data: bytes) -> Message:
    return unpack(data, kinds=KINDS)


def test_a_message_is_read_as_it_was_written() -> None:
    message = read(pack("request", REQUEST, TENSORS))
    assert (message.kind, message.fields) == ("request", REQUEST)
    assert message.tensors.keys() == TENSORS.keys()
    for name, sent in TENSORS.items():
        assert message.tensors[name].dtype == sent.dtype
        assert torch.equal(message.tensors[name], sent)
    assert read(pack("result", RESULT, {name: TENSORS[name] for name in "ab"})).fields == RESULT
    assert read(pack("error", ERROR)).fields == ERROR
    assert MEDIA_TYPE == "application/x-nnzoo"


def test_tensors_that_share_memory_are_apart_afterwards() -> None:
    base = torch.zeros(4)
    got = read(pack("request", REQUEST, {"a": base, "b": base[:2]})).tensors
    got["a"] += 1
    assert got["b"].tolist() == [0, 0]


@pytest.mark.parametrize("version", [0, 2, 65535])
def test_the_version_is_looked_at_first_and_the_older_side_is_named(version: int) -> None:
    data = struct.pack("<6sHI", b"nnzoo\0", version, 2**32 - 1)
    old = "server" if version > VERSION else "client"
    with pytest.raises(ProtocolError, match=f"client speaks version {version} .* server version 1: update the {old}"):
        unpack(data, kinds=["request"])
    old = "client" if version > VERSION else "server"
    with pytest.raises(ProtocolError, match=f"server speaks version {version} .* client version 1: update the {old}"):
        unpack(data, kinds=["result", "error"])


def framed(header: bytes, rest: bytes = b"\2\0\0\0\0\0\0\0{}") -> bytes:
    return struct.pack("<6sHI", b"nnzoo\0", VERSION, len(header)) + header + rest


def headed(**fields: Any) -> bytes:
    return framed(msgpack.packb({"kind": "request", "others": {}, **REQUEST, **fields}))


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return framed(msgpack.packb({"kind": "request", "others": {}, **REQUEST}), struct.pack("<Q", size) + text + data)


def tensor(dtype: str = "F32", shape: Any = (1,), start: int = 0, end: int = 4) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nnzoo",
        b"PK\3\4" + bytes(40),
        b"\x80\x04\x95" + bytes(40),  # a pickle
        struct.pack("<6sHI", b"nnzoo\0", VERSION, 2**32 - 1) + b"x",
        framed(b""),
        framed(b"\xc1"),
        framed(msgpack.packb([1, 2])),
        framed(msgpack.packb({"kind": 3})),
        framed(msgpack.packb({1: 2})),
        framed(nested(100_000)),
        framed(nested(500)),
        framed(b"\xdd\xff\xff\xff\xff"),
        framed(b"\xdf\xff\xff\xff\xff"),
        framed(b"\xdb\xff\xff\xff\xff"),
        framed(b"\xdd\x00\x01\x00\x00" * 1000),  # lists in lists, each said to be long
        framed(b"\x82\xa4kind\xa7request\xa4kind\xa7request"),
        framed(msgpack.packb({"kind": "request", "others": {}, **REQUEST}) + b"\x00"),
        headed(graph=b"bytes"),
        headed(graph=msgpack.ExtType(5, b"x")),
        headed(graph=msgpack.Timestamp(1)),
        headed(graph="\ud800".encode("utf-8", "surrogatepass")),
        headed(more=1),
        headed(model=None),
        headed(others=None),
        headed(others={"a": ["complex64", [1]]}),
        headed(others={"a": ["float32", [1]]}),
        headed(kind="result"),
        headed(kind="exec"),
        framed(msgpack.packb({"kind": "request", "others": {}, **REQUEST}), b""),
        tensors({}, length=2**63),
        tensors({}, length=3),
        tensors({}, data=b"left over"),
        tensors(b"[]"),
        tensors(b"[" * 100_000),
        tensors(b'{"a":1}'),
        tensors({"__metadata__": {"a": "b"}}),
        tensors({"a": tensor(end=8)}, b"\0\0\0\0"),
        tensors({"a": tensor(), "b": tensor()}, b"\0\0\0\0"),
        tensors({"a": tensor(start=2, end=6), "b": tensor()}, bytes(8)),
        tensors({"a": tensor(start=-4, end=0)}, b"\0\0\0\0"),
        tensors({"a": tensor("F33")}, b"\0\0\0\0"),
        tensors({"a": tensor("C64", end=8)}, bytes(8)),
        tensors({"a": tensor("F8_E4M3", end=1)}, b"\0"),
        tensors({"a": tensor("F4", (2,), end=1)}, b"\0"),
        tensors({"a": tensor("pickle")}, b"\0\0\0\0"),
        tensors({"a": tensor(shape=(2**32, 2**32))}, b"\0\0\0\0"),
        tensors({"a": tensor(shape=(-1,))}, b"\0\0\0\0"),
        tensors(b'{"a":%s,"a":%s}' % (2 * (json.dumps(tensor()).encode(),)), b"\0\0\0\0"),
    ],
)  # fmt: skip
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(data, kinds=["request"])


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("exec", {}, "'exec' is no kind"),
        ("error", {"line": ["a.py", "3", "f"]}, "line"),
        ("error", {"code": None}, "code"),
        ("result", {"saved": {"x": "a", "5": "a"}}, "saved"),
        ("result", {"saved": [1]}, "saved"),
        ("result", {"absent": [-1]}, "absent"),
        ("result", {"made": [True]}, "made"),
        ("result", {"extra": 1}, "extra"),
    ],
)
def test_fields_are_those_of_the_kind(kind: str, changes: dict, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        pack(kind, {**(ERROR if kind == "error" else RESULT), **changes})


@pytest.mark.parametrize("sent", [{}, {"a": TENSORS["a"]}, {**TENSORS}])
def test_the_tensors_of_an_answer_are_those_it_names(sent: dict[str, Tensor]) -> None:
    with pytest.raises(ProtocolError, match="missing or unused is the tensor"):
        unpack(pack("result", RESULT, sent), kinds=["result"])


@pytest.mark.parametrize("t", [torch.zeros(3, device="meta"), torch.eye(3).to_sparse()])
def test_what_has_no_plain_memory_is_not_sent(t: Tensor) -> None:
    with pytest.raises(ProtocolError, match="cannot be sent"):
        pack("request", REQUEST, {"a": t})


def test_a_bool_is_0_or_1() -> None:
    data = tensors({"a": tensor("BOOL", (3,), end=3)}, b"\0\2\xff")
    assert read(data).tensors["a"].view(torch.uint8).tolist() == [0, 1, 1]


def test_a_long_message_is_not_read() -> None:
    with pytest.raises(ProtocolError, match="at most 10 are read"):
        unpack(pack("request", REQUEST), kinds=["request"], most_bytes=10)


@settings(max_examples=300)
@given(data=st.binary(max_size=60), front=st.sampled_from([b"", b"nnzoo\0\1\0", b"nnzoo\0\1\0\7\0\0\0"]))
def test_any_bytes_are_refused(data: bytes, front: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(front + data)


VALID = [
    pack("request", REQUEST, TENSORS),
    pack("result", RESULT, {name: TENSORS[name] for name in "ab"}),
    pack("error", ERROR),
]


SPOTS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4)


@settings(max_examples=500)
@given(which=st.integers(0, 2), spots=SPOTS, cut=st.integers(0, 3))
def test_any_change_of_bytes_is_read_or_refused(which: int, spots: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(VALID[which])
    for spot, byte in spots:
        data[spot % len(data)] = byte
    try:
        message = read(bytes(data[: len(data) - cut]))
    except ProtocolError:
        return
    assert all(isinstance(one, Tensor) for one in message.tensors.values())
    read(pack(message.kind, message.fields, message.tensors))


# --- the beginning of a message, which is all that a server looks at -------------------------------------------------


def test_the_beginning_says_kind_and_model_whatever_the_order_of_the_fields() -> None:
    data = pack("request", dict(reversed(REQUEST.items())))
    assert opening(data, kinds=["request"]) == ("request", REQUEST["model"])
    assert opening(pack("error", ERROR), kinds=["result", "error"]) == ("error", "")


@pytest.mark.parametrize(
    "header",
    [
        {"kind": "request", "others": {}, **REQUEST},
        {"kind": "request"},
        {"kind": "request", "model": 7},
        {"kind": "request", "model": "m" * 10_000},
        {"kind": "result", "model": "m"},
        {"kind": [[]] * 100_000, "model": "m"},
        {"kind": {str(i): i for i in range(100_000)}, "model": "m"},
        [1, 2],
    ],
    ids=["later", "none", "number", "long", "another kind", "many lists", "many names", "list"],
)
def test_a_request_that_does_not_begin_with_its_model_is_refused(header: Any) -> None:
    with pytest.raises(ProtocolError):
        opening(framed(msgpack.packb(header)), kinds=["request"])


def test_what_follows_the_beginning_is_not_decoded() -> None:
    start = b"\x83" + b"".join(map(msgpack.packb, ("kind", "request", "model", "m")))
    assert opening(framed(start + b"\xc1" * 10_000), kinds=["request"]) == ("request", "m")


@given(data=st.binary(max_size=60), front=st.sampled_from([b"", b"nnzoo\0\1\0", b"nnzoo\0\1\0\7\0\0\0"]))
def test_any_other_beginning_is_refused(data: bytes, front: bytes) -> None:
    with pytest.raises(ProtocolError):
        opening(front + data, kinds=["request"])
