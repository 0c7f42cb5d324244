"""A graph as a picture: the model stands upright, prompts side by side, and every node is where its value is there.

SVG in HTML, without scripts and without a network, for light and dark pages. What comes from users is escaped.
"""

from html import escape

from nnzoo.architectures import html
from nnzoo.architectures.html import DARK, LIGHT
from nnzoo.tracing.entries import Entry, Program, PromptEntry
from nnzoo.tracing.graph_layout import BOX_HEIGHT, BOX_WIDTH, COLUMN, LEFT, Column, Layout, lay_out, sources
from nnzoo.tracing.graph_plan import RUNS, SKIPPED, PassView, PlanView, ranges
from nnzoo.tracing.graph_text import describe, notes_of, text

PAGE_STYLE = f""":root {{ {LIGHT}; }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK}; }} }}
body {{ margin: 0; background: var(--page); }}"""
COLORS = f"""
.nnzoo-graph {{ color-scheme: light dark; {LIGHT}; --line: #d4d7db;
  --runs: #e3eefb; --box: #ffffff; --read: #2676d6; --edit: #c2410c; --grad: #7c3aed; --call: #7a8087;
  color: var(--ink); background: var(--page); font: 13px/1.45 system-ui, sans-serif; padding: 12px; }}
@media (prefers-color-scheme: dark) {{ .nnzoo-graph {{ {DARK}; --line: #3a3f45;
  --runs: #1b2c42; --box: #22262b; --read: #6caef5; --edit: #fb923c; --grad: #b794f6; --call: #8b929a; }} }}
"""
STYLE = """
.nnzoo-graph .scroll { overflow-x: auto; }
.nnzoo-graph svg text { fill: var(--ink); font: 12px ui-monospace, Menlo, Consolas, monospace; }
.nnzoo-graph svg .head { font: 600 13px system-ui, sans-serif; }
.nnzoo-graph svg .band { fill: var(--faint); font: 12px system-ui, sans-serif; }
.nnzoo-graph .cell { fill: none; stroke: var(--line); }
.nnzoo-graph .cell.runs { fill: var(--runs); }
.nnzoo-graph .cell.skipped { fill: url(#nnzoo-hatch); }
.nnzoo-graph .box { fill: var(--box); stroke: var(--call); stroke-width: 1.2; }
.nnzoo-graph .read .box { stroke: var(--read); }
.nnzoo-graph .edit .box { stroke: var(--edit); stroke-width: 2.2; }
.nnzoo-graph .gradient .box { stroke: var(--grad); }
.nnzoo-graph .saved .box { stroke-width: 3; }
.nnzoo-graph .left-out { opacity: .45; }
.nnzoo-graph .left-out .box { stroke-dasharray: 4 3; }
.nnzoo-graph .arrow { fill: none; stroke: var(--call); stroke-width: 1.3; marker-end: url(#nnzoo-tip); }
.nnzoo-graph .arrow.to-edit { stroke: var(--edit); }
.nnzoo-graph .tip { fill: var(--call); }
.nnzoo-graph .hatching { stroke: var(--faint); stroke-width: 1; }
.nnzoo-graph .legend { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--faint); margin: 8px 0; }
.nnzoo-graph .legend i { display: inline-block; width: 22px; height: 12px; border: 2px solid var(--call);
  border-radius: 3px; vertical-align: -2px; margin-right: 6px; box-sizing: border-box; }
.nnzoo-graph pre { overflow-x: auto; font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace; }
.nnzoo-graph summary { cursor: pointer; color: var(--faint); }
"""
_DEFINITIONS = """<defs>
<marker id="nnzoo-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">
<path class="tip" d="M0,0 L8,4 L0,8 z"/></marker>
<pattern id="nnzoo-hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<line class="hatching" x1="0" y1="0" x2="0" y2="7"/></pattern>
</defs>"""
_LEGEND = """<div class="legend">
<span><i style="border-color: var(--read)"></i>read</span>
<span><i style="border-color: var(--edit)"></i>edit: the model goes on with it</span>
<span><i></i>computed</span>
<span><i style="border-color: var(--grad)"></i>gradient</span>
<span><i style="border-width: 3px"></i>★ saved</span>
<span><i style="border-style: dashed; opacity: .5"></i>nobody holds it: not computed</span>
<span><i style="background: var(--runs); border-color: var(--line); border-width: 1px"></i>runs</span>
<span><i style="background: repeating-linear-gradient(45deg, var(--faint) 0 1px, transparent 1px 5px);
 border-color: var(--line); border-width: 1px"></i>skipped: what it gives is replaced</span>
<span><i style="border-color: var(--line); border-width: 1px"></i>not reached</span>
</div>"""
_LETTERS = (BOX_WIDTH - 14) * 10 // 73  # as many characters as fit into a box


def page(program: Program, places: dict[str, str], plan: PlanView | None) -> str:
    """The picture as one page."""
    return html.page(f"A graph for {program.about['name']}", fragment(program, places, plan), PAGE_STYLE)


def fragment(program: Program, places: dict[str, str], plan: PlanView | None) -> str:
    """The picture, for a notebook or inside another page."""
    layout = lay_out(program)
    parts = (_bands(layout), _cells(layout, plan), _heads(layout, program, plan), _arrows(layout, program))
    boxes = _boxes(layout, program, places, plan)
    drawing = "\n".join([_DEFINITIONS, *(line for part in (*parts, boxes) for line in part)])
    size = f'width="{layout.width}" height="{layout.height}" viewBox="0 0 {layout.width} {layout.height}"'
    return f"""<div class="nnzoo-graph">
<style>{COLORS}{STYLE}</style>
<div class="scroll"><svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="the recorded graph" {size}>
{drawing}
</svg></div>
{_LEGEND}
<details open><summary>the program</summary><pre>{escape(text(program, places, plan))}</pre></details>
</div>"""


def _bands(layout: Layout) -> list[str]:
    return [
        f'<text class="band" x="{LEFT - 12}" y="{layout.tops[band] + layout.heights[band] // 2 + 4}" '
        f'text-anchor="end">{escape(band)}</text>'
        for band in layout.bands
    ]


def _heads(layout: Layout, program: Program, plan: PlanView | None) -> list[str]:
    lines = []
    for invoke, step in layout.columns:
        passing = _numbers_of(invoke, plan)
        number = f", pass{'es' if len(passing) > 1 else ''} {ranges(passing)}" if passing else ""
        words = f"invoke {invoke}{f', step {step}' if step else ''}{number}"
        shape = "" if invoke >= len(program.prompts) else _shape(program.prompts[invoke], step)
        x = layout.left((invoke, step)) + 16
        lines.append(f'<text class="head" x="{x}" y="18">{escape(words)}</text>')
        lines.append(f'<text class="band" x="{x}" y="34">tokens {escape(shape)}</text>')
    return lines


def _shape(prompt: PromptEntry, step: int) -> str:
    """Of the tokens that a step reads: the prompt's, then the one that was chosen in each row."""
    rows, n_pos = prompt.tokens.shape
    sequences = rows * (prompt.options or {}).get("num_return_sequences", 1)
    return str([sequences, 1 if step else n_pos])


def _cells(layout: Layout, plan: PlanView | None) -> list[str]:
    cells = []
    for column in layout.columns:
        for band in layout.bands:
            state = cell_state(band, column, plan)
            x, y = layout.left(column) + 4, layout.tops[band]
            cells.append(
                f'<rect class="cell {state}" x="{x}" y="{y + 1}" width="{COLUMN - 8}" '
                f'height="{layout.heights[band] - 2}" rx="3"/>'
            )
    return cells


def cell_state(band: str, column: Column, plan: PlanView | None) -> str:
    """Whether a part of the model runs for an invoke in a step."""
    passes = [] if plan is None else [plan.passes[number - 1] for number in _numbers_of(column[0], plan)]
    states = [_cell_state(band, column, one) for one in passes]
    return next((state for state in ("runs", "skipped") if state in states), "idle")


def _cell_state(band: str, column: Column, passing: PassView) -> str:
    step = column[1]
    if band in ("given", "after the pass") or step >= passing.steps:
        return "idle"
    if band.startswith("block "):
        state = passing.blocks[int(band.split()[1])]
        return "runs" if state == RUNS or (step and state != SKIPPED) else "skipped" if state == SKIPPED else "idle"
    if band == "embedding":
        return "runs"
    if band == "logits":
        return "runs" if passing.unembeds else "idle"
    return "runs" if passing.unembeds or passing.stops_at.startswith("ln_final") else "idle"


def _numbers_of(invoke: int, plan: PlanView | None) -> list[int]:
    """Which passes a prompt goes through."""
    return [] if plan is None else [n for n, one in enumerate(plan.passes, start=1) if invoke in one.invokes]


def _boxes(layout: Layout, program: Program, places: dict[str, str], plan: PlanView | None) -> list[str]:
    several = len(program.prompts) > 1
    boxes = []
    for number, entry in enumerate(program.entries):
        x, y = layout.corners[number]
        notes = notes_of(number, program, plan)
        star = " ★" if "saved" in notes else ""
        words = _fitting(f"%{number} {_in_box(entry, places)}", _LETTERS - len(star)) + star
        full = f"%{number}  {describe(entry, places, several=several)}\n{entry.meta or ''}\n{entry.line}"
        full += f"\n{', '.join(notes)}" if notes else ""
        boxes.append(
            f'<g class="{_classes(entry, notes)}"><title>{escape(full)}</title><rect class="box" x="{x}" y="{y}" '
            f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"/>'
            f'<text x="{x + 7}" y="{y + 16}">{escape(words)}</text></g>'
        )
    return boxes


def _in_box(entry: Entry, places: dict[str, str]) -> str:
    """As in the text, but of a place only the name by which bodies read it, less what all such names begin with."""
    hook = entry.hook or ""
    name = places[hook].removeprefix("transformer.").removeprefix("model.") if hook in places else hook
    if entry.kind == "arrive":
        return name
    return f"{name} = %{entry.of}" if entry.kind == "put" else describe(entry, {}, several=False)


def _fitting(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _classes(entry: Entry, notes: list[str]) -> str:
    kind = "edit" if _is_edit(entry) else {"arrive": "read", "call": "call", "pick": "call"}.get(entry.kind, "gradient")
    if entry.kind in ("result", "chosen"):
        kind = "read"
    saved = " saved" if "saved" in notes else ""
    return f"node {kind}{saved}{' left-out' if 'not computed' in notes else ''}"


def _is_edit(entry: Entry) -> bool:
    return entry.kind in ("put", "put_gradient") or entry.edits is not None


def _arrows(layout: Layout, program: Program) -> list[str]:
    arrows = []
    for number, entry in enumerate(program.entries):
        kind = "arrow to-edit" if _is_edit(entry) else "arrow"
        for source in dict.fromkeys(sources(entry)):
            path = _path(layout.corners[source], layout.corners[number])
            arrows.append(f'<path class="{kind}" d="{path}"/>')
    return arrows


def _path(start: tuple[int, int], end: tuple[int, int]) -> str:
    """In a column straight up to the next box, or around those between; to another column from side to side."""
    (x0, y0), (x1, y1) = start, end
    middle0, middle1 = y0 + BOX_HEIGHT // 2, y1 + BOX_HEIGHT // 2
    if x0 == x1:
        if 0 < y0 - y1 <= BOX_HEIGHT + 8:
            return f"M{x0 + 30},{y0} L{x1 + 30},{y1 + BOX_HEIGHT}"
        right = x0 + BOX_WIDTH
        bow = right + min(44, 12 + abs(y0 - y1) // 8)
        return f"M{right},{middle0} C{bow},{middle0} {bow},{middle1} {right},{middle1}"
    out, into = (x0 + BOX_WIDTH, x1) if x1 > x0 else (x0, x1 + BOX_WIDTH)
    turn = 40 if x1 > x0 else -40
    return f"M{out},{middle0} C{out + turn},{middle0} {into - turn},{middle1} {into},{middle1}"
