"""What a cache holds, as a table: names, axes, sizes, dtype and bytes.

`ActivationCache.shapes()` makes it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import Tensor

from nnzoo.architectures.hooks import HookPoint

LAYER = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class CachedValue:
    """One value of a cache, or the same value of several blocks."""

    name: str  # "blocks.{0..3}.attn.hook_q" for several blocks
    axes: str
    sizes: tuple[int, ...]
    dtype: str
    layers: tuple[int, ...]
    nbytes: int  # of all of them

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.name, self.axes, str(list(self.sizes)), self.dtype, readable(self.nbytes))


class CacheShapes(Sequence[CachedValue]):
    """The values of a cache in order, blocks that hold the same together; it prints as a table.

    `nbytes` is what the cache keeps in memory: values that share their memory count once, and a view counts as all of
    what it keeps alive.
    """

    def __init__(self, values: Sequence[CachedValue], nbytes: int, n_values: int) -> None:
        self.values, self.nbytes, self.n_values = tuple(values), nbytes, n_values

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def summary(self) -> str:
        return f"{self.n_values} values, {readable(self.nbytes)} in memory"

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*(value.cells for value in self.values), strict=True)]
        rows = ("  ".join(map(str.ljust, value.cells, widths)).rstrip() for value in self.values)
        return "\n".join([*rows, self.summary])

    def _repr_html_(self) -> str:
        style = "text-align:left;padding:2px 8px;font-weight:normal"
        titles = "".join(f"<th style='{style};opacity:.65'>{t}</th>" for t in ("name", "axes", "sizes", "dtype", ""))
        rows = "".join(
            f"<tr style='background:transparent'>"
            f"{''.join(f'<td style={style!r}>{escape(cell)}</td>' for cell in value.cells)}</tr>"
            for value in self.values
        )
        table = "border-collapse:collapse;font:12px monospace;color:inherit;background:transparent"
        return (
            f"<div style='overflow:auto;max-height:40em'><table style='{table}'>"
            f"<caption style='text-align:left;padding:4px'>{self.summary}</caption>"
            f"<thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>"
        )


def shapes_of(values: Mapping[str, Tensor], points: Mapping[str, HookPoint], has_batch_dim: bool) -> CacheShapes:
    """The table of some values by hook point name."""
    groups: dict[tuple, list[tuple[str, Tensor]]] = {}
    for name, value in values.items():
        kind = LAYER.sub("blocks.i.", name, count=1)
        groups.setdefault((kind, tuple(value.shape), value.dtype), []).append((name, value))
    rows = [_row(kind, shape, points, has_batch_dim, members) for (kind, shape, _), members in groups.items()]
    kept = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in values.values()}
    return CacheShapes(rows, sum(kept.values()), len(values))


def _row(
    kind: str,
    shape: tuple[int, ...],
    points: Mapping[str, HookPoint],
    has_batch_dim: bool,
    members: list[tuple[str, Tensor]],
) -> CachedValue:
    first, value = members[0]
    axes = points[first.removesuffix("_grad")].axes.split()[not has_batch_dim :]
    layers = tuple(int(match[1]) for name, _ in members if (match := LAYER.match(name)))
    name = first if len(members) == 1 else kind.replace("blocks.i.", f"blocks.{{{_listed(layers)}}}.")
    dtype, nbytes = str(value.dtype).removeprefix("torch."), sum(one.nbytes for _, one in members)
    return CachedValue(name, " ".join(axes), shape, dtype, layers, nbytes)


def _listed(layers: tuple[int, ...]) -> str:
    in_a_row = layers == tuple(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}..{layers[-1]}" if in_a_row else ",".join(map(str, layers))


def readable(nbytes: int) -> str:
    """A number of bytes in words.

    >>> readable(512), readable(2048), readable(3 * 2**30)
    ('512 B', '2.0 KB', '3.0 GB')
    """
    size, units = float(nbytes), ("B", "KB", "MB", "GB", "TB")
    for unit in units[:-1]:
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {units[-1]}"
