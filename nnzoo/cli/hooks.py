"""`nnzoo hooks`: every hook point of a model, with its shape and what it is in a trace."""

import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint
from nnzoo.tracing.shapes import firing_order
from nnzoo.weights import ModulePath, Value, paths_of, read_config, resolve, skeleton


def run(options: Namespace) -> int:
    """Print the list, of one block or with "i" for all of them; no weights are read.

    >>> run(Namespace(model="nnzoo/tiny-gpt2", layer=1))
    blocks.1.hook_resid_pre ...
    0
    """
    model = skeleton(read_config(resolve(options.model, weights=False)))
    points = _points(model, options.layer)
    places = values_at(paths_of(model.config), options.layer)
    console = Console(highlight=False)
    if options.layer is None:
        n_layers = model.config.n_layers
        console.print(f"{len(model.hook_points)} hook points; i is a block, 0 to {n_layers - 1}\n", style="dim")
    columns = {name: (name, point.axes, in_numbers(point)) for name, point in points.items()}
    widths = [max(map(len, column)) for column in zip(*columns.values(), strict=True)]
    for name, point in points.items():
        cells = [cell.ljust(width) for cell, width in zip(columns[name], widths, strict=True)]
        line = Text.assemble((cells[0], "bold"), "  ", cells[1], "  ", (cells[2].rstrip(), "cyan"))
        console.print(line, soft_wrap=True)  # a narrow terminal may fold a line, a pipe gets it whole
        for note in (*places[name], *(["large: a cache holds it only if asked by name"] if point.on_request else [])):
            console.print(Text(f"    {note}", style="dim"), soft_wrap=True)
    return 0


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
