"""Random bodies over several prompts: every prompt's values are those of that prompt run alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import PLAIN, folder, ids, ours
from nnzoo import LanguageModel
from nnzoo.tracing.recorder import TraceError
from oracle import INTEGERS, Truth
from trace_programs import WHOLE, Program, World, programs, run


@cache
def traced(family: str, setting: str) -> LanguageModel:
    return LanguageModel(folder(family, setting))


@cache
def truth(family: str, setting: str) -> Truth:
    places = [name for name in traced(family, setting).order if name not in INTEGERS]
    return Truth(ours(family, setting), places)


class Traced(World):
    """The body in a trace."""

    def __init__(self, program: Program, tracer: object) -> None:
        self.program, self.tracer = program, tracer
        self.logits: list[Tensor] = []
        self.outcomes: list[float] = []

    @contextmanager
    def scope(self, which: int) -> Iterator[None]:
        if 0 <= which < len(self.tracer.invokes):
            self.tracer._scope = [self.tracer.invokes[which]]  # as edits of values that are held may come later
            yield
            self.tracer._scope = []
            return
        asked = None if which == WHOLE else self.program.prompts[which]
        prompt = () if asked is None else (asked.tokens,)
        with self.tracer.invoke(
            *prompt, **({} if asked is None or asked.mask is None else {"attention_mask": asked.mask})
        ):
            yield

    def read(self, place: str) -> Tensor:
        return self.tracer.read(place)

    def put(self, place: str, value: Tensor) -> None:
        self.tracer.put(place, value)

    def look(self, value: Tensor) -> float:
        self.outcomes.append(value.item())
        return self.outcomes[-1]


def close(a: Tensor, b: Tensor) -> bool:
    finite = b.isfinite()
    if a.shape != b.shape or not torch.equal(a[~finite].nan_to_num(5.0), b[~finite].nan_to_num(5.0)):
        return False
    scale = b[finite].abs().max().clamp(min=1) if finite.any() else 1
    return bool(((a - b)[finite].abs() <= 1e-9 * scale).all())


def check(family: str, setting: str, program: Program, dropped: set[int], max_batch: int | None) -> None:
    model, oracle = traced(family, setting), truth(family, setting)
    variables: list[Tensor] = []
    done, refusal = 0, ""
    try:
        with model.trace(max_batch=max_batch) as tracer:
            world = Traced(program, tracer)
            for done, variables in run(program, oracle.places, world):  # noqa: B007
                pass
            got = {i: value for i, value in enumerate(variables) if i not in dropped}
            variables.clear()  # what nobody holds need not be computed, and is let go of early
            logits = [tracer._places.read([invoke], "unembed.hook_out", 0) for invoke in tracer.invokes]
    except TraceError as error:
        refusal = str(error)
    if refusal and "cannot be set from" not in refusal:
        return  # of the whole batch, read before a prompt's own value changed
    assert oracle.circle(program) == (done if refusal else None), f"{refusal or 'not refused'}\n{program.text()}"
    if refusal:
        return
    expected, ends, looks = oracle(program)
    for n, (a, b) in enumerate(zip(world.outcomes, looks, strict=True)):
        assert abs(a - b) < 1e-9, f"look {n}: {a} for {b}\n{program.text()}"
    for i, value in got.items():
        assert close(value, expected[i]), f"variable {i}\n{program.text()}"
    for i, (a, b) in enumerate(zip(logits, ends, strict=True)):
        assert close(a, b), f"logits of {i}\n{program.text()}"


@ids(PLAIN)
@settings(max_examples=8)
@given(
    program=programs(n_statements=7),
    dropped=st.sets(st.integers(0, 20)),
    max_batch=st.sampled_from([None, None, 1, 2, 3]),
)
def test_each_prompt_has_the_values_that_it_has_alone(
    family: str, setting: str, program: Program, dropped: set[int], max_batch: int | None
) -> None:
    check(family, setting, program, dropped, max_batch)
