"""`nnzoo trace`: values of a pass by their paths, to look at or as a file."""

import json
from argparse import Namespace
from html import escape
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from nnzoo import LanguageModel
from nnzoo.analysis.results import Axis, Result
from nnzoo.cli.document import Answer, html_table
from nnzoo.cli.generate import utf8
from nnzoo.envoys.envoy import Envoy

TITLES = ("path", "shape", "dtype", "mean", "std", "min", "max")


def run(options: Namespace) -> int:
    """Read values in one pass that goes no further than it must; show them, and write them as safetensors.

    >>> run(Namespace(model="nnzoo/tiny-gpt2", prompt="Hello", paths=["transformer.h[1].mlp"], out=None, html=None))
    Trace: nnzoo/tiny-gpt2
    ...
    path                  shape      dtype    ...
    transformer.h[1].mlp  [1, 1, 96] float32  ...
    0
    """
    model, prompt = LanguageModel(options.model), utf8(options.prompt)
    values = read(model, prompt, options.paths)
    tokens = [model.tokenizer.decode([i]) for i in model.prepare(prompt).tokens[0].tolist()]
    answer = Answer(f"Trace: {options.model}", f"{prompt!r}: {len(tokens)} tokens", options.html)
    rows = [cells(name, value) for name, value in values.items()]
    answer.draw(lambda: table(rows), lambda: html_table(TITLES, map(html_row, rows)))
    if options.html is not None and (norms := norms_of(values, tokens)) is not None:
        answer.add(norms)
    if options.out is not None:
        stored = {name: value.contiguous().clone() for name, value in values.items()}
        about = {"model": options.model, "prompt": prompt, "tokens": json.dumps(tokens)}
        Path(options.out).write_bytes(safetensors.torch.save(stored, about))
        answer.say(f"{Path(options.out).resolve()} has them, one tensor a path, for safetensors.torch.load_file")
    return answer.end()


def read(model: LanguageModel, prompt: str, paths: list[str]) -> dict[str, Tensor]:
    """The values at some paths; "*" stands for every block. Raises ValueError for what is no value of a pass."""
    layers = range(model.config.n_layers)
    names = dict.fromkeys(path.replace("*", str(i), 1) for path in paths for i in (layers if "*" in path else [0]))
    found: dict[str, Any] = {}
    with model.trace(prompt):
        for name in names:
            value = value_at(model, name)
            parts: dict[str, Any] = {name: value}
            if isinstance(value, tuple):
                parts = {f"{name}[{i}]": one for i, one in enumerate(value)}
            found.update({part: one.save() for part, one in parts.items()})
    return {name: value.detach().cpu() for name, value in found.items()}


def value_at(model: LanguageModel, path: str) -> Any:
    """A tensor, or a tuple of them: what stands at a path, a module's output where it names a module."""
    try:
        found = model.get(path)
        found = found.output if isinstance(found, Envoy) else found
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path or repr(path)}: {error} (`nnzoo hooks` lists what there is)") from error
    if isinstance(found, tuple) or (isinstance(found, Tensor) and not isinstance(found, torch.nn.Parameter)):
        return found
    what = "a parameter" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise ValueError(f"{path} is {what}, and no value of a pass. `nnzoo hooks` lists those that there are")


def cells(name: str, value: Tensor) -> tuple[str, ...]:
    """A line of the table."""
    wide = value.double()
    numbers = (wide.mean(), wide.std(correction=0), wide.min(), wide.max())
    dtype = str(value.dtype).removeprefix("torch.")
    return (name, str(list(value.shape)), dtype, *(f"{number.item():.4g}" for number in numbers))


def table(rows: list[tuple[str, ...]]) -> Table:
    """The values in a terminal."""
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for number, title in enumerate(TITLES):
        drawn.add_column(title, justify="left" if number < 3 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(Text, row))
    return drawn


def html_row(row: tuple[str, ...]) -> str:
    """The same on a page."""
    return f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"


def norms_of(values: dict[str, Tensor], tokens: list[str]) -> Result | None:
    """How long each token's vector is, for the values that have one for each."""
    found = {
        n: v for n, v in values.items() if v.ndim > 2 and v.shape[:2] == (1, len(tokens)) and v.is_floating_point()
    }
    if not found:
        return None
    norms = torch.stack([value[0].double().flatten(1).norm(dim=-1) for value in found.values()])
    axes = Axis("path", tuple(found)), Axis("pos", tuple(tokens))
    return Result("length of each token's vector", "norm", norms, axes)
