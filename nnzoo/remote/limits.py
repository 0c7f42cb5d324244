"""How much a request may ask for. It is found out early: before it is read, before it runs, before it is answered."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnzoo.tracing.entries import Program
from nnzoo.tracing.graph import Call, Line, Node
from nnzoo.tracing.memory import memory_of, peak_memory
from nnzoo.tracing.replay import Replayed

KB, MB, GB = 2**10, 2**20, 2**30


@dataclass(frozen=True)
class Limits:
    """What one request may ask for; whoever hosts a model sets it.

    >>> Limits(nodes=10).check("nodes", 12)
    Traceback (most recent call last):
    nnzoo.remote.limits.LimitError: nodes: 12 are asked for, and the limit is 10; whoever hosts the model sets it
    """

    request_bytes: int = 256 * MB  # of a message
    graph_bytes: int = 16 * MB  # of the JSON in it, which takes tenfold in memory
    nesting: int = 64  # of that JSON
    nodes: int = 50_000
    rows: int = 1024  # of all prompts, every sequence of a generation counted
    prompt_tokens: int = 128 * KB  # of all prompts, padding counted in
    new_tokens: int = 4096  # of one prompt
    tensor_bytes: int = 4 * GB  # of one value, as its shape tells: a view of less memory counts as what it looks like
    alive_bytes: int = 16 * GB  # of all values that are alive at once, as their shapes tell
    result_bytes: int = 1 * GB  # of all that comes back
    seconds: int | float = 300  # from its start in a worker; looked at between nodes and between blocks

    def check(self, name: str, asked: int | float, at: str = "", line: Line | None = None) -> None:
        """Raise LimitError where more is asked for; `at` says by which part of the request."""
        most = getattr(self, name)
        if asked > most:
            raise LimitError(
                f"{name}: {_said(name, asked)} are asked for{at}, and the limit is {_said(name, most)}; "
                "whoever hosts the model sets it",
                line,
            )


class LimitError(ValueError):
    """More than a server gives: which limit, what was asked, and who sets it."""

    def __init__(self, message: str, line: Line | None = None) -> None:
        super().__init__(message)
        self.line = line


def _said(name: str, amount: int | float) -> str:
    if not name.endswith("_bytes") or amount < 10 * KB:
        return f"{amount:g}" if isinstance(amount, float) else str(amount)
    units = ["KB", "MB", "GB", "TB", "PB", "EB"]
    number = float(amount)
    while (number := number / 1024) >= 1000 and len(units) > 1:
        units.pop(0)
    return f"{number:.4g} {units[0]}"


# --- what was read, and nothing decoded yet --------------------------------------------------------------------------


def check_data(limits: Limits, data: Any) -> None:
    """The JSON of a graph: how deep, and how many nodes."""
    limits.check("nesting", max(_depths(data, limits.nesting)))
    nodes = data.get("nodes") if isinstance(data, dict) else None
    if isinstance(nodes, list):
        limits.check("nodes", len(nodes))


def _depths(data: Any, most: int) -> Iterator[int]:
    """How deep its parts lie; beyond `most` it looks no further."""
    waiting = [(data, 0)]
    while waiting:
        part, depth = waiting.pop()
        yield depth
        if isinstance(part, (dict, list)) and depth <= most:
            waiting.extend((one, depth + 1) for one in (part.values() if isinstance(part, dict) else part))


# --- what was decoded, and nothing recorded yet ----------------------------------------------------------------------


def check_program(limits: Limits, program: Program) -> None:
    """Its prompts, and its values by the shapes that they are said to have, which are looked at again on the model."""
    rows = tokens = 0
    for number, prompt in enumerate(program.prompts):
        options = prompt.options or {}
        times, new = (_whole(options.get(name, least)) for name, least in (("num_return_sequences", 1), (_NEW, 0)))
        rows, tokens = rows + len(prompt.tokens) * times, tokens + prompt.tokens.numel() * times
        limits.check("rows", rows, f" by prompts 0 to {number}")
        limits.check("prompt_tokens", tokens, f" by prompts 0 to {number}")
        limits.check("new_tokens", new, f" by prompt {number}")
    for number, entry in enumerate(program.entries):
        if entry.meta is not None:
            size = entry.meta.dtype.itemsize
            for n in entry.meta.shape:
                size *= n
            limits.check("tensor_bytes", size, f" by %{number}, recorded at {entry.line}", entry.line)


_NEW = "max_new_tokens"


def _whole(number: Any) -> int:
    return number if type(number) is int and number > 0 else 1  # what it is then refused for, replaying says


# --- what was recorded, and nothing run yet --------------------------------------------------------------------------


def check_replayed(limits: Limits, new: Replayed) -> int:
    """All values of a program on a model; gives how many bytes are alive at once."""
    for node in new.recorder.nodes:
        leaves = [node.meta] if node.meta is not None else _leaves(new, node)
        for leaf in leaves:
            at = f" by %{node.index}, recorded at {node.line}"
            limits.check("tensor_bytes", leaf.numel() * leaf.itemsize, at, node.line)
    alive = peak_memory(new.recorder, {node: _leaves(new, node) for node in new.recorder.nodes})
    limits.check("alive_bytes", alive)
    back = [*new.recorder.roots, *new.recorder.differentiated.intersection(new.recorder.roots)]
    limits.check("result_bytes", sum(memory_of(node.meta) for node in back if node.meta is not None))
    return alive


def _leaves(new: Replayed, node: Node) -> tuple[Tensor, ...]:
    return new.answers[node].leaves if isinstance(node, Call) and node in new.answers else ()
