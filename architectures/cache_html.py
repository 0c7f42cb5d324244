"""A cache as a picture: every value with its shape and what its numbers are like, block by block."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.html import cell, picture, table

NUMBERS = ("mean", "std", "largest |x|")
HEADS = [*map(cell, ("hook point", "shape", "dtype")), *(cell(name, "number") for name in NUMBERS), cell("")]


def cache_html(values: Mapping[str, Tensor], model: Any, has_batch_dim: bool) -> str:
    """The values of a cache in the order in which they were computed, each block in a part of its own.

    >>> from nnzoo.architectures.hooks import HookPoint
    >>> class model:
    ...     hook_points = {"hook_embed": HookPoint("batch pos d_model")}
    >>> drawn = cache_html({"hook_embed": torch.full((1, 2, 3), 0.5)}, model, True)
    >>> "batch=1 pos=2 d_model=3" in drawn, ">0.5<" in drawn
    (True, True)
    """
    storages = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in values.values()}
    title = f"<b>ActivationCache</b> <span class='faint'>{len(values)} values, {_size(sum(storages.values()))}</span>"
    parts = []
    for block, names in groupby(values, key=_block_of):
        named = [*names]
        rows = table(HEADS, (_row(name, values[name], model, has_batch_dim) for name in named))
        is_open = " open" if block in ("", "blocks.0") else ""
        head = f'<summary class="mono">{block} <span class="faint">{len(named)} values</span></summary>'
        parts.append(f"<details{is_open}>{head}{rows}</details>" if block else rows)
    return picture(title, "".join(parts))


def _block_of(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("blocks.") else ""


def _row(name: str, value: Tensor, model: Any, has_batch_dim: bool) -> Iterator[str]:
    axes = model.hook_points[name.removesuffix("_grad")].axes.split()[0 if has_batch_dim else 1 :]
    whole = len(axes) == value.ndim  # a slice of a cache may have dropped more
    shape = (
        " ".join(axis if axis == "1" else f"{axis}={size}" for axis, size in zip(axes, value.shape, strict=True))
        if whole
        else ""
    )
    yield cell(name)
    yield cell(shape or str(list(value.shape)))
    yield cell(str(value.dtype).removeprefix("torch."))
    finite = value.detach().float()
    finite = finite[finite.isfinite()]
    numbers = (finite.mean(), finite.std(correction=0), finite.abs().max()) if finite.numel() else ()
    for number in numbers or ("", "", ""):
        yield cell(number if isinstance(number, str) else f"{number.item():.3g}", "number")
    yield cell(_strange(value), "faint")


def _strange(value: Tensor) -> str:
    """What of the numbers is no number, in words; scores that are masked are -inf."""
    counts = {"nan": value.isnan(), "inf": value == torch.inf, "-inf": value == -torch.inf}
    found = {name: int(where.sum()) for name, where in counts.items()}
    return ", ".join(f"{n} {name}" for name, n in found.items() if n)


def _size(n: float | int) -> str:
    """Bytes in words.

    >>> _size(12), _size(1234567)
    ('12 bytes', '1.23 MB')
    """
    units = ["bytes", "kB", "MB", "GB"]
    while n >= 1000 and len(units) > 1:
        n, units = n / 1000, units[1:]
    return f"{n:.3g} {units[0]}"
