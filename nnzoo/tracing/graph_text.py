"""A graph as text: one line for each node, in program order, and below them the passes that will run."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.arguments import Gone, name_of
from nnzoo.tracing.entries import Entry, Program, PromptEntry, Ref
from nnzoo.tracing.functions import full_name
from nnzoo.tracing.graph_plan import NOT_REACHED, RUNS, SKIPPED, PassView, PlanView, named_invokes, ranges

_SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "truediv": "/", "matmul": "@", "pow": "**", "gt": ">", "lt": "<",
    "ge": ">=", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip
_EDITING_SIGNS = {f"{name}_": f"{sign}=" for name, sign in _SIGNS.items() if name in ("add", "sub", "mul", "div")}
_LONGEST = 60  # characters of a value


def text(program: Program, places: dict[str, str], plan: PlanView | None) -> str:
    """The whole text; without a plan (no model is known) the program alone."""
    n, k = len(program.entries), len(program.prompts)
    head = f"graph of {n} node{_s(n)}, {k} prompt{_s(k)}, for {program.about['name']}"
    lines = [head, *(f"  {line}" for line in prompt_lines(program.prompts)), *_nodes(program, places, plan)]
    if plan is None:
        return "\n".join([*lines, "passes: graph.on(model) shows them"])
    return "\n".join([*lines, *passes(plan, places, n)])


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def prompt_lines(prompts: list[PromptEntry]) -> list[str]:
    """Of each prompt: rows, tokens, and what is generated."""
    lines = []
    for number, one in enumerate(prompts):
        rows, n_pos = one.tokens.shape
        most = "" if one.options is None else f", generates {one.options.get('max_new_tokens')} tokens at most"
        lines.append(f"invoke {number}: {rows} prompt{_s(rows)} of {n_pos} token{_s(n_pos)}{most}")
    return lines


def _nodes(program: Program, places: dict[str, str], plan: PlanView | None) -> list[str]:
    several = len(program.prompts) > 1
    rows = []
    for number, entry in enumerate(program.entries):
        meta = "" if entry.meta is None else str(entry.meta)
        what = describe(entry, places, several=several)
        notes = ", ".join(notes_of(number, program, plan))
        line = f"{os.path.basename(entry.line.file)}:{entry.line.number}"
        rows.append((f"%{number}", meta, what, notes, line))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def notes_of(number: int, program: Program, plan: PlanView | None) -> list[str]:
    """What is to be said of a node: that it is saved, that it is not computed."""
    notes = ["saved"] if number in program.saved else []
    if plan is not None and number not in plan.runs:
        notes.append("not computed")
    return notes


def describe(entry: Entry, places: dict[str, str], *, several: bool) -> str:
    """What a node is, in the words of the body."""
    step = f", step {entry.step}" if entry.step else ""
    of = f" of invoke {entry.invoke}" if several else ""
    match entry.kind:
        case "arrive":
            return place(entry.hook or "", places) + of + step
        case "put":
            return f"{place(entry.hook or '', places)}{of}{step} = %{entry.of}"
        case "result":
            return f"generated ids{of}"
        case "chosen":
            return f"whether it goes on after step {entry.step}{of}"
        case "pick":
            return f"%{entry.of}[{entry.which}]"
        case "backward":
            return f"{entry.args[0]}.backward({', '.join(map(str, entry.args[1:]))})"
        case "gradient":
            return f"%{entry.of}.grad"
        case "flowing":
            return f"%{entry.of}.grad as it flows in %{entry.by}"
        case "put_gradient":
            return f"%{entry.by} flows on as %{entry.of}"
    return call(entry)


def place(hook: str, places: dict[str, str]) -> str:
    """A place by both its names."""
    return f"{places[hook]} ({hook})" if hook in places else hook


def call(entry: Entry) -> str:
    """A call, as one would write it."""
    name, args = name_of(entry.fn) or full_name(entry.fn), entry.args
    if name == "__getitem__":
        return f"{shown(args[0])}[{_index(args[1])}]"
    if name == "__setitem__":
        return f"{shown(args[0])}[{_index(args[1])}] = {shown(args[2])}"
    bare = name.removeprefix("__").removesuffix("__")
    if len(args) == 2 and not entry.kwargs and (sign := _SIGNS.get(bare) or _EDITING_SIGNS.get(name)):
        return f"{shown(args[0])} {sign} {shown(args[1])}"
    if getattr(entry.fn, "__name__", "") == "__get__":
        return f"{shown(args[0])}.{name}"
    given = [shown(one) for one in args] + [f"{key}={shown(one)}" for key, one in entry.kwargs.items()]
    random = " (random)" if entry.random is not None else ""
    return f"{name}({', '.join(given)}){random}"


def shown(value: Any) -> str:
    """An argument: nodes by number, tensors by shape."""
    if isinstance(value, (Tensor, Gone)):
        return f"<{str(value.dtype).removeprefix('torch.')}{list(value.shape)}>"
    if isinstance(value, torch.Size):
        return str(list(value))
    if isinstance(value, (tuple, list)):
        return _short(f"[{', '.join(shown(one) for one in value)}]")
    if isinstance(value, slice):
        return _slice(value)
    if isinstance(value, torch.Generator):
        return "<generator>"
    return str(value) if isinstance(value, Ref) or not isinstance(value, str) else _short(repr(value))


def _short(words: str) -> str:
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"


def _index(index: Any) -> str:
    parts = index if isinstance(index, tuple) else (index,)
    return ", ".join("..." if part is Ellipsis else shown(part) for part in parts)


def _slice(value: slice) -> str:
    part: Callable[[Any], str] = lambda one: "" if one is None else shown(one)  # noqa: E731
    step = "" if value.step is None else f":{shown(value.step)}"
    return f"{part(value.start)}:{part(value.stop)}{step}"


# --- passes ----------------------------------------------------------------------------------------------------------


def passes(plan: PlanView, places: dict[str, str], n_nodes: int) -> list[str]:
    """The passes, and what is not computed."""
    lines = ["passes:" if plan.passes else "passes: none, nothing is asked of the model"]
    for number, one in enumerate(plan.passes, start=1):
        lines.append(f"  {number}. {_batch(one, places)}: {_extent(one, places)}")
        lines += [f"     {line}" for line in remarks(one)]
    if plan.backwards:
        lines.append(f"  then {plan.backwards} backward pass{'' if plan.backwards == 1 else 'es'}")
    left = [number for number in range(n_nodes) if number not in plan.runs]
    if left:
        lines.append(f"  not computed, because nobody holds them: {', '.join(f'%{number}' for number in left)}")
    return lines


def _batch(one: PassView, places: dict[str, str]) -> str:
    together = " in one batch" if len(one.invokes) > 1 else ""
    batch = f"{named_invokes(one.invokes)}{together} [{one.rows} row{_s(one.rows)}, {one.n_pos} token{_s(one.n_pos)}]"
    if one.goes_on_from is None:
        return batch
    return f"{batch} go{'' if len(one.invokes) > 1 else 'es'} on from {place(one.goes_on_from, places)}"


def _extent(one: PassView, places: dict[str, str]) -> str:
    n_blocks = len(one.blocks)
    running = [k for k, state in enumerate(one.blocks) if state == RUNS]
    what = f"block{_s(len(running))} {ranges(running)} of 0 to {n_blocks - 1}" if running else "no block"
    head = ", the logits" if one.unembeds else ""
    if one.to_the_end:
        return f"{what}{head}, {one.steps} steps at most"
    steps = f", {one.steps} steps" if one.steps > 1 else ""
    return f"{what}{head}{steps}; {'waits' if one.waits else 'stops'} at {place(one.stops_at, places)}"


def remarks(one: PassView) -> list[str]:
    """What of a pass is left out."""
    skipped = [k for k, state in enumerate(one.blocks) if state == SKIPPED]
    beyond = [k for k, state in enumerate(one.blocks) if state == NOT_REACHED]
    lines = []
    if skipped:
        lines.append(f"skipped, because what they give is replaced: block{_s(len(skipped))} {ranges(skipped)}")
    if beyond and not one.waits:
        lines.append(f"not run, because nobody asks for more: block{_s(len(beyond))} {ranges(beyond)}")
    if one.unembeds and one.only_last:
        lines.append("only the last position is unembedded")
    return lines
