"""`nnzoo attention`: where each head looks."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import torch
from jaxtyping import Float, Int
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from nnzoo import LanguageModel
from nnzoo.analysis.results import Result
from nnzoo.analysis.subject import Subject
from nnzoo.architectures.html import shown
from nnzoo.cli.document import Answer, html_cell, html_table
from nnzoo.cli.generate import utf8
from nnzoo.cli.terminal import shade

MOST_CELLS = 200_000  # of a page: 16 MB
LABEL = 12


@dataclass(frozen=True, eq=False, repr=False)
class Looks(Result):
    """How much of a head's attention goes where it looks most, and at which token that is."""

    keys: Int[Tensor, "layer head"]
    tokens: tuple[str, ...]

    def cell(self, index: tuple[int, ...]) -> str:
        return f"{shown(self.tokens[int(self.keys[index])])} {self.values[index].item():.2f}"


@dataclass(frozen=True)
class Head:
    """One head's pattern on a prompt."""

    layer: int
    head: int
    pattern: Float[Tensor, "query key"]
    tokens: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"block {self.layer}, head {self.head}"


@torch.no_grad()
def run(options: Namespace) -> int:
    """Show the patterns of the heads that are asked for; without any, where each head looks from the last token."""
    model = LanguageModel(options.model)
    subject = Subject(model)
    check(subject, options.layer, options.head)
    tokens = subject.read(utf8(options.prompt))
    _, cache = subject.native.run_with_cache(tokens.ids, names_filter="*.attn.hook_pattern", return_type=None)
    patterns = torch.stack([cache["pattern", layer][0] for layer in range(subject.n_layers)])  # [layer head query key]
    labels = subject.labels(tokens)
    about = "Each row is a token that looks, each column one that it looks at: the stronger, the more."
    answer = Answer(f"Attention: {options.model}", about, options.html)
    if options.layer is None and options.head is None:
        answer.add(overview(subject, patterns, labels))
    heads = list(chosen(patterns, labels, options.layer, options.head))
    n_cells = len(heads) * len(labels) ** 2
    if options.html is not None and n_cells > MOST_CELLS:
        answer.say(f"{len(heads)} patterns of {len(labels)} tokens are too many for one page: choose with --layer.")
    elif options.html is not None:
        draw_all(answer, heads)
    elif options.layer is not None or options.head is not None:
        for head in heads:
            answer.draw(lambda head=head: in_terminal(head), str)  # type: ignore[misc]
    else:
        answer.say("--layer N shows the patterns of a block, --head N those of one head; --html FILE draws all.")
    return answer.end()


def check(subject: Subject, layer: int | None, head: int | None) -> None:
    """Raise ValueError for a layer or a head that is not there."""
    for name, asked, n in (("layer", layer, subject.n_layers), ("head", head, subject.n_heads)):
        if asked is not None and not 0 <= asked < n:
            raise ValueError(f"there is no --{name} {asked}: the model has {n}, 0 to {n - 1}")


def overview(subject: Subject, patterns: Float[Tensor, "layer head query key"], tokens: tuple[str, ...]) -> Looks:
    """Where each head looks from the last token."""
    most = patterns[:, :, -1].max(dim=-1)
    axes = subject.axis("layer"), subject.axis("head")
    title = f"where heads look from the last token, {shown(tokens[-1])!r}"
    return Looks(title, "share of attention", most.values, axes, most.indices, tokens)


def chosen(
    patterns: Float[Tensor, "layer head query key"], tokens: tuple[str, ...], layer: int | None, head: int | None
) -> Iterator[Head]:
    """The heads that were asked for."""
    for i, of_layer in enumerate(patterns):
        for j, pattern in enumerate(of_layer):
            if layer in (None, i) and head in (None, j):
                yield Head(i, j, pattern, tokens)


def in_terminal(head: Head) -> Group:
    """A pattern in shades, and after each row where it looks most."""
    table = Table.grid(padding=(0, 1))
    for query, row in enumerate(head.pattern):
        key = int(row.argmax())
        drawn = "".join(shade(share) * 2 for share in row.tolist())
        most = f"{shown(head.tokens[key])} {row[key].item():.2f}"
        table.add_row(Text(cut(head.tokens[query]), style="dim"), Text(drawn, style="cyan"), Text(f"→ {most}"))
    return Group(Text(head.name, style="bold"), table)


def cut(token: str) -> str:
    """A token as a label has it.

    >>> cut(" Mary"), cut("Donaudampfschiff")
    ('Mary', 'Donaudampfs…')
    """
    text = shown(token)
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"


def draw_all(answer: Answer, heads: list[Head]) -> None:
    """Patterns on a page: with tokens where there are few heads, small where there are many."""
    few = len(heads) <= 16
    figures = (f"<figure><figcaption>{head.name}</figcaption>{grid(head, few)}</figure>" for head in heads)
    answer.draw(str, lambda: f'<div class="heads">{"".join(figures)}</div>')


def grid(head: Head, labelled: bool) -> str:
    """A pattern as a table whose cells say on hovering what they are."""
    texts = [shown(token) for token in head.tokens]
    rows = []
    for query, row in enumerate(head.pattern.tolist()):
        name = f"<th>{escape(texts[query])}</th>" if labelled else ""
        cells = (html_cell(share, f"{texts[query]} → {texts[key]}: {share:.3f}", "") for key, share in enumerate(row))
        rows.append(f"<tr>{name}{''.join(cells)}</tr>")
    return html_table(["", *texts] if labelled else [], rows, "pattern" if labelled else "small")
