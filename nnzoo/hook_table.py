"""The hook points of a model as a table: name, shape in symbols and in numbers, and what stands there in a trace."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.html import cell, page, picture, table
from nnzoo.tracing.shapes import firing_order
from nnzoo.weights.paths import ModulePath, Value, paths_of

HEADS = ("hook point", "shape", "in numbers", "in a trace: model. …")
LARGE = "large: a cache holds it only if asked by name"


@dataclass(frozen=True)
class HookRow:
    """One hook point; or that of every block, with "i" for the block."""

    name: str  # "blocks.i.attn.hook_q"
    axes: str  # "batch pos head d_head"
    numbers: str  # "[batch, pos, 4, 24]"
    places: tuple[str, ...]  # what a trace says for it after `model.`
    on_request: bool  # large: a cache that was not asked leaves it out

    @property
    def notes(self) -> list[str]:
        """What is to be said of it beside its shape."""
        return [*self.places, *([LARGE] if self.on_request else [])]


@dataclass(frozen=True, repr=False)
class HookTable:
    """The hook points in the order of the forward pass; it prints, and a notebook shows it as a table."""

    title: str
    rows: tuple[HookRow, ...]

    def __iter__(self) -> Iterator[HookRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return "\n".join([self.title, *self.lines()])

    def lines(self) -> list[str]:
        """A line for each hook point, its columns below each other."""
        columns = [(row.name, row.axes, row.numbers) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
        return ["  ".join(map(str.ljust, column, widths)).rstrip() for column in columns]

    def _repr_html_(self) -> str:
        rows = (
            (cell(r.name), cell(r.axes), cell(r.numbers), cell("; ".join(r.notes), "faint wrap")) for r in self.rows
        )
        return picture(f"<b>{self.title}</b>", table(map(cell, HEADS), rows))

    def to_html(self) -> str:
        """What a notebook shows, as one page that needs nothing else: no network, light or dark."""
        return page(self.title, self._repr_html_())


def hook_table(model: HookedModel, layer: int | None = None) -> HookTable:
    """Every hook point of a model, those of blocks once with "i" for the block; or those of one block.

    Raises ValueError for a block that is not there.

    >>> from nnzoo import LanguageModel
    >>> table = hook_table(LanguageModel("nnzoo/tiny-gpt2").skeleton, layer=1)
    >>> [row for row in table if row.name == "blocks.1.hook_mlp_out"][0].places[0]
    'transformer.h[1].mlp.output'
    """
    n_layers = model.config.n_layers
    points = _points(model, layer)
    places = values_at(paths_of(model.config), layer)
    rows = tuple(
        HookRow(name, point.axes, in_numbers(point), tuple(places[name]), point.on_request)
        for name, point in points.items()
    )
    which = f"i is a block, 0 to {n_layers - 1}" if layer is None else f"those of block {layer}"
    return HookTable(f"{len(model.hook_points)} hook points; {which}", rows)


def _points(model: HookedModel, layer: int | None) -> dict[str, HookPoint]:
    """The hook points to show, by the names to show, in the order of the forward pass."""
    n_layers = model.config.n_layers
    if layer is not None and not 0 <= layer < n_layers:
        raise ValueError(f"there is no --layer {layer}: {type(model).__name__} here has the blocks 0 to {n_layers - 1}")
    prefix = f"blocks.{layer or 0}."
    names = [name for name in firing_order(model) if name.startswith(prefix) or not name.startswith("blocks.")]
    if layer is not None:
        return {name: model.hook_points[name] for name in names if name.startswith(prefix)}
    return {name.replace(prefix, "blocks.i."): model.hook_points[name] for name in names}


def in_numbers(point: HookPoint) -> str:
    """A hook point's shape, with numbers for the axes that the config decides.

    >>> point = HookPoint("batch pos head d_head")
    >>> point.sizes = {"head": 12, "d_head": 64}
    >>> in_numbers(point)
    '[batch, pos, 12, 64]'
    """
    return f"[{', '.join(str(point.sizes.get(axis, axis)) for axis in point.axes.split())}]"


def values_at(paths: dict[str, ModulePath], layer: int | None = None) -> dict[str, list[str]]:
    """For each hook point, what stands there by Hugging Face's paths; blocks are "i" where `layer` is None.

    >>> paths = {"h.{i}": ModulePath("Block", Value("blocks.{i}.hook_resid_pre"), Value("blocks.{i}.hook_resid_post"))}
    >>> values_at(paths, 3)["blocks.3.hook_resid_post"], values_at(paths)["blocks.i.hook_resid_pre"]
    (['h[3].output'], ['h[i].input'])
    """
    i = "i" if layer is None else str(layer)
    found = defaultdict(list)
    for path, module in paths.items():
        for value, expression in _expressions(path.replace(".{i}", f"[{i}]"), module):
            hook = value.hook.replace("{i}", i)
            one_block = re.match(r"blocks\.(\d+)\.", hook) if layer is None else None
            if one_block:
                hook = hook.replace(one_block[0], "blocks.i.", 1)
                expression += f", where i is {one_block[1]}"
            found[hook].append(expression + (f"   as {value.view.split(' -> ')[1]}" if value.view else ""))
    return found


def _expressions(path: str, module: ModulePath) -> Iterator[tuple[Value, str]]:
    """The values of a module, each with what a trace says for it after `model.`."""
    start = f"{path}." if path else ""
    if module.input is not None:
        yield module.input, f"{start}input"
    if isinstance(module.output, Value):
        yield module.output, f"{start}output[0]" if module.record in ("block", "base") else f"{start}output"
    elif module.output is not None:
        for number, value in enumerate(module.output):
            yield value, f"{start}output[{number}]"
