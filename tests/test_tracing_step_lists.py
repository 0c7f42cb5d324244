"""Lists that the body of a `with tracer.iter[...]` appends to have what a loop over the steps would append."""

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from families import PLAIN, folder, prompt
from nnzoo import LanguageModel

STEPS = 4
found: list[Any] = []


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder(*PLAIN[0]))


@pytest.fixture(scope="module")
def expected(model: LanguageModel) -> list[Tensor]:
    """The stream after block 1 at each step, by a loop."""
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        streams = []
        for _ in tracer.iter[:]:
            streams.append(stream(model))
    return streams


def stream(model: LanguageModel) -> Tensor:
    return model.transformer.h[1].output[0]


def same(a: list[Any], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def of_tuple(one: Any) -> Tensor:
    assert isinstance(one, tuple)
    return one[0]


WAYS: dict[str, tuple[Callable[[LanguageModel], Any], Callable[[Any], Tensor]]] = {
    "a tensor": (stream, lambda one: one),
    "a saved one": (lambda model: stream(model).save(), lambda one: one),
    "a whole output": (lambda model: model.transformer.h[1].output, lambda one: one[0]),
    "a dict": (lambda model: {"stream": stream(model), "name": "h.1"}, lambda one: one["stream"]),
    "nested": (lambda model: [(stream(model), 1)], lambda one: one[0][0]),
    "a tuple": (lambda model: (stream(model), 1), of_tuple),
}


@pytest.mark.parametrize(("value", "of"), WAYS.values(), ids=WAYS)
def test_each_step_appends(model: LanguageModel, expected: list[Tensor], value: Callable, of: Callable) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        streams = [].save()
        with tracer.all():
            streams.append(value(model))
    assert same([of(one) for one in streams], expected)


def test_steps_that_are_named_after_what_was_there_before(model: LanguageModel, expected: list[Tensor]) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        streams = ["before"]
        with tracer.iter[1:3]:
            streams += [stream(model), stream(model) * 2]
        with tracer.iter[3]:
            streams.append(stream(model))
    assert streams[0] == "before"
    assert same(streams[1:], [expected[1], expected[1] * 2, expected[2], expected[2] * 2, expected[3]])


class Probe:
    def __init__(self) -> None:
        self.streams: list[Any] = []

    def run(self, model: LanguageModel) -> None:
        with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
            with tracer.all():
                self.streams.append(stream(model))


def test_lists_in_lists_dicts_attributes_and_globals(model: LanguageModel, expected: list[Tensor]) -> None:
    by_layer: list[list[Any]] = [[], []]
    by_layer_and_part: list[list[list[Any]]] = [[[]]]
    by_name: dict[str, list[Any]] = {"one": [], "other": []}
    box, probe = SimpleNamespace(streams=[]), Probe()
    found.clear()
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        with tracer.all():
            by_layer[1].append(stream(model))
            by_layer_and_part[0][0].append(stream(model))
            by_name["one"].append(stream(model))
            box.streams.append(stream(model))
            found.append(stream(model))
    probe.run(model)
    assert not by_layer[0] and not by_name["other"]
    for one in (by_layer[1], by_layer_and_part[0][0], by_name["one"], box.streams, found, probe.streams):
        assert same(one, expected)


def test_lists_that_a_dict_makes(model: LanguageModel, expected: list[Tensor]) -> None:
    by_layer: defaultdict[int, list[Any]] = defaultdict(list)
    last: dict[str, list[Any]] = {}
    single: defaultdict[int, Any] = defaultdict(list)
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        by_layer[1].append("before")
        with tracer.all():
            for layer in (0, 1):
                by_layer[layer].append(model.transformer.h[layer].output[0])
            single[0] = stream(model)
            last["stream"] = [stream(model)]  # an assignment, which appends nothing
    assert len(by_layer[0]) == STEPS and same(by_layer[1][1:], expected)
    assert by_layer[1][0] == "before" and len(last["stream"]) == 1
    assert torch.equal(single[0], expected[0])


def test_a_list_that_nothing_of_the_body_went_into_stays_as_it_is(model: LanguageModel) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        early, numbers, inside = [stream(model)], [1], None
        with tracer.all():
            inside = [stream(model)]
            numbers.append(2)
            model.transformer.h[0].output[0][:] *= 1.0
    assert (len(early), len(inside)) == (1, 1) and numbers == [1, 2]


def test_a_value_from_outside_comes_once_a_step(model: LanguageModel, expected: list[Tensor]) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        first, streams = stream(model), []
        with tracer.all():
            streams.append(first)
    assert same(streams, [expected[0]] * STEPS)


def test_a_change_holds_at_the_steps_that_are_listed(model: LanguageModel) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        streams, ids = [].save(), [].save()
        with tracer.all():
            model.transformer.h[0].output[0][:] = 0
            streams.append(model.transformer.h[0].output[0])
            ids.append(model.lm_head.output[0, -1].argmax(-1))
        result = tracer.result.save()
    assert len(streams) == STEPS and not any(one.any() for one in streams)
    assert torch.equal(torch.stack(ids), result[0, -STEPS:])


def test_every_invoke_fills_its_own(model: LanguageModel, expected: list[Tensor]) -> None:
    with model.generate(max_new_tokens=STEPS) as tracer:
        one, other = [].save(), [].save()
        with tracer.invoke(prompt(1, 6)), tracer.all():
            one.append(stream(model))
        with tracer.invoke(prompt(1, 6)), tracer.all():
            other.append(stream(model) * 2)
    assert len(one) == len(other) == STEPS
    for a, b, c in zip(one, other, expected, strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, 2 * c)
