"""What an analysis gives back: numbers with named axes, that print, draw and become a data frame.

Every function of nnzoo.analysis returns a `Result` or a subclass with a few more fields. The numbers are
`result.values`, a plain tensor; everything else says what they mean.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from nnzoo.architectures.html import page, shown

POSITIONS = ("pos", "query", "key", "key_pos")  # axes that are a prompt's positions
ResultClass = TypeVar("ResultClass", bound="Result")


@dataclass(frozen=True)
class Axis:
    """An axis of the numbers, and what stands along it.

    >>> Axis("layer", ("0", "1"))
    Axis(name='layer', labels=('0', '1'))
    """

    name: str
    labels: tuple[str, ...]

    @property
    def numbered(self) -> bool:
        """Whether the labels say no more than the place does."""
        return self.labels == tuple(map(str, range(len(self.labels))))


@dataclass(frozen=True)
class Entry:
    """One number of a result, and where it stands: {"layer": "3", "head": "1"}."""

    place: dict[str, str]
    index: tuple[int, ...]
    value: float


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Numbers with named axes.

    `print(result)` shows a table, a notebook shows it in colours, `to_df()` gives a pandas data frame with a row for
    each number, `plot()` a plotly figure (`pip install 'nnzoo[viz]'` for these two), `to_html()` a page.

    >>> scores = torch.tensor([[0.1, 0.9], [0.5, 0.0]])
    >>> layer, head = Axis("layer", ("0", "1")), Axis("head", ("0", "1"))
    >>> result = Result("induction heads", "score", scores, (layer, head))
    >>> result
    Result('induction heads', score, layer=2 head=2)
    >>> result.top(1)
    [Entry(place={'layer': '0', 'head': '1'}, index=(0, 1), value=0.8999999761581421)]
    >>> result.at(layer=1).values
    tensor([0.5000, 0.0000])
    """

    title: str
    quantity: str  # what a number is: "logit difference", "probability"
    values: Shaped[Tensor, "*axes"]
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        expected = tuple(len(axis.labels) for axis in self.axes)
        if tuple(self.values.shape) != expected:
            raise ValueError(f"values are {list(self.values.shape)}, but the axes have {list(expected)} labels")

    @property
    def shape(self) -> dict[str, int]:
        """Sizes by the axes' names."""
        return {axis.name: len(axis.labels) for axis in self.axes}

    def at(self: ResultClass, **places: int) -> "ResultClass | Result":
        """The part at one place of some axes, which are dropped: `result.at(layer=3, pos=-1)`.

        Raises KeyError for an axis that is not there.
        """
        if unknown := places.keys() - self.shape.keys():
            raise KeyError(f"no axis {', '.join(sorted(unknown))}; the axes are {', '.join(self.shape)}")
        index = tuple(places.get(axis.name, slice(None)) for axis in self.axes)
        fixed = ", ".join(f"{axis.name} {axis.labels[places[axis.name]]}" for axis in self.axes if axis.name in places)
        kept = tuple(axis for axis in self.axes if axis.name not in places)
        return Result(f"{self.title}, {fixed}", self.quantity, self.values[index], kept)

    def top(self, k: int = 5, *, smallest: bool = False, absolute: bool = False) -> list[Entry]:
        """The k largest numbers and where they stand; the smallest, or the largest by absolute value, if asked."""
        flat = self.values.flatten().abs() if absolute else self.values.flatten()
        flat = flat.nan_to_num(nan=math.inf if smallest else -math.inf)
        found = flat.topk(min(k, flat.numel()), largest=not smallest).indices.tolist()
        return [self._entry(tuple(map(int, torch.unravel_index(torch.tensor(i), self.values.shape)))) for i in found]

    def entries(self) -> Iterator[Entry]:
        """Every number, in order, with its place."""
        for flat in range(self.values.numel()):
            yield self._entry(tuple(map(int, torch.unravel_index(torch.tensor(flat), self.values.shape))))

    def to_df(self) -> Any:
        """A pandas data frame with a row for each number: a column for each axis (and its labels), and "value"."""
        from nnzoo.analysis.drawing import needed

        pandas = needed("pandas", "to_df()")
        places = torch.cartesian_prod(*(torch.arange(len(axis.labels)) for axis in self.axes))
        columns: dict[str, Any] = {}
        for axis, place in zip(self.axes, places.reshape(-1, len(self.axes)).T.tolist(), strict=True):
            columns[axis.name] = place
            if not axis.numbered:
                columns[f"{axis.name}_label"] = [axis.labels[i] for i in place]
        return pandas.DataFrame({**columns, "value": self.values.detach().flatten().cpu().numpy()})

    def plot(self) -> Any:
        """A plotly figure: a heatmap, or bars where there is one axis."""
        from nnzoo.analysis.drawing import figure

        return figure(self)

    def cell(self, index: tuple[int, ...]) -> str:
        """What a table shows at a place."""
        return f"{self.values[index].item():.2f}".replace("-0.00", "0.00")

    def hover(self, index: tuple[int, ...]) -> str:
        """What a picture says of a place when the mouse stands on it."""
        where = ", ".join(f"{axis.name} {shown(axis.labels[i])}" for axis, i in zip(self.axes, index, strict=True))
        return f"{where}: {self.values[index].item():.5g}"

    def to_html(self) -> str:
        """What a notebook shows, as one page that needs nothing else: no network, light or dark."""
        return page(self.title, self._repr_html_())

    def __str__(self) -> str:
        from nnzoo.analysis.drawing import as_text

        return as_text(self)

    def __rich__(self) -> Any:
        from nnzoo.analysis.drawing import rich_table

        return rich_table(self, width=100)

    def _repr_html_(self) -> str:
        from nnzoo.analysis.drawing import as_html

        return as_html(self)

    def __repr__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.shape.items())
        return f"{type(self).__name__}({self.title!r}, {self.quantity}, {sizes})"

    def _entry(self, index: tuple[int, ...]) -> Entry:
        place = {axis.name: axis.labels[i] for axis, i in zip(self.axes, index, strict=True)}
        return Entry(place, index, self.values[index].item())


@dataclass(frozen=True, eq=False, repr=False)
class Effects(Result):
    """A metric after a change at each place, and what it is without any.

    For patches `source` is the metric of the run that values came from: then `restored` says how far each patch moves
    the metric from `base` (0) to `source` (1).
    """

    base: float
    source: float | None = None

    @property
    def change(self) -> Result:
        """By how much each change moves the metric."""
        return self._derived(f"change of {self.quantity}", self.values - self.base)

    @property
    def restored(self) -> Result:
        """The share of the way from `base` to `source`. Raises ValueError where both are the same, or there is one."""
        if self.source is None:
            raise ValueError("nothing was restored: there is no run that the values came from; see .change")
        if self.source == self.base:
            raise ValueError(f"the metric is {self.base:.4g} in both runs, so that there is no way between them")
        return self._derived("share restored", (self.values - self.base) / (self.source - self.base))

    def _derived(self, quantity: str, values: Tensor) -> Result:
        return Result(self.title, quantity, values, self.axes)
