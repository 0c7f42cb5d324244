"""The findings of `nnzoo demo` as one HTML page that needs nothing else: no script, no network, light or dark."""

from collections.abc import Iterable, Sequence
from html import escape

from nnzoo.architectures import html
from nnzoo.architectures.html import DARK, LIGHT, shown
from nnzoo.cli.findings import Findings, Induction, Lens, Patch, Predictions, Section

COLORS = f"""
:root {{ color-scheme: light dark; {LIGHT}; --line: #d9dbde;
        --heat: 38, 118, 214; --strength: .75; --right: 20, 122, 60; }}
@media (prefers-color-scheme: dark) {{
  :root {{ {DARK}; --line: #33373c; --heat: 88, 158, 245; --strength: .65; --right: 96, 208, 138; }}
}}
"""
STYLE = (
    COLORS
    + """
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin: 3rem 0 .3rem; }
p { margin: .3rem 0; max-width: 46rem; }
.faint, th { color: var(--faint); font-weight: normal; }
.answer { font-weight: 600; }
.right { color: rgb(var(--right)); font-weight: 600; }
td .right { color: inherit; text-decoration: underline 2px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
.token { display: inline-block; border: 1px solid var(--line); border-radius: 3px; padding: 0 .3rem; margin: .1rem 0; }
table { border-collapse: collapse; font-size: .85rem; }
th { text-align: right; padding: .1rem .5rem; white-space: nowrap; }
td { background: rgba(var(--heat), calc(var(--p, 0) * var(--strength))); padding: .1rem .5rem; min-width: 2.4rem;
     text-align: center; white-space: nowrap; border: 1px solid var(--page); }
td:hover { outline: 2px solid var(--ink); }
td.bar { background: none; text-align: left; min-width: 18rem; padding-left: 0; }
td.bar i { display: block; height: .8rem; width: calc(var(--p) * 100%);
           background: rgba(var(--heat), var(--strength)); }
.pattern td { min-width: 0; width: 13px; height: 13px; padding: 0; border-color: var(--line); }
.pattern thead th { writing-mode: vertical-rl; text-align: right; padding: .3rem 0; line-height: 13px; }
.pattern tbody th { line-height: 13px; }
.pattern td.second { border-left: 2px solid var(--faint); }
"""
)


def page(findings: Findings) -> str:
    """The whole page."""
    drawings = (
        _predictions(findings.predictions, shown(findings.prompt.answer)),
        _lens(findings.lens, shown(findings.prompt.answer)),
        _induction(findings.induction),
        _patch(findings.patch),
    )
    sections = map(_section, range(1, 5), findings.sections(), drawings)
    title = f"Inside {findings.model}"
    body = f"""<h1>{escape(title)}</h1>
<p class="faint">{escape(findings.family)} with {findings.n_layers} blocks. Hover over a cell for its value.</p>
{"".join(sections)}"""
    return html.page(title, body, STYLE)


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
    return f"<p>{tokens}</p>{_table([], rows)}"


def _bar(token: str, probability: float, *, is_right: bool) -> str:
    kind, hover = " class=right" if is_right else "", escape(f"{token!r}: {probability:.4f}")
    bar = f'<td class="bar" style="--p:{probability:.3f}" title="{hover}"><i></i></td>'
    return f"<tr><th{kind}>{escape(shown(token))}</th><th>{probability:.1%}</th>{bar}</tr>"


def _lens(lens: Lens, answer: str) -> str:
    def cell(pos: int, layer: int) -> str:
        token, probability = lens.guesses[pos][layer], lens.probabilities[pos, layer].item()
        text = f'<span class="right">{escape(shown(token))}</span>' if shown(token) == answer else escape(shown(token))
        hover = f"{lens.tokens[pos]!r}, after block {layer}: {token!r} {probability:.3f}"
        return _cell(probability, hover, text)

    layers = range(lens.probabilities.shape[1])
    rows = (_row(_head(token), (cell(pos, i) for i in layers)) for pos, token in enumerate(lens.tokens))
    return _table(["", *(f"block {i}" for i in layers)], rows)


def _induction(induction: Induction) -> str:
    note = f"The attention pattern of head {induction.head} of block {induction.layer}: from each row to the columns."
    return f"{_scores(induction)}<p>{note}</p>{_pattern(induction)}"


def _scores(induction: Induction) -> str:
    def cell(layer: int, head: int) -> str:
        score = induction.scores[layer, head].item()
        is_best = (layer, head) == (induction.layer, induction.head)
        text = f"<b>{score:.2f}</b>" if is_best else f"{score:.2f}"
        return _cell(score, f"block {layer}, head {head}: {score:.4f}", text)

    layers, heads = map(range, induction.scores.shape)
    rows = (_row(f"<th>block {layer}</th>", (cell(layer, head) for head in heads)) for layer in layers)
    return _table(["", *(f"head {head}" for head in heads)], rows)


def _pattern(induction: Induction) -> str:
    tokens = induction.tokens

    def cell(query: int, key: int) -> str:
        weight = induction.pattern[query, key].item()
        hover = f"from {tokens[query]!r} ({query}) to {tokens[key]!r} ({key}): {weight:.3f}"
        return _cell(weight, hover, "", "second" if key == induction.period else "")

    places = range(len(tokens))
    rows = (_row(_head(tokens[query]), (cell(query, key) for key in places)) for query in places)
    return _table(["", *map(shown, tokens)], rows, "pattern")


def _patch(patch: Patch) -> str:
    def cell(pos: int, layer: int) -> str:
        moved = patch.moved[pos, layer].item()
        hover = f"{patch.tokens[pos]!r} (token {pos}), before block {layer}: {moved:.4f}"
        return _cell(moved, hover, f"{moved:.2f}".replace("-0.00", "0.00"))

    layers = range(patch.moved.shape[1])
    labels = [shown(token) for token in patch.tokens]
    labels[patch.changed] += f" (was {shown(patch.corrupted_tokens[patch.changed])})"
    rows = (_row(_head(label), (cell(pos, i) for i in layers)) for pos, label in enumerate(labels))
    return _table(["before", *(f"block {i}" for i in layers)], rows)


def _table(titles: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    head = f"<thead><tr>{''.join(f'<th>{escape(title)}</th>' for title in titles)}</tr></thead>" if titles else ""
    return f'<table class="{kind}">{head}<tbody>{"".join(rows)}</tbody></table>'


def _row(head: str, cells: Iterable[str]) -> str:
    return f"<tr>{head}{''.join(cells)}</tr>"


def _head(token: str) -> str:
    return f"<th>{escape(shown(token))}</th>"


def _cell(value: float, hover: str, text: str, kind: str = "") -> str:
    shade = min(max(value, 0), 1)
    style = f' style="--p:{shade:.2f}"' if shade >= 0.005 else ""
    return f'<td{f" class={kind}" if kind else ""}{style} title="{escape(hover)}">{text}</td>'
