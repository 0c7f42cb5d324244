"""A number for each token, shown as the text itself with every token in a colour of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import torch
from jaxtyping import Float
from torch import Tensor

from nnzoo.analysis.results import Axis, Result
from nnzoo.architectures.html import picture, tint, titled

STYLE = """
.nnzoo .text { white-space: pre-wrap; font: 14px/1.9 ui-monospace, Menlo, Consolas, monospace; max-width: 100ch; }
.nnzoo .text span { padding: 2px 0; border-radius: 3px; }
.nnzoo .text span:hover { outline: 1.5px solid currentColor; }
"""


@dataclass(frozen=True, eq=False, repr=False)
class ColoredText(Result):
    """Numbers of the last tokens of a text, [pos], or of several texts, [prompt pos]; a notebook shows the text."""

    texts: tuple[tuple[str, ...], ...]  # each text's tokens; those before the first number are shown without colour

    def _repr_html_(self) -> str:
        largest = max((abs(value) for row in self._rows() for value in row if value == value), default=0.0)
        scale = f"<span class='faint'>{escape(self.quantity)}, full colour at {largest:.3g}</span>"
        rows = zip(self.texts, self._rows(), strict=True)
        lines = (f'<div class="text">{"".join(_spans(*row, largest or 1.0, self.quantity))}</div>' for row in rows)
        return picture(f"<b>{escape(self.title)}</b> {scale}", "".join(lines), STYLE)

    def _rows(self) -> list[list[float]]:
        values = self.values.detach().tolist()
        return values if self.values.ndim == 2 else [values]


def _spans(tokens: tuple[str, ...], values: list[float], largest: float, quantity: str) -> Iterator[str]:
    start = len(tokens) - len(values)
    first = start + next((pos for pos, token in enumerate(tokens) if token), 0)  # padding stands before the text
    for pos, token in enumerate(tokens):
        text = escape(token).replace("\n", "↵\n")
        if pos < first:
            yield f"<span>{text}</span>"
        elif token:
            value = values[pos - start]
            hover = titled(f"{token!r} ({pos}): {value:.4g} {quantity}")
            yield f'<span style="background: {tint(value / largest)}"{hover}>{text}</span>'


def color_tokens(
    tokens: Sequence[str], values: Float[Tensor, "pos"] | Sequence[float], title: str = "", quantity: str = "value"
) -> ColoredText:
    """Tokens coloured by a number for each of them, or for each of the last ones: blue above 0, red below.

    Raises ValueError for more numbers than tokens.

    >>> from nnzoo import load
    >>> model = load("nnzoo/tiny-gpt2")
    >>> _, cache = model.run_with_cache("The capital of France is Paris.")
    >>> neuron = cache["post", 1][0, :, 7]
    >>> color_tokens(model.to_str_tokens("The capital of France is Paris."), neuron, "neuron 7 of block 1")
    ColoredText('neuron 7 of block 1', value, pos=7)
    """
    numbers = torch.as_tensor(values)
    if len(numbers) > len(tokens):
        raise ValueError(f"{len(numbers)} numbers for {len(tokens)} tokens")
    pos = Axis("pos", tuple(tokens[len(tokens) - len(numbers) :]))
    return ColoredText(title, quantity, numbers, (pos,), (tuple(tokens),))
