"""A generation step by step: what was chosen, and what else was likely."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from nnzoo.analysis.lens import Guesses, guesses
from nnzoo.analysis.results import Axis, Result
from nnzoo.analysis.subject import Model, Subject, exclusive
from nnzoo.architectures.html import cell, picture, shown, table, tint, titled
from nnzoo.generation import generate
from nnzoo.language_model import LanguageModel

STYLE = """
.nnzoo .text { white-space: pre-wrap; font: 14px/1.9 ui-monospace, Menlo, Consolas, monospace; max-width: 100ch;
  margin-bottom: 8px; }
.nnzoo .text span { border-radius: 3px; padding: 2px 0; margin-right: 1px; }
.nnzoo table.rows tr:nth-child(n) > td.guess { padding: 2px 10px; }
.nnzoo table.rows tr:nth-child(n) > td.chosen { outline: 1.5px solid currentColor; outline-offset: -2px; }
"""


@dataclass(frozen=True, eq=False, repr=False)
class Steps(Result):
    """Probabilities of the likeliest tokens at each step of a generation, [step rank], and what was chosen."""

    prompt: str
    chosen: Guesses  # of each step, with its probability
    likely: tuple[Guesses, ...]  # [step][rank]

    @property
    def text(self) -> str:
        """What was generated, without the prompt."""
        return "".join(token for token, _ in self.chosen)

    def cell(self, index: tuple[int, ...]) -> str:
        """The token and its probability."""
        step, rank = index
        token, probability = self.likely[step][rank]
        return f"{shown(token)} {probability:.2f}"

    def _repr_html_(self) -> str:
        ranks = [f"{rank + 1}." for rank in range(self.values.shape[1])]
        rows = table(map(cell, ["step", "chosen", "", *ranks]), map(self._row, range(len(self.chosen))))
        return picture(f"<b>{escape(self.title)}</b>", f'<div class="text">{"".join(self._spans())}</div>{rows}', STYLE)

    def _spans(self) -> Iterator[str]:
        yield f'<span class="faint">{escape(self.prompt)}</span>'
        for step, ((token, probability), likely) in enumerate(zip(self.chosen, self.likely, strict=True)):
            others = "\n".join(f"{p:.3f} {other!r}" for other, p in likely)
            style = f'style="background: {tint(probability)}"'
            hover = titled(f"step {step}: {token!r}\n\n{others}")
            yield f"<span {style}{hover}>{escape(token)}</span>"

    def _row(self, step: int) -> Iterator[str]:
        token, probability = self.chosen[step]
        yield f'<th class="number">{step}</th>'
        yield f"<td><b>{escape(shown(token))}</b></td>"
        yield f'<td class="number">{probability:.1%}</td>'
        for other, p in self.likely[step]:
            kind = "guess chosen" if other == token else "guess"
            style = f'style="background: {tint(p)}"'
            yield f'<td class="{kind}" {style}{titled(f"{other!r}: {p:.4f}")}>{escape(shown(other))} {p:.2f}</td>'


@exclusive
@torch.no_grad()
def generation_steps(model: Model, prompt: str | Tensor, *, k: int = 5, **options: Any) -> Steps:
    """Generate from a prompt, and look at each step's k likeliest tokens: [step rank], probabilities.

    `options` are those of `generate`: max_new_tokens, do_sample, ... Probabilities are the model's own, before
    temperature and whatever else the options do to them. One prompt, one text; raises ValueError for more.

    >>> from nnzoo import LanguageModel
    >>> steps = generation_steps(LanguageModel("nnzoo/tiny-gpt2"), "The capital of France is", max_new_tokens=2)
    >>> steps.text, steps.shape
    (' Paris.', {'step': 2, 'rank': 5})
    >>> steps.chosen[0] == steps.likely[0][0]
    True
    """
    subject = Subject(model)
    tokens = subject.read(prompt)
    run = model.generate if isinstance(model, LanguageModel) else lambda ids, **how: generate(model, ids, **how)
    ids: Tensor = torch.as_tensor(run(tokens.ids, **options))
    if len(ids) != 1:
        raise ValueError(f"steps are of one text, and this generation has {len(ids)}")
    new = ids[0, tokens.n_pos :]
    logits = subject.native(ids)[0, tokens.n_pos - 1 : -1]
    probabilities = logits.softmax(dim=-1)
    likely = tuple(guesses(subject, one, k) for one in probabilities)
    found = probabilities.gather(-1, new[:, None])[:, 0].tolist()
    chosen = tuple((subject.text(i), p) for i, p in zip(new.tolist(), found, strict=True))
    values = probabilities.topk(len(likely[0]), dim=-1).values
    axes = (Axis("step", tuple(map(str, range(len(new))))), Axis("rank", tuple(map(str, range(values.shape[1])))))
    text = "".join(map(subject.text, tokens.ids[0].tolist()))
    return Steps("generation", "probability", values, axes, text, chosen, likely)
