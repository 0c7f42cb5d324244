"""Curves of how cost grows, as one SVG: no library, light or dark as the page is."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from benchmarks.growth import Series
from benchmarks.report import show

WIDTH, HEIGHT, COLUMNS, LEFT, TOP, GAP = 300, 190, 3, 58, 46, 34
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #333 } .title { font-weight: 600; font-size: 12px }
line { stroke: #ddd } path { fill: none; stroke-width: 2 } .a { stroke: #1f6feb; fill: #1f6feb }
.b { stroke: #999; fill: #999 }
path.a, path.b { fill: none } text.a, text.b { stroke: none }
@media (prefers-color-scheme: dark) { text { fill: #ccc } line { stroke: #444 } }
"""


def picture(series: Sequence[Series]) -> str:
    """A panel for each series, both axes logarithmic."""
    lines = math.ceil(len(series) / COLUMNS)
    width, height = COLUMNS * (WIDTH + LEFT + 20), lines * (HEIGHT + TOP + GAP)
    panels = "".join(
        f'<g transform="translate({i % COLUMNS * (WIDTH + LEFT + 20) + LEFT} '
        f'{i // COLUMNS * (HEIGHT + TOP + GAP) + TOP})">{"".join(_panel(one))}</g>'
        for i, one in enumerate(series)
    )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{panels}</svg>\n'


def _panel(series: Series) -> Iterator[str]:
    taken = [second for seconds in series.seconds.values() for second in seconds]
    low, high = 10 ** math.floor(math.log10(min(taken))), 10 ** math.ceil(math.log10(max(taken)))

    def x(size: float) -> float:
        return WIDTH * math.log(size / series.sizes[0]) / math.log(series.sizes[-1] / series.sizes[0])

    def y(seconds: float) -> float:
        return HEIGHT * (1 - math.log(seconds / low) / math.log(high / low))

    yield f'<text class="title" x="0" y="-26">{escape(series.title)}, by {escape(series.unit)}</text>'
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at = y(10**power)
        yield f'<line x1="0" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="-6" y="{at + 4:.1f}" text-anchor="end">{show(10.0**power)}</text>'
    for size in series.sizes:
        yield f'<text x="{x(size):.1f}" y="{HEIGHT + 16}" text-anchor="middle">{size}</text>'
    for i, (name, seconds) in enumerate(series.seconds.items()):
        points = [(x(size), y(second)) for size, second in zip(series.sizes, seconds, strict=True)]
        kind = "ab"[i]
        yield f'<path class="{kind}" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in points)}"/>'
        yield f'<text class="{kind}" x="{i * 90}" y="-10">{escape(name)}</text>'
        for (a, b), second in zip(points, seconds, strict=True):
            yield f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="3"><title>{show(second)}</title></circle>'
