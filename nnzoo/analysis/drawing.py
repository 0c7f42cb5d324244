"""Results as tables in a terminal, as HTML for a notebook, and as plotly figures.

A result of two axes or more is shown as a table: its last axis that is no position across, everything else down.
Positions go down because tokens are longer than numbers.
"""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnzoo.analysis.results import POSITIONS, Axis, Result
from nnzoo.architectures.html import shown, tint

if TYPE_CHECKING:
    from rich.table import Table

ROWS = 60  # of a table in the terminal; the middle of a longer one is left out


def needed(module: str, what: str) -> Any:
    """A library of the extra. Raises ImportError that says how to get it."""
    try:
        return import_module(module)
    except ImportError:
        raise ImportError(f"{what} needs {module.split('.')[0]}: pip install 'nnzoo[viz]'") from None


@dataclass(frozen=True)
class Layout:
    """Which axis of a result goes across its table (None: there is only one axis), and which go down."""

    across: int | None
    down: tuple[int, ...]
    axes: tuple[Axis, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return ("",) if self.across is None else self.axes[self.across].labels

    @property
    def corner(self) -> str:
        """What the rows and the columns are."""
        down = " ".join(self.axes[i].name for i in self.down)
        return down if self.across is None else f"{down} \\ {self.axes[self.across].name}"

    def rows(self) -> list[tuple[int, ...]]:
        """The places along the axes that go down, one for each row."""
        return list(product(*(range(len(self.axes[i].labels)) for i in self.down)))

    def label(self, row: tuple[int, ...]) -> str:
        names = (self.axes[i].labels[place] for i, place in zip(self.down, row, strict=True))
        return " · ".join(shown(name) for name in names)

    def index(self, row: tuple[int, ...], column: int) -> tuple[int, ...]:
        """The place in the result's values."""
        places = dict(zip(self.down, row, strict=True))
        if self.across is not None:
            places[self.across] = column
        return tuple(places[i] for i in range(len(self.axes)))


def layout_of(result: Result) -> Layout:
    r"""The layout of a result's table.

    >>> import torch
    >>> axes = Axis("layer", ("0", "1")), Axis("pos", ("The", " cat"))
    >>> layout = layout_of(Result("", "", torch.zeros(2, 2), axes))
    >>> layout.corner, layout.columns, [layout.label(row) for row in layout.rows()]
    ('pos \\ layer', ('0', '1'), ['The', 'cat'])
    """
    n = len(result.axes)
    if n < 2:
        return Layout(None, tuple(range(n)), result.axes)
    candidates = [i for i, axis in enumerate(result.axes) if axis.name not in POSITIONS]
    across = candidates[-1] if candidates else n - 1
    return Layout(across, tuple(i for i in range(n) if i != across), result.axes)


def elided(n: int, most: int) -> list[int | None]:
    """The first and last of n places, None for those left out, at most so many.

    >>> elided(3, 5), elided(9, 5)
    ([0, 1, 2], [0, 1, None, 7, 8])
    """
    if n <= most:
        return list(range(n))
    half = max(1, (most - 1) // 2)
    return [*range(half), None, *range(n - half, n)]


# --- the terminal ----------------------------------------------------------------------------------------------------


def as_text(result: Result, width: int = 100) -> str:
    """A result as plain text."""
    from rich.console import Console

    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(rich_table(result, width))
    return captured.get().rstrip("\n")


def rich_table(result: Result, width: int) -> "Table":
    """A result as a table for rich, strong where the numbers are large."""
    from rich.table import Table
    from rich.text import Text

    layout, largest = layout_of(result), _largest(result.values)
    rows = layout.rows()
    labels = {i: layout.label(row) for i, row in enumerate(rows)}
    cell_width = max([4, *(len(result.cell(layout.index(row, 0))) for row in rows[:ROWS])]) + 2
    room = max(1, (width - max(map(len, labels.values()), default=0)) // cell_width - 1)
    columns = elided(len(layout.columns), room)
    table = Table(box=None, title=f"{result.title} ({result.quantity})", title_justify="left", pad_edge=False)
    table.add_column(layout.corner, style="dim", no_wrap=True)
    for column in columns:
        table.add_column("…" if column is None else shown(layout.columns[column]) if layout.columns[0] else "",
                         justify="right", no_wrap=True)  # fmt: skip
    for i in elided(len(rows), ROWS):
        if i is None:
            table.add_row("…")
            continue
        cells = [None if c is None else layout.index(rows[i], c) for c in columns]
        texts = ["…" if c is None else Text(result.cell(c), _style(result.values[c].item() / largest)) for c in cells]
        table.add_row(Text(labels[i]), *texts)
    return table


def _largest(values: Tensor) -> float:
    finite = values.detach().float().abs()
    finite = finite[finite.isfinite()]
    return max(finite.max().item(), 1e-30) if finite.numel() else 1.0


def _style(share: float) -> str:
    if share != share or abs(share) < 0.1:
        return "dim"
    return "bold" if abs(share) > 0.5 else ""


# --- a notebook ------------------------------------------------------------------------------------------------------


def as_html(result: Result) -> str:
    """A result as a table whose cells are tinted, without script or style sheet; readable on white and on black."""
    layout = layout_of(result)
    head = "".join(f"<th style='{_TH}'>{html.escape(shown(label)) if label else ''}</th>" for label in layout.columns)
    return (
        f"<div style='overflow:auto;max-height:40em'><table class='nnzoo-result' style='{_TABLE}'>"
        f"<caption style='text-align:left;padding:4px;white-space:nowrap'><b>{html.escape(result.title)}</b>, "
        f"{html.escape(result.quantity)}</caption>"
        f"<thead><tr><th style='{_TH}'>{html.escape(layout.corner)}</th>{head}</tr></thead>"
        f"<tbody>{''.join(_html_rows(result, layout))}</tbody></table></div>"
    )


_TABLE = "border-collapse:collapse;font:12px monospace;color:inherit;background:transparent"
_TH = "text-align:right;padding:2px 6px;font-weight:normal;opacity:.65;background:transparent"


def _html_rows(result: Result, layout: Layout) -> Iterator[str]:
    largest = _largest(result.values)
    for row in layout.rows():
        label = html.escape(layout.label(row))
        cells = [_html_cell(result, layout.index(row, i), largest) for i in range(len(layout.columns))]
        yield f"<tr style='background:transparent'><th style='{_TH}'>{label}</th>{''.join(cells)}</tr>"


def _html_cell(result: Result, index: tuple[int, ...], largest: float) -> str:
    hover = html.escape(result.hover(index), quote=True)
    style = f"background:{tint(result.values[index].item() / largest)};text-align:right;padding:2px 6px;color:inherit"
    return f"<td style='{style}' title='{hover}'>{html.escape(result.cell(index))}</td>"


# --- plotly ----------------------------------------------------------------------------------------------------------


def figure(result: Result) -> Any:
    """A plotly figure of a result's table: a heatmap around 0, or bars where there is one axis."""
    graphs = needed("plotly.graph_objects", "plot()")
    layout = layout_of(result)
    rows = layout.rows()
    labels = [f"{i} {layout.label(row)}" for i, row in enumerate(rows)]  # plotly merges rows of the same name
    values = [[result.values[layout.index(row, i)].item() for i in range(len(layout.columns))] for row in rows]
    title = f"{result.title} ({result.quantity})"
    if layout.across is None:
        bars = graphs.Bar(x=labels, y=[value for [value] in values])
        return graphs.Figure(bars, {"title": {"text": title}})
    texts = [[result.cell(layout.index(row, i)) for i in range(len(layout.columns))] for row in rows]
    columns = [shown(label) for label in layout.columns]
    heat = graphs.Heatmap(z=values, x=columns, y=labels, text=texts, texttemplate="%{text}", colorscale="RdBu", zmid=0)
    axes = {"yaxis": {"autorange": "reversed"}, "xaxis": {"title": {"text": layout.axes[layout.across].name}}}
    return graphs.Figure(heat, {"title": {"text": title}, **axes})
