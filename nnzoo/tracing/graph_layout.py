"""Where the nodes of a graph stand in its picture: prompts and their steps are columns, parts of the model bands."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nnzoo.tracing.arguments import flat
from nnzoo.tracing.entries import Entry, Program, Ref

BOX_WIDTH, BOX_HEIGHT, GAP = 232, 24, 6
COLUMN, LEFT, TOP = BOX_WIDTH + 76, 128, 44
PADDING, THIN = 8, 18  # of a band with nodes, and the height of one without

BEFORE, EMBED, NORM, LOGITS, AFTER = "given", "embedding", "final norm", "logits", "after the pass"

Column = tuple[int, int]  # invoke, step


@dataclass
class Layout:
    """The bands from top to bottom, the columns from left to right, and the upper left corner of every node."""

    bands: list[str]
    columns: list[Column]
    heights: dict[str, int] = field(default_factory=dict)
    tops: dict[str, int] = field(default_factory=dict)
    corners: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return LEFT + COLUMN * len(self.columns) + 16

    @property
    def height(self) -> int:
        return TOP + sum(self.heights.values()) + 8

    def left(self, column: Column) -> int:
        """Where a column begins."""
        return LEFT + COLUMN * self.columns.index(column)


def lay_out(program: Program) -> Layout:
    """Every node in the column and the band where its value is there for the first time."""
    n_layers = int(program.about["n_layers"])
    order = [BEFORE, EMBED, *(f"block {k}" for k in range(n_layers)), NORM, LOGITS, AFTER]
    rank = {band: number for number, band in enumerate(order)}
    spots: list[tuple[Column, str]] = []
    for entry in program.entries:
        spots.append(_spot(entry, spots, rank))
    used = {column for column, _ in spots} | {(i, 0) for i in range(len(program.prompts))}
    bands = [b for b in reversed(order) if b not in (BEFORE, AFTER) or any(band == b for _, band in spots)]
    layout = Layout(bands, sorted(used) or [(0, 0)])
    _place(layout, spots)
    return layout


def _spot(entry: Entry, spots: Sequence[tuple[Column, str]], rank: dict[str, int]) -> tuple[Column, str]:
    if entry.kind in ("arrive", "put"):
        return (entry.invoke, entry.step), band_of(entry.hook or "")
    if entry.kind in ("result", "chosen"):
        return (entry.invoke, entry.step), AFTER
    used = [spots[number] for number in sources(entry)]
    column, band = max(used, key=lambda spot: (spot[0], rank[spot[1]]), default=((0, 0), BEFORE))
    if entry.kind in ("backward", "gradient", "flowing", "put_gradient"):
        return column, AFTER
    return column, band


def sources(entry: Entry) -> list[int]:
    """The numbers of the nodes that an entry uses."""
    if entry.kind in ("put", "pick", "gradient"):
        return [entry.of]
    if entry.kind in ("flowing", "put_gradient"):
        return [entry.of, entry.by]
    return [ref.number for ref in flat((entry.args, entry.kwargs)) if isinstance(ref, Ref)]


def band_of(hook: str) -> str:
    """The part of the model in which a hook point stands."""
    if hook.startswith("blocks."):
        return f"block {hook.split('.')[1]}"
    if hook.startswith("ln_final"):
        return NORM
    return LOGITS if hook.startswith("unembed") else EMBED


def _place(layout: Layout, spots: Sequence[tuple[Column, str]]) -> None:
    """Within a cell, nodes stand one above the other, the first recorded at the bottom, as the model is drawn."""
    cells: dict[tuple[Column, str], list[int]] = {}
    for number, spot in enumerate(spots):
        cells.setdefault(spot, []).append(number)
    top = TOP
    for band in layout.bands:
        most = max((len(cells.get((column, band), ())) for column in layout.columns), default=0)
        height = 2 * PADDING + most * BOX_HEIGHT + (most - 1) * GAP if most else THIN
        layout.tops[band], layout.heights[band] = top, height
        for column in layout.columns:
            for n, number in enumerate(cells.get((column, band), ())):
                y = top + height - PADDING - BOX_HEIGHT - n * (BOX_HEIGHT + GAP)
                layout.corners[number] = (layout.left(column) + 16, y)
        top += height
