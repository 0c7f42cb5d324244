"""What a server and a worker process say to each other: a kind, a number, bytes, each with its length before it."""

import json
import struct
from enum import IntEnum
from typing import Any, BinaryIO, NamedTuple, Protocol

_START = struct.Struct("<BIQ")


class Kind(IntEnum):
    SETTINGS = 1  # to the worker, once: JSON
    RUN = 2  # to the worker: so many requests follow
    REQUEST = 3
    READY = 4  # from the worker: its model is loaded
    PROGRESS = 5  # of request `number`: JSON
    ANSWER = 6  # to request `number`
    USELESS = 7  # from the worker: its model cannot be loaded, and why
    CANCEL = 8  # to the worker: request `number` of a batch, whose own number is the data
    GIVEN_BACK = 10  # from the worker: request `number` is to be run later, as those before it took their time
    TOO_LARGE = 9  # from where a worker is: it needs more memory than it may have, which is the data


class Frame(NamedTuple):
    kind: Kind
    number: int
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def packed(kind: Kind, number: int = 0, data: bytes = b"") -> list[bytes]:
    """The parts of a frame, in order; the data is not copied."""
    return [_START.pack(kind, number, len(data)), data]


def packed_json(kind: Kind, value: Any, number: int = 0) -> list[bytes]:
    return packed(kind, number, json.dumps(value).encode())


class Readable(Protocol):
    """Bytes that come one after the other, as an asyncio.StreamReader gives them."""

    async def readexactly(self, size: int, /) -> bytes: ...


async def read(reader: Readable, most: int) -> Frame:
    """The next frame. Raises EOFError at the end, ValueError for more than so many bytes."""
    kind, number, size = _START.unpack(await reader.readexactly(_START.size))
    if size > most:
        raise ValueError(f"{size} bytes at once, where at most {most} are taken")
    return Frame(Kind(kind), number, await reader.readexactly(size))


def receive(stream: BinaryIO) -> Frame:
    """The next frame, waiting for it. Raises EOFError at the end."""
    start = stream.read(_START.size)
    if len(start) < _START.size:
        raise EOFError
    kind, number, size = _START.unpack(start)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return Frame(Kind(kind), number, data)
