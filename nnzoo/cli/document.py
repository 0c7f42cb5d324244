"""One HTML page that needs nothing else: no script, no network, light or dark."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from nnzoo.analysis.drawing import as_html, rich_table
from nnzoo.analysis.results import Result
from nnzoo.architectures.html import DARK, LIGHT, page

COLORS = f"""
:root {{ color-scheme: light dark; {LIGHT}; --line: #d9dbde;
        --heat: 38, 118, 214; --strength: .75; --right: 20, 122, 60; }}
@media (prefers-color-scheme: dark) {{
  :root {{ {DARK}; --line: #33373c; --heat: 88, 158, 245; --strength: .65; --right: 96, 208, 138; }}
}}
"""
RULES = """
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
.heads { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; }
figcaption { color: var(--faint); font-size: .85rem; }
.small td { min-width: 0; width: 7px; height: 7px; padding: 0; border-color: var(--line); }
"""


def document(title: str, about: str, body: str) -> str:
    """The page. `body` is HTML, `title` and `about` are text."""
    return page(title, f'<h1>{escape(title)}</h1>\n<p class="faint">{escape(about)}</p>\n{body}', COLORS + RULES)


class Answer:
    """What a command has found: shown in the terminal part by part, or gathered in one page."""

    def __init__(self, title: str, about: str, html: str | None) -> None:
        self.title, self.about, self.html = title, about, html
        self._console, self._body = Console(highlight=False), ""
        if not self._console.is_terminal:
            self._console.width = 10_000  # a pipe gets every column
        if html is None:
            self._print(Text(title, style="bold"), Text(about, style="dim"))

    def add(self, result: Result) -> None:
        """A table of numbers."""
        self.draw(lambda: rich_table(result, self._console.width), lambda: as_html(result))

    def draw(self, in_terminal: Callable[[], RenderableType], on_page: Callable[[], str]) -> None:
        """What looks different in the two; only one of them is drawn."""
        if self.html is None:
            self._print("", in_terminal())
        else:
            self._body += f'<div class="scroll">{on_page()}</div>\n'

    def say(self, sentence: str) -> None:
        """A sentence of what it means."""
        if self.html is None:
            self._print("", Text(sentence, style="bold"))
        else:
            self._body += f'<p class="answer">{escape(sentence)}</p>\n'

    def end(self) -> int:
        """Write the page, if there is to be one; the exit status."""
        if self.html is not None:
            Path(self.html).write_text(document(self.title, self.about, self._body), encoding="utf-8")
            self._print(Text(f"written: {Path(self.html).resolve()}"))
        return 0

    def _print(self, *parts: RenderableType) -> None:
        for part in parts:
            self._console.print(part, soft_wrap=isinstance(part, Text))


def html_table(titles: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    """A table whose rows are HTML."""
    head = f"<thead><tr>{''.join(f'<th>{escape(title)}</th>' for title in titles)}</tr></thead>" if titles else ""
    return f'<table class="{kind}">{head}<tbody>{"".join(rows)}</tbody></table>'


def html_cell(value: float, hover: str, text: str, kind: str = "") -> str:
    """A cell, the darker the nearer the value is to 1."""
    shade = min(max(value, 0), 1)
    style = f' style="--p:{shade:.2f}"' if shade >= 0.005 else ""
    return f'<td{f" class={kind}" if kind else ""}{style} title="{escape(hover)}">{text}</td>'
