"""The whole batch: several prompts' values at one place as one tensor, which is the same memory as theirs to a body.

Prompts run as they run alone, of their own lengths and perhaps in several passes, so the whole has memory of its own.
What is written into it, or into an alias of it, is copied into each prompt's value at that line; what is written into a
prompt's value is copied into every whole that it is part of. Padding is a whole's own: what is written there stays in
it, and reaches no prompt. In a generation, the rows of a prompt whose text has ended are padding. A prompt's value that
is replaced is no part of a whole that was read before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.arguments import lazies
from nnzoo.tracing.graph import Node, Storage
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import Recorder, TraceError

GROWING = {"pos", "query", "key", "key_pos"}  # axes on which prompts of a batch are padded, on the left


_PROMPT_BY_PROMPT = (
    "a value of the whole batch has a gradient to be read, by .grad, where it is not written into. Else read the value "
    "in each prompt's own invoke, and ask for the gradient of that, or set it"
)


@dataclass(frozen=True)
class Tie:
    """A prompt's value, and which part of a whole it is."""

    piece: Node
    whole: Node
    part: tuple[slice, ...]


class Wholes:
    """The wholes of a trace."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._known: dict[tuple[Node, ...], Node] = {}  # by the prompts' values
        self._ties: dict[Storage, list[Tie]] = {}  # by the memory of either
        self._stacked: dict[Node, tuple[Sequence[str], Sequence[Node]]] = {}  # of what axes and values a whole is made
        self._written_into: set[Node] = set()
        self._graded: set[Node] = set()
        self._is_copying = False
        recorder.gradients.wholes = self

    def of(self, pieces: Sequence[Node], axes: Sequence[str], hook: str) -> Node:
        """Prompts' values in one tensor, padded on the left: always the same for the same values."""
        node = self._known.get(tuple(pieces))
        if node is None:
            node = self._recorder.function(stack_prompts, axes, *pieces)
            node.hook = hook
            self._stacked[node] = axes, pieces
            self.tie(node, pieces, parts_of(axes, pieces))
        return node

    def tie(self, whole: Node, pieces: Sequence[Node], parts: Sequence[tuple[slice, ...]]) -> None:
        """From here on these values are the parts of this whole."""
        self._known[tuple(pieces)] = whole
        for piece, part in zip(pieces, parts, strict=True):
            for one in (piece, whole):
                one.storage.written = self._written
                self._ties.setdefault(one.storage, []).append(Tie(piece, whole, part))

    def _written(self, write: Node) -> None:
        if self._is_copying:
            return
        self._is_copying = True
        try:
            for tie in self._ties[write.storage]:
                if tie.whole.storage is write.storage:
                    self._check_gradient(tie.whole)
                if tie.piece.storage is write.storage:
                    self._copy(tie.piece, self._part(tie))
                else:
                    self._copy(self._part(tie), tie.piece)
                    self._show(tie.piece, but=tie.whole)
        finally:
            self._is_copying = False

    def _show(self, piece: Node, *, but: Node) -> None:
        """Copy what was written into a prompt's value through one whole into the others."""
        for tie in self._ties[piece.storage]:
            if tie.whole is not but:
                self._copy(tie.piece, self._part(tie))

    def _part(self, tie: Tie) -> Node:
        return self._recorder.function(Tensor.__getitem__, tie.whole, tie.part)

    def _copy(self, source: Node, target: Node) -> None:
        self._recorder.function(copy_part, target, source, edits=target, meta=target.meta)

    # --- gradients -----------------------------------------------------------------------------------------------

    def grad(self, answer: Callable, fn: Callable, args: tuple, kwargs: dict) -> Any:
        """Answer for a whole by its prompts' values, which are what the model goes on with."""
        is_grad = fn is torch.autograd.grad
        of = [*args, *kwargs.values()] if is_grad else args[:1]
        whole = next((lazy._node for lazy in lazies(of) if lazy._node in self._stacked), None)
        if whole is None:
            return answer(fn, args, kwargs)
        if whole in self._written_into or is_grad or len(args) > 1:
            raise TraceError(_PROMPT_BY_PROMPT)
        self._graded.add(whole)
        axes, pieces = self._stacked[whole]
        grads = [answer(fn, (LazyTensor(piece, self._recorder),), {})._node for piece in pieces]
        return LazyTensor(self._recorder.function(stack_prompts, axes, *grads), self._recorder)

    def _check_gradient(self, whole: Node) -> None:
        self._written_into.add(whole)
        if whole in self._graded:
            raise TraceError(_PROMPT_BY_PROMPT)


def parts_of(axes: Sequence[str], pieces: Sequence[Node]) -> list[tuple[slice, ...]]:
    """The index of each prompt's part in a whole."""
    parts, rows = [], 0
    for piece in pieces:
        parts.append(own_part(axes, slice(rows, rows + len(piece.meta)), piece.meta.shape))
        rows += len(piece.meta)
    return parts


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


def stack_ids(n_pos: Sequence[int], pad: int, *ids: Tensor) -> Tensor:
    """The generated ids of prompts with so many tokens as one batch: all new tokens begin in one column."""
    longest, most = max(n_pos), max(one.shape[1] - n for n, one in zip(n_pos, ids, strict=True))
    sides = [(longest - n, most - one.shape[1] + n) for n, one in zip(n_pos, ids, strict=True)]
    return torch.cat([torch.nn.functional.pad(one, side, value=pad) for one, side in zip(ids, sides, strict=True)])


def copy_part(target: Tensor, source: Tensor) -> Tensor:
    """Make a part of a whole and a prompt's value alike again."""
    return target.copy_(source)
