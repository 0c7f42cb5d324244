"""The findings of `nnzoo demo` as one HTML page that needs nothing else: no script, no network, light or dark."""

from collections.abc import Iterable
from html import escape

from nnzoo.architectures.html import shown
from nnzoo.cli.document import document, html_cell, html_table
from nnzoo.cli.findings import Findings, Induction, Lens, Patch, Predictions, Section


def page(findings: Findings) -> str:
    """The whole page."""
    drawings = (
        _predictions(findings.predictions, shown(findings.prompt.answer)),
        _lens(findings.lens, shown(findings.prompt.answer)),
        _induction(findings.induction),
        _patch(findings.patch),
    )
    sections = map(_section, range(1, 5), findings.sections(), drawings)
    about = f"{findings.family} with {findings.n_layers} blocks. Hover over a cell for its value."
    return document(f"Inside {findings.model}", about, "".join(sections))


def _section(number: int, section: Section, drawing: str) -> str:
    return f"""<section>
<h2>{number}. {escape(section.question)}</h2>
<p class="faint">{escape(section.explanation)}</p>
<div class="scroll">{drawing}</div>
<p class="answer">{escape(section.summary)}</p>
</section>
"""


def _predictions(predictions: Predictions, answer: str) -> str:
    tokens = " ".join(f'<span class="token">{escape(shown(token))}</span>' for token in predictions.tokens)
    rows = (_bar(token, probability, is_right=shown(token) == answer) for token, probability in predictions.likely)
    return f"<p>{tokens}</p>{html_table([], rows)}"


def _bar(token: str, probability: float, *, is_right: bool) -> str:
    kind, hover = " class=right" if is_right else "", escape(f"{token!r}: {probability:.4f}")
    bar = f'<td class="bar" style="--p:{probability:.3f}" title="{hover}"><i></i></td>'
    return f"<tr><th{kind}>{escape(shown(token))}</th><th>{probability:.1%}</th>{bar}</tr>"


def _lens(lens: Lens, answer: str) -> str:
    def cell(pos: int, layer: int) -> str:
        token, probability = lens.guesses[pos][layer], lens.probabilities[pos, layer].item()
        text = f'<span class="right">{escape(shown(token))}</span>' if shown(token) == answer else escape(shown(token))
        hover = f"{lens.tokens[pos]!r}, after block {layer}: {token!r} {probability:.3f}"
        return html_cell(probability, hover, text)

    layers = range(lens.probabilities.shape[1])
    rows = (_row(_head(token), (cell(pos, i) for i in layers)) for pos, token in enumerate(lens.tokens))
    return html_table(["", *(f"block {i}" for i in layers)], rows)


def _induction(induction: Induction) -> str:
    note = f"The attention pattern of head {induction.head} of block {induction.layer}: from each row to the columns."
    return f"{_scores(induction)}<p>{note}</p>{_pattern(induction)}"


def _scores(induction: Induction) -> str:
    def cell(layer: int, head: int) -> str:
        score = induction.scores[layer, head].item()
        is_best = (layer, head) == (induction.layer, induction.head)
        text = f"<b>{score:.2f}</b>" if is_best else f"{score:.2f}"
        return html_cell(score, f"block {layer}, head {head}: {score:.4f}", text)

    layers, heads = map(range, induction.scores.shape)
    rows = (_row(f"<th>block {layer}</th>", (cell(layer, head) for head in heads)) for layer in layers)
    return html_table(["", *(f"head {head}" for head in heads)], rows)


def _pattern(induction: Induction) -> str:
    tokens = induction.tokens

    def cell(query: int, key: int) -> str:
        weight = induction.pattern[query, key].item()
        hover = f"from {tokens[query]!r} ({query}) to {tokens[key]!r} ({key}): {weight:.3f}"
        return html_cell(weight, hover, "", "second" if key == induction.period else "")

    places = range(len(tokens))
    rows = (_row(_head(tokens[query]), (cell(query, key) for key in places)) for query in places)
    return html_table(["", *map(shown, tokens)], rows, "pattern")


def _patch(patch: Patch) -> str:
    def cell(pos: int, layer: int) -> str:
        moved = patch.moved[pos, layer].item()
        hover = f"{patch.tokens[pos]!r} (token {pos}), before block {layer}: {moved:.4f}"
        return html_cell(moved, hover, f"{moved:.2f}".replace("-0.00", "0.00"))

    layers = range(patch.moved.shape[1])
    labels = [shown(token) for token in patch.tokens]
    labels[patch.changed] += f" (was {shown(patch.corrupted_tokens[patch.changed])})"
    rows = (_row(_head(label), (cell(pos, i) for i in layers)) for pos, label in enumerate(labels))
    return html_table(["before", *(f"block {i}" for i in layers)], rows)


def _row(head: str, cells: Iterable[str]) -> str:
    return f"<tr>{head}{''.join(cells)}</tr>"


def _head(token: str) -> str:
    return f"<th>{escape(shown(token))}</th>"
