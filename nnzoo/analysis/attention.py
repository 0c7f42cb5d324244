"""Attention patterns: where each head looks, as numbers and as a picture of all heads of a layer.

Source: Vaswani et al. 2017, Attention Is All You Need (https://arxiv.org/abs/1706.03762), which draws them so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from nnzoo.analysis.results import Axis, Result
from nnzoo.analysis.sites import sites_of
from nnzoo.analysis.subject import Model, Subject, exclusive
from nnzoo.architectures.html import LINE, POSITIVE, picture, shown

SEEN = 0.005  # a weight below this is as white as none
LABELLED = 32  # more tokens than that have no room for names, and smaller cells
LETTERS = 12  # of a token beside a head
STYLE = f"""
.nnzoo .heads {{ display: flex; flex-wrap: wrap; gap: 6px 18px; margin-bottom: 14px; }}
.nnzoo .heads svg text {{ font: 9px ui-monospace, Menlo, Consolas, monospace; fill: currentColor; opacity: .75; }}
.nnzoo .heads svg .name {{ font: 600 12px system-ui, sans-serif; opacity: 1; }}
.nnzoo .heads svg .frame {{ fill: none; stroke: {LINE}; pointer-events: none; }}
.nnzoo .heads svg .weight {{ fill: rgb({POSITIVE}); }}
.nnzoo .heads svg .weight:hover {{ stroke: currentColor; stroke-width: 1.5; }}
"""


@dataclass(frozen=True, eq=False, repr=False)
class Attention(Result):
    """Weights from each query to each key: [layer head query key], or a part of it that has both."""

    def at(self, **places: int) -> Result:
        """The part at one place of some axes, which are dropped: `patterns.at(layer=2, head=1)`."""
        part = super().at(**places)
        both = {"query", "key"} <= part.shape.keys()
        return Attention(part.title, part.quantity, part.values, part.axes) if both else part

    def hover(self, index: tuple[int, ...]) -> str:
        """From which query to which key, and the weight."""
        (*_, queries, keys), (*_, query, key) = self.axes, index
        there = f"{queries.labels[query]!r} ({query}) → {keys.labels[key]!r} ({key})"
        return f"{there}: {self.values[index].item():.3f}"

    def _repr_html_(self) -> str:
        hint = "each row looks at columns; hover over a weight for both ends of it"
        title = f"<b>{escape(self.title)}</b> <span class='faint'>{hint}</span>"
        *leading, _, _ = self.values.shape
        layers = [*range(leading[0])] if len(leading) == 2 else [None]
        return picture(title, "".join(f'<div class="heads">{"".join(self._layer(i))}</div>' for i in layers), STYLE)

    def _layer(self, layer: int | None) -> Iterator[str]:
        *names, _, _ = self.axes
        heads = range(len(names[-1].labels)) if names else [None]
        for head in heads:
            index = tuple(i for i in (layer, head) if i is not None)
            words = ", ".join(f"{axis.name} {axis.labels[i]}" for axis, i in zip(names, index, strict=True))
            yield self._head(index, words)

    def _head(self, index: tuple[int, ...], name: str) -> str:
        """One head as an SVG: weights in a frame, tokens at its sides."""
        queries, keys = self.axes[-2:]
        labelled = len(keys.labels) <= LABELLED
        size, left, top = (12, _room(queries), _room(keys) + 20) if labelled else (7, 8, 22)
        width, height = len(keys.labels) * size, len(queries.labels) * size
        parts = [f'<text class="name" x="{left}" y="13">{escape(name)}</text>']
        parts += self._labels(left, top, size) if labelled else []
        parts += self._weights(index, left, top, size)
        parts.append(f'<rect class="frame" x="{left}" y="{top}" width="{width}" height="{height}"/>')
        box = f'width="{left + width + 2}" height="{top + height + 2}"'
        return f'<svg role="img" aria-label="{escape(name)}" {box}>{"".join(parts)}</svg>'

    def _labels(self, left: int, top: int, size: int) -> Iterator[str]:
        queries, keys = self.axes[-2:]
        for row, label in enumerate(queries.labels):
            yield f'<text x="{left - 4}" y="{top + (row + 1) * size - 3}" text-anchor="end">{_short(label)}</text>'
        for column, label in enumerate(keys.labels):
            x = left + (column + 1) * size - 3
            yield f'<text x="{x}" y="{top - 4}" transform="rotate(-90 {x} {top - 4})">{_short(label)}</text>'

    def _weights(self, index: tuple[int, ...], left: int, top: int, size: int) -> Iterator[str]:
        weights = self.values[index]
        for query, key in (weights >= SEEN).nonzero().tolist():
            place = f'x="{left + key * size}" y="{top + query * size}" width="{size}" height="{size}"'
            strength = f'fill-opacity="{min(weights[query, key].item(), 1):.2f}"'
            hover = escape(self.hover((*index, query, key)))
            yield f'<rect class="weight" {place} {strength}><title>{hover}</title></rect>'


def _short(label: str) -> str:
    label = shown(label)
    return escape(label if len(label) <= LETTERS else label[: LETTERS - 1] + "…")


def _room(axis: Axis) -> int:
    """Pixels for the longest token of an axis."""
    return 8 + 6 * min(LETTERS, max(len(shown(label)) for label in axis.labels))


@exclusive
@torch.no_grad()
def attention_patterns(model: Model, prompt: str | Tensor, *, layers: Sequence[int] | None = None) -> Attention:
    """How much each head looks from each token (query) at those before it (key): [layer head query key], 0 to 1.

    A notebook shows all heads of a layer in a row. One prompt; raises ValueError for several.

    >>> from nnzoo import LanguageModel
    >>> patterns = attention_patterns(LanguageModel("nnzoo/tiny-gpt2"), "The capital of France is")
    >>> patterns.shape
    {'layer': 4, 'head': 4, 'query': 5, 'key': 5}
    >>> patterns.at(layer=2, head=1, query=-1)
    Result('attention patterns, layer 2, head 1, query  is', share of attention, key=5)
    """
    subject = Subject(model)
    tokens = subject.read(prompt)
    if len(tokens.ids) > 1:
        raise ValueError(f"attention patterns are of one prompt, not {len(tokens.ids)}")
    sites = sites_of(subject, tokens, "pattern", "head query", layers)
    _, cache = subject.native.run_with_cache(tokens.ids, names_filter=list(sites.names), return_type=None)
    values = torch.stack([cache[name][0] for name in sites.names])
    axes = (sites.axes[0], *(subject.axis(name, tokens) for name in ("head", "query", "key")))
    return Attention("attention patterns", "share of attention", values, axes)
