"""Slice by TransformerLens's name; what it selects is what nnzoo's own slices select."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnzoo.architectures import slices


class Slice:
    """Which places of an axis: an int (the axis is dropped), a tuple (start, stop, step), a list or array, or all.

    >>> Slice((1, 3)).apply(torch.arange(5))
    tensor([1, 2])
    >>> Slice([0, -1]).indices(5)
    array([0, 4])
    """

    def __init__(self, input_slice: Any = None) -> None:
        self.slice: Any
        if isinstance(input_slice, tuple):
            self.slice, self.mode = slice(*input_slice), "slice"
        elif isinstance(input_slice, (int, np.integer)):
            self.slice, self.mode = int(input_slice), "int"
        elif isinstance(input_slice, slice):
            self.slice, self.mode = input_slice, "slice"
        elif isinstance(input_slice, (list, Tensor, np.ndarray)):
            self.slice, self.mode = np.asarray(input_slice), "array"
        elif input_slice is None:
            self.slice, self.mode = slice(None), "identity"
        else:
            raise ValueError(f"a slice is an int, a tuple, a list, an array or None, not {input_slice!r}")

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """What the slice selects along an axis."""
        index = torch.as_tensor(self.slice) if self.mode == "array" else self.slice
        return slices.take(tensor, index, dim)

    def indices(self, max_ctx: int | None = None) -> np.ndarray:
        """The places themselves, on an axis of this size. Raises ValueError where the size is needed and missing."""
        if self.mode == "int":
            return np.array([self.slice])
        if max_ctx is None:
            raise ValueError("which places a slice selects depends on max_ctx, the size of the axis")
        return np.arange(max_ctx)[self.slice]

    def __repr__(self) -> str:
        return f"Slice: {self.slice} Mode: {self.mode} "

    @classmethod
    def unwrap(cls, slice_input: Any) -> "Slice":
        """A Slice of what may be one already; of an int one that keeps the axis."""
        if isinstance(slice_input, Slice):
            return slice_input
        return cls([slice_input] if isinstance(slice_input, int) else slice_input)


SliceInput = Slice | slices.SliceInput | np.ndarray


def positions_of(pos_slice: Any) -> Any:
    """A slice as nnzoo's own functions take it."""
    if not isinstance(pos_slice, Slice):
        return torch.as_tensor(pos_slice) if isinstance(pos_slice, np.ndarray) else pos_slice
    if pos_slice.mode == "identity":
        return None
    return torch.as_tensor(pos_slice.slice) if pos_slice.mode == "array" else pos_slice.slice
