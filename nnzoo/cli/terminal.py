"""The findings of `nnzoo demo` in a terminal: in color or without, 80 columns or more."""

from pathlib import Path

import torch
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nnzoo.architectures.html import shown
from nnzoo.cli.findings import CLEARLY, FULLY, Findings, Induction, Lens, Patch, Predictions

SHADES = " ░▒▓█"
INDENT, LABEL, CELL = 3, 11, 11  # columns of the terminal


def show(findings: Findings, file: Path, *, color: bool = True) -> None:
    """Print the findings, and where their page is."""
    console = Console(highlight=False, no_color=not color)
    answer, room = shown(findings.prompt.answer), console.width - INDENT
    drawings = (
        _predictions(findings.predictions, answer),
        _lens(findings.lens, answer, room),
        _induction(findings.induction, room),
        _patch(findings.patch, room),
    )
    console.print()
    console.print(Text.assemble((findings.model, "bold"), f", {findings.family} with {findings.n_layers} blocks"))
    for number, (section, drawing) in enumerate(zip(findings.sections(), drawings, strict=True), start=1):
        console.print()
        console.print(Text(f"{number}  {section.question}", style="bold cyan"))
        console.print(_indented(Group(section.explanation, "", drawing, "", Text(section.summary, style="bold"))))
    console.print()
    console.print(Text.assemble("As a page, with every value: ", (str(file.resolve()), "bold")), soft_wrap=True)


def _indented(content: RenderableType) -> Padding:
    return Padding(content, (0, 0, 0, INDENT), expand=False)


def shade(value: float) -> str:
    """A character that is the darker the nearer a value is to 1.

    >>> shade(0.0), shade(0.5), shade(1.0)
    (' ', '▒', '█')
    """
    return SHADES[min(max(round(value * (len(SHADES) - 1)), 0), len(SHADES) - 1)]


def _predictions(predictions: Predictions, answer: str) -> RenderableType:
    tokens = Text(" ").join(Text(shown(token), style="underline") for token in predictions.tokens)
    table = Table.grid(padding=(0, 2))
    for token, probability in predictions.likely:
        bar = Text("█" * round(40 * probability), style="cyan")
        table.add_row(
            Text(shown(token), style="bold green" if shown(token) == answer else ""), f"{probability:6.1%}", bar
        )
    return Group(tokens, "", table)


def _lens(lens: Lens, answer: str, room: int) -> RenderableType:
    layers = spread(lens.probabilities.shape[1], (room - LABEL) // CELL)
    table = Table.grid()
    table.add_column(width=LABEL)
    for _ in layers:
        table.add_column(width=CELL, no_wrap=True)
    table.add_row("", *(Text(f"  block {layer}", style="dim") for layer in layers))
    for pos, token in enumerate(lens.tokens):
        cells = [_guess(lens.guesses[pos][i], lens.probabilities[pos, i].item(), answer) for i in layers]
        table.add_row(Text(_cut(token, LABEL), style="dim"), *cells)
    return table


def _guess(token: str, probability: float, answer: str) -> Text:
    style = "bold green" if shown(token) == answer else "dim" if probability < 0.3 else ""
    return Text.assemble((shade(probability), "cyan"), " ", (_cut(token, CELL - 2), style))


def _induction(induction: Induction, room: int) -> RenderableType:
    name = f"head {induction.head} of block {induction.layer}"
    note = f"Where {name} looks from each word of the second copy, the darker the more:"
    return Group(_scores(induction, room), "", note, "", _pattern(induction, room))


def _scores(induction: Induction, room: int) -> RenderableType:
    """Numbers where there is room for them, shades where a model has many heads."""
    in_numbers = room - LABEL >= 6 * induction.scores.shape[1]
    table = Table.grid()
    table.add_column(width=LABEL)
    if in_numbers:
        table.add_row(
            Text("head", style="dim"),
            Text("".join(f"{head:<6}" for head in range(induction.scores.shape[1])), style="dim"),
        )
    for layer, row in enumerate(induction.scores.tolist()):
        cells = Text()
        for head, score in enumerate(row):
            is_best = (layer, head) == (induction.layer, induction.head)
            style = "bold green" if is_best else "dim" if in_numbers and score < CLEARLY else ""
            cells += Text(f"{score:.2f}  " if in_numbers else shade(score) * 2, style=style)
        table.add_row(Text(f"block {layer}", style="dim"), cells)
    return table


def _pattern(induction: Induction, room: int) -> RenderableType:
    period = induction.period
    width = 2 if room - LABEL >= 4 * period + 2 else 1
    table = Table.grid()
    table.add_column(width=LABEL)
    table.add_row("", Text("first copy".ljust(period * width) + "│ second copy", style="dim"))
    for query in range(period, 2 * period):
        drawn = "".join(shade(weight) * width for weight in induction.pattern[query].tolist())
        line = Text.assemble((drawn[: period * width], "cyan"), ("│ ", "dim"), (drawn[period * width :], "cyan"))
        table.add_row(Text(_cut(induction.tokens[query], LABEL), style="dim"), line)
    return table


def _patch(patch: Patch, room: int) -> RenderableType:
    cell = 6
    layers = spread(patch.moved.shape[1], (room - 2 * LABEL) // cell)
    table = Table.grid()
    table.add_column(width=2 * LABEL)
    for _ in layers:
        table.add_column(width=cell, justify="right")
    table.add_row(Text("before block", style="dim"), *(Text(str(layer), style="dim") for layer in layers))
    for pos, token in enumerate(patch.tokens):
        label = _cut(token, LABEL)
        if pos == patch.changed:
            label = f"{label} ({_cut(patch.corrupted_tokens[pos], LABEL - 4)})"
        table.add_row(Text(label, style="dim"), *(_moved(patch.moved[pos, i].item()) for i in layers))
    return table


def _moved(value: float) -> Text:
    if abs(value) < 0.05:
        return Text("·", style="dim")
    return Text(f"{value:.2f}", style="bold green" if value > FULLY else "")


def _cut(token: str, width: int) -> str:
    text = shown(token)
    return text if len(text) < width else text[: width - 2] + "…"


def spread(n: int, most: int) -> list[int]:
    """At most so many of the numbers below n, evenly apart, the last among them.

    >>> spread(5, 9), spread(12, 4)
    ([0, 1, 2, 3, 4], [0, 4, 7, 11])
    """
    return list(range(n)) if n <= most else torch.linspace(0, n - 1, max(most, 2)).round().int().tolist()
