"""What will run of a recorded program, in words that a text and a picture can use: passes, blocks, what is left out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from nnzoo.tracing.gradients import Backward
from nnzoo.tracing.graph import AFTER, Node, Stage
from nnzoo.tracing.plan import Pass, plan
from nnzoo.tracing.recorder import Recorder
from nnzoo.tracing.run import Run
from nnzoo.tracing.schedule import START
from nnzoo.tracing.shortcuts import reads_only_last, unneeded_blocks
from nnzoo.weights.paths import ModulePath, Value

RUNS, SKIPPED, NOT_REACHED, HAS_RUN = "runs", "skipped", "not reached", "has run"


@dataclass(frozen=True)
class PassView:
    """One run of the model, or a part of one that waits for others in between."""

    invokes: tuple[int, ...]
    rows: int
    n_pos: int
    goes_on_from: str | None  # the hook point where the part before this one stopped
    blocks: tuple[str, ...]  # of each block: RUNS, SKIPPED, NOT_REACHED, HAS_RUN in an earlier part
    steps: int  # of a generation; 1 where there is none
    to_the_end: bool  # of a generation
    stops_at: str  # a hook point, or the chosen token
    waits: bool  # there, for other passes, and goes on later
    unembeds: bool
    only_last: bool  # position, of the logits


@dataclass(frozen=True)
class PlanView:
    """All passes, and which nodes run."""

    passes: tuple[PassView, ...]
    runs: frozenset[int]  # numbers of nodes
    roots: frozenset[int]  # those asked for
    backwards: int


def view_plan(model: Any, recorder: Recorder, roots: Sequence[Node], max_batch: int | None) -> PlanView:
    """The plan of what has been recorded, with nothing run yet."""
    asked = [*roots, *recorder.effects]
    planned = plan(asked, recorder.puts, max_batch)
    assert planned is not None, "a recorder refuses what no order of passes gives"
    run = Run()
    run.expect(planned, asked)
    run.differentiated |= recorder.differentiated
    ends = [max((stage for stage in one.stages if stage != AFTER), default=START) for one in planned.passes]
    whose = [one.invokes[0] for one in planned.passes]
    views = []
    for n, (one, last) in enumerate(zip(planned.passes, ends, strict=True)):
        before = [end for end, invoke in zip(ends[:n], whose[:n], strict=True) if invoke is whose[n]]
        views.append(_view_pass(model, one, run, before[-1] if before else None, last, whose[n] in whose[n + 1 :]))
    return PlanView(
        passes=tuple(views),
        runs=frozenset(node.index for node in planned.nodes),
        roots=frozenset(node.index for node in roots),
        backwards=sum(isinstance(node, Backward) for node in planned.nodes),
    )


def _view_pass(model: Any, one: Pass, run: Run, start: Stage | None, last: Stage, waits: bool) -> PassView:
    order = model.order
    whole = last.step > 0  # step 0 is gone through to its end
    generates = any(i.decoder is not None for i in one.invokes)
    reached = len(order) if whole else last.order
    walk = SimpleNamespace(model=model.skeleton, order=order, step=0, batch=SimpleNamespace(invokes=one.invokes))
    skipped = set() if generates else unneeded_blocks(cast(Any, walk), one.stages)
    most = max((i.decoder.options.max_new_tokens for i in one.invokes if i.decoder), default=1)
    return PassView(
        invokes=tuple(i.index for i in one.invokes),
        rows=sum(i.rows for i in one.invokes),
        n_pos=max(i.n_pos for i in one.invokes),
        goes_on_from=None if start is None else _name_of(start, order),
        blocks=tuple(
            HAS_RUN if _has_run(k, order, start, last) else _state(k, order, reached, skipped)
            for k in range(model.config.n_layers)
        ),
        steps=most if last.is_end else last.step + 1,
        to_the_end=last.is_end,
        stops_at=_name_of(last, order),
        waits=waits,
        unembeds=reached >= order["unembed.hook_in"],
        only_last=generates or reads_only_last(run, one.stages, one.invokes, order),
    )


def _has_run(block: int, order: dict[str, int], start: Stage | None, last: Stage) -> bool:
    return start is not None and last.step <= start.step and order[f"blocks.{block}.hook_resid_post"] <= start.order


def _state(block: int, order: dict[str, int], reached: int, skipped: set[int]) -> str:
    if reached <= order[f"blocks.{block}.hook_resid_pre"]:
        return NOT_REACHED
    return SKIPPED if block in skipped else RUNS


def _name_of(stage: Stage, order: dict[str, int]) -> str:
    if stage.is_end:
        return "the last token"
    return next((hook for hook, number in order.items() if number == stage.order), "the chosen token")


def place_names(model: Any) -> dict[str, str]:
    """What a trace says for a hook point after `model.`: "blocks.2.hook_resid_post" -> "transformer.h[2].output[0]"."""
    found: dict[str, str] = {}
    later: dict[str, str] = {}
    for path, module in model.paths.items():
        start = f"{path.replace('.{i}', '[{i}]')}." if path else ""
        outputs = _outputs(module)
        in_tuple = not isinstance(module.output, Value) or module.record == "base"
        in_tuple |= module.record == "block" and model.block_output == "tuple"
        for number, value in enumerate(outputs):
            names = later if value.view or module.kind == "Dropout" or not path else found
            names.setdefault(value.hook, f"{start}output[{number}]" if in_tuple else f"{start}output")
        if module.input is not None:
            later.setdefault(module.input.hook, f"{start}input")
    every = {**later, **found}
    layers = range(model.config.n_layers)
    return {hook.replace("{i}", str(i)): name.replace("{i}", str(i)) for hook, name in every.items() for i in layers}


def _outputs(module: ModulePath) -> tuple[Value, ...]:
    return (module.output,) if isinstance(module.output, Value) else module.output or ()


def values_of(module: ModulePath) -> tuple[Value, ...]:
    """What goes into a module, and what comes out."""
    return (*filter(None, [module.input]), *_outputs(module))


def named_invokes(numbers: Iterable[int]) -> str:
    """`invoke 0`, `invokes 0 and 2`, `invokes 0, 1 and 2`."""
    words = [str(number) for number in numbers]
    if len(words) == 1:
        return f"invoke {words[0]}"
    return f"invokes {', '.join(words[:-1])} and {words[-1]}"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers with runs drawn together.

    >>> ranges([0, 1, 2, 5])
    '0 to 2, 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
