"""Edits at the steps of a generation, and what cannot be an edit."""

import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import speaking
from families import in_full
from first_edits import LONG, SHORT, VECTOR, WIDTH, N, steered
from nnzoo import LanguageModel
from nnzoo.tracing.recorder import TraceError
from reference_values import Theirs
from snippets import assert_close


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(speaking.folder("gpt2", 4))


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    return Theirs("gpt2", 4)


def open_for(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += VECTOR


def open_with(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[:]:
        model.transformer.h[1].output[0][:] += VECTOR


def all_with(model: LanguageModel, tracer: Any) -> None:
    with tracer.all():
        model.transformer.h[1].output[0] = model.transformer.h[1].output[0] + VECTOR


def later_for(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[1:]:
        model.transformer.h[1].output[0][:] += VECTOR


def counted_for(model: LanguageModel, tracer: Any) -> None:
    for step in tracer.iter[1:3]:
        assert step in (1, 2)
        model.transformer.h[1].output[0][:] += VECTOR


def counted_with(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[1:3]:
        model.transformer.h[1].output[0][:] += VECTOR


def listed_with(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[[0, 3]]:
        model.transformer.h[1].output[0][:] += VECTOR


def strided_for(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[0::2]:
        model.transformer.h[1].output[0][:] += VECTOR


def one_for(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[2]:
        model.transformer.h[1].output[0][:] += VECTOR


def moved_on(model: LanguageModel, tracer: Any) -> None:
    tracer.next()
    model.transformer.h[1].output[0][:] += VECTOR


def module_moved_on(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[:2]:
        stream = model.transformer.h[1].next().output[0]
        stream[:] = stream + VECTOR


LOOPS: list[tuple[Callable, list[int]]] = [
    (open_for, [0, 1, 2, 3]),
    (open_with, [0, 1, 2, 3]),
    (all_with, [0, 1, 2, 3]),
    (later_for, [1, 2, 3]),
    (counted_for, [1, 2]),
    (counted_with, [1, 2]),
    (listed_with, [0, 3]),
    (strided_for, [0, 2]),
    (one_for, [2]),
    (moved_on, [1]),
    (module_moved_on, [1, 2]),
]


class TestSteps:
    @pytest.mark.parametrize(("loop", "steps"), LOOPS)
    @pytest.mark.parametrize("kind", ["a generation", "in an invoke", "at once"])
    def test_it_holds_at_the_steps_that_are_named(
        self, model: LanguageModel, theirs: Theirs, loop: Callable, steps: list[int], kind: str
    ) -> None:
        with model.edit(inplace=True) as tracer:
            loop(model, tracer)
        expected, seen = theirs.generate(LONG, N, edits={theirs.block(1): steered}, steps=steps, read=[theirs.block(3)])
        if kind == "at once":
            ids = model.generate(LONG, max_new_tokens=N)
        elif kind == "in an invoke":
            with model.trace() as tracer:
                with tracer.invoke(LONG):
                    ids = model.generate(max_new_tokens=N)
        else:
            streams = []
            with model.generate(LONG, max_new_tokens=N) as tracer:
                ids = tracer.result
                for _ in tracer.iter[:]:
                    streams.append(model.transformer.h[3].output[0])
            for mine, stream in zip(streams, seen[theirs.block(3)], strict=True):
                assert_close(mine, stream)
        assert torch.equal(ids, expected)

    def test_a_pass_has_the_first_step_only(self, model: LanguageModel, theirs: Theirs) -> None:
        for loop, steps in LOOPS:
            model.clear_edits()
            with model.edit(inplace=True) as tracer:
                loop(model, tracer)
            edits = {theirs.block(1): steered} if 0 in steps else {}
            assert_close(model(LONG).detach(), theirs.forward(LONG, edits=edits).logits)

    def test_values_of_the_first_pass_go_into_later_steps(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit(inplace=True) as tracer:
            last = model.transformer.h[2].output[0][:, -1:] * 0.5
            for _ in tracer.iter[1:]:
                model.transformer.h[1].output[0][:] += last
        place = theirs.block(2)
        shift = theirs.forward(LONG, read=[place])[place][:, -1:] * 0.5
        edits = {theirs.block(1): lambda h: h + shift}
        expected, seen = theirs.generate(LONG, N, edits=edits, steps=[1, 2, 3], read=[place])
        with model.generate(LONG, max_new_tokens=N) as tracer:
            cache = tracer.cache(modules=["transformer.h.2"])
        for (mine,), stream in zip(cache.transformer.h[2].output, seen[place], strict=True):
            assert_close(mine, stream)
        assert torch.equal(self.in_an_invoke(model), expected)

    @staticmethod
    def in_an_invoke(model: LanguageModel) -> Tensor:
        with model.trace() as tracer:
            with tracer.invoke(LONG):
                ids = model.generate(max_new_tokens=N)
        return ids

    def test_a_text_that_ends_drops_the_steps_after(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit(inplace=True) as tracer:
            open_for(model, tracer)
        ids = model.generate(LONG, max_new_tokens=N)
        end = int(ids[0, -3])
        with model.generate(LONG, max_new_tokens=N, eos_token_id=end, pad_token_id=0) as tracer:
            ended = tracer.result
            cache = tracer.cache(modules=["transformer.h.1"])
        n = int((ids[0, -N:] == end).nonzero()[0]) + 1
        assert torch.equal(ended[0], ids[0, : ids.shape[1] - N + n])
        assert len(cache["model.transformer.h.1"]) == n

    @pytest.mark.parametrize("steps", [-1, slice(-2, None), slice(0, -1), [0, -1]])
    def test_steps_from_the_end_are_refused(self, model: LanguageModel, steps: Any) -> None:
        with pytest.raises(TraceError, match="counts steps from the first"), model.edit(inplace=True) as tracer:
            for _ in tracer.iter[steps]:
                ...

    def test_what_an_open_loop_cannot_be_is_refused(self, model: LanguageModel) -> None:
        for body, complaint in (
            (number_used, "step's number is not known"),
            (number_compared, "step's number is not known"),
            (carried, "does not do the same in each round"),
            (accumulated, "used outside of the loop"),
            (carried_in_part, "does not do the same in each round"),
            (drawn, "does not do the same in each round"),
            (nested, "inside another one's body"),
            (left_by_break, "left by a break"),
            (used_outside, "used outside of the loop"),
        ):
            with pytest.raises(TraceError, match=complaint), model.edit(inplace=True) as tracer:
                body(model, tracer)
            assert not model.edits, body.__name__


def number_used(model: LanguageModel, tracer: Any) -> None:
    for step in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += [VECTOR, VECTOR][step]


def number_compared(model: LanguageModel, tracer: Any) -> None:
    for step in tracer.iter[:]:
        if step == 3:
            model.transformer.h[1].output[0][:] += VECTOR


def carried(model: LanguageModel, tracer: Any) -> None:
    before = None
    for _ in tracer.iter[:]:
        if before is not None:
            model.transformer.h[1].output[0][:] += before
        before = model.transformer.h[1].output[0].clone()


def carried_in_part(model: LanguageModel, tracer: Any) -> None:
    before = model.transformer.h[0].output[0]
    for _ in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += before[:, -1:]
        before = model.transformer.h[0].output[0]


def accumulated(model: LanguageModel, tracer: Any) -> None:
    kept = []
    for _ in tracer.iter[:]:
        kept.append(model.transformer.h[1].output[0])
    model.transformer.h[2].output[0][:] = sum(kept)


def drawn(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += torch.randn(WIDTH).double()


def nested(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[:]:
        for _ in tracer.iter[1:2]:
            ...


def left_by_break(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += VECTOR
        break


def used_outside(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[1:]:
        value = model.transformer.h[1].output[0].mean()
    model.transformer.h[2].output[0][:] += value


class TestWhatAnEditCannotDo:
    @pytest.fixture(
        params=[
            (lambda model, tracer, h: float(h.norm()), "a look at a value is not possible inside an edit"),
            (lambda model, tracer, h: bool(h.mean() > 0), "a look"),
            (lambda model, tracer, h: str(h), "a look"),
            (lambda model, tracer, h: h[h > 0], "a look"),
            (lambda model, tracer, h: h.sum().backward(), "backward is not possible inside an edit"),
            (lambda model, tracer, h: h.grad, "grad is not possible"),
            (lambda model, tracer, h: tracer.invoke(SHORT), "an invoke in an edit"),
            (lambda model, tracer, h: model.generate(max_new_tokens=2), r"generate\(\) in an edit"),
            (lambda model, tracer, h: tracer.ids, "generated ids in an edit"),
            (lambda model, tracer, h: tracer.cache(), "a cache in an edit"),
            (lambda model, tracer, h: tracer.stop(), r"stop\(\) in an edit"),
            (lambda model, tracer, h: model.edit().__enter__(), "an edit inside a trace"),
            (lambda model, tracer, h: model.clear_edits(), "inside a trace"),
        ]
    )
    def case(self, request: pytest.FixtureRequest) -> Any:
        return request.param

    def test_is_refused(self, model: LanguageModel, case: Any) -> None:
        body, complaint = case
        with pytest.raises(TraceError, match=complaint), model.edit(inplace=True) as tracer:
            body(model, tracer, model.transformer.h[1].output[0])
        assert not model.edits

    def test_a_mask_is_no_look(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit(inplace=True):
            stream = model.transformer.h[1].output[0]
            stream[stream < 0] = 0
        assert_close(model(LONG).detach(), theirs.forward(LONG, edits={theirs.block(1): torch.relu}).logits)

    def test_its_values_are_values_of_later_traces(self, model: LanguageModel) -> None:
        with model.edit(inplace=True):
            kept = model.transformer.h[1].output[0].save() * 2
        with pytest.raises(TraceError, match="an edit, which computes nothing"):
            _ = kept + 1
        assert repr(kept).startswith("LazyTensor(")
        with pytest.raises(TraceError, match="an edit, which computes nothing"), model.trace(SHORT):
            model.transformer.h[2].output[0][:] += kept

    def test_an_error_of_the_run_names_the_line_of_the_edit(self, model: LanguageModel) -> None:
        index = torch.tensor([99])
        with model.edit(inplace=True):
            model.transformer.h[1].output[0][:] += model.transformer.h[0].output[0][:, :, index]
            line = sys._getframe().f_lineno - 1
        with pytest.raises(IndexError) as caught, model.trace(SHORT):
            _ = model.output.save()
        last = traceback.extract_tb(caught.value.__traceback__)[-1]
        assert (last.filename, last.lineno) == (__file__, line)

    def test_an_error_in_a_trace_names_the_line_of_the_edit(self, model: LanguageModel) -> None:
        with model.edit(inplace=True):
            model.transformer.h[1].output[0][:, 4] = 0  # a prompt of two tokens has none
        with pytest.raises(IndexError) as caught, model.trace(SHORT):
            _ = model.output
        assert re.search(f"edit of the model, recorded at .*{Path(__file__).name}", in_full(caught.value))
        with pytest.raises(TraceError, match="inside a trace only"):
            _ = model.output
