"""What every picture is made of: a page that stands alone, tables, tinted cells. No script, no network.

A picture in a notebook takes its ink from the notebook and paints tints over the notebook's own paper, so that it can
be read in light and in dark ones, whatever made them so. A page brings ink and paper along.
"""

from collections.abc import Iterable
from html import escape

LIGHT = "--page: #fbfbfa; --ink: #1c1e21; --faint: #6a6f76"
DARK = "--page: #15171a; --ink: #e6e7e9; --faint: #9aa0a8"
POSITIVE, NEGATIVE = "59, 130, 246", "239, 68, 68"  # seen on white and on black alike, as a tint over either
LINE = "rgba(128, 128, 128, .35)"

PAPER = f"""
:root {{ color-scheme: light dark; {LIGHT}; }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK}; }} }}
body {{ margin: 0; padding: 1.2rem; background: var(--page); color: var(--ink); font: 14px/1.5 system-ui, sans-serif; }}
"""

# The selectors are longer than they need be: notebooks have styles of their own for tables.
STYLE = f"""
.nnzoo {{ color: inherit; font: 13px/1.5 system-ui, sans-serif; overflow-x: auto; }}
.nnzoo .title {{ margin: .2em 0 .5em; }}
.nnzoo .faint {{ opacity: .65; }}
.nnzoo .mono {{ font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace; }}
.nnzoo table.rows {{ border-collapse: collapse; margin: 0; color: inherit; background: transparent; border: 0;
  font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace; display: table; width: auto; }}
.nnzoo table.rows tr:nth-child(n) {{ background: transparent; border: 0; }}
.nnzoo table.rows tr:nth-child(n) > * {{ text-align: left; padding: 2px 14px 2px 0; border: 0; min-width: 0;
  border-bottom: 1px solid {LINE}; white-space: nowrap; vertical-align: top; color: inherit; background: transparent; }}
.nnzoo table.rows thead tr:nth-child(n) > * {{ font-weight: normal; opacity: .65; }}
.nnzoo table.rows tr:nth-child(n) > .number {{ text-align: right; }}
.nnzoo table.rows tr:nth-child(n) > .wrap {{ white-space: normal; }}
.nnzoo summary {{ cursor: pointer; }}
"""


def page(title: str, body: str, style: str = PAPER) -> str:
    """A page that needs nothing else.

    >>> page("a < b", "<p>true</p>", "").splitlines()[5:]
    ['<title>a &lt; b</title>', '<style></style>', '</head>', '<body>', '<p>true</p>', '</body>', '</html>']
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def picture(title: str, body: str, style: str = "") -> str:
    """A picture for a notebook or a page, under its title; `style` is what it needs beyond tables."""
    return f'<div class="nnzoo"><style>{STYLE}{style}</style><div class="title">{title}</div>{body}</div>'


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells, each a `<td>` or a `<th>`, under heads that are cells too."""
    head = "".join(heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def cell(text: str, kind: str = "", hover: str = "") -> str:
    """A cell of a table; what it says is text.

    >>> cell("<b>", "number", "bold")
    '<td class="number" title="bold">&lt;b&gt;</td>'
    """
    kinds = f' class="{kind}"' if kind else ""
    return f"<td{kinds}{titled(hover)}>{escape(text)}</td>"


def titled(hover: str) -> str:
    """The attribute for what is shown when the mouse stands still."""
    return f' title="{escape(hover, quote=True)}"' if hover else ""


def tint(share: float) -> str:
    """A colour to lay over the paper, for a number from -1 to 1; what is no number has none.

    >>> tint(0.5), tint(-2.0), tint(float("nan"))
    ('rgba(59, 130, 246, 0.35)', 'rgba(239, 68, 68, 0.70)', 'rgba(59, 130, 246, 0.00)')
    """
    strength = min(abs(share), 1.0) if share == share else 0.0
    return f"rgba({NEGATIVE if share < 0 else POSITIVE}, {0.7 * strength:.2f})"


def shown(token: str) -> str:
    r"""A token as a cell has it: without the space in front, and with blanks made visible.

    >>> shown(" Mary"), shown("\n"), shown(" ")
    ('Mary', '\\n', '␣')
    """
    return repr(token.strip(" "))[1:-1] or "␣"
