"""Slices as arguments: which positions, prompts or neurons of a tensor a method looks at."""

import torch
from torch import Tensor

# 3: that one, its axis dropped. (2, 5), (0, 9, 2) or a slice: a range. [1, 4] or a tensor: those. None: all
SliceInput = int | tuple[int | None, ...] | slice | list[int] | Tensor | None


def take(tensor: Tensor, index: SliceInput, dim: int) -> Tensor:
    """What a slice selects along one axis; a single number drops the axis.

    >>> take(torch.arange(6).view(2, 3), (1, None), dim=1)
    tensor([[1, 2],
            [4, 5]])
    >>> take(torch.arange(6).view(2, 3), -1, dim=1)
    tensor([2, 5])
    """
    if index is None:
        return tensor
    if isinstance(index, int):
        return tensor.select(dim, index)
    if isinstance(index, tuple):
        index = slice(*index)
    if isinstance(index, slice):
        return tensor.movedim(dim, 0)[index].movedim(0, dim)
    chosen = torch.as_tensor(index, device=tensor.device)
    if chosen.dtype == torch.bool:
        chosen = chosen.nonzero()[:, 0]
    return tensor.index_select(dim, torch.where(chosen < 0, chosen + tensor.shape[dim], chosen))


def at_positions(value: Tensor, axes: str, positions: SliceInput) -> Tensor:
    """A hook point's value at some positions (queries, for a pattern), with the axis kept; whole where it has none."""
    symbols = axes.split()
    symbol = next((s for s in ("pos", "query") if s in symbols), None)
    if symbol is None:
        return value
    positions = [positions] if isinstance(positions, int) else positions
    return take(value, positions, dim=symbols.index(symbol) - len(symbols))
