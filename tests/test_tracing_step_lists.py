"""Lists that the body of a `with tracer.iter[...]` appends to have what a loop over the steps would append."""

import gc
import time
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

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


class Named(NamedTuple):
    stream: Any
    name: str


WAYS: dict[str, tuple[Callable[[LanguageModel], Any], Callable[[Any], Tensor]]] = {
    "a tensor": (stream, lambda one: one),
    "a saved one": (lambda model: stream(model).save(), lambda one: one),
    "a whole output": (lambda model: model.transformer.h[1].output, lambda one: one[0]),
    "a dict": (lambda model: {"stream": stream(model), "name": "h.1"}, lambda one: one["stream"]),
    "nested": (lambda model: [(stream(model), 1)], lambda one: one[0][0]),
    "a tuple": (lambda model: (stream(model), 1), of_tuple),
    "a named tuple": (lambda model: Named(stream(model), "h.1"), lambda one: one.stream),
    "a dict of another class": (lambda model: OrderedDict(a=1, b=stream(model)), lambda one: one.popitem()[1]),
    "what has names": (lambda model: model.transformer.output, lambda one: one.last_hidden_state),
}


@pytest.mark.parametrize(("value", "of"), WAYS.values(), ids=WAYS)
def test_each_step_appends(model: LanguageModel, value: Callable, of: Callable) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        streams, expected = [].save(), []
        with tracer.all():
            streams.append(value(model))
        for _ in tracer.all():
            expected.append(value(model))
    assert same([of(one) for one in streams], [of(one) for one in expected])


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


@dataclass(slots=True)
class Slots:
    streams: list[Any] = field(default_factory=list)

    def add(self, value: Any) -> None:
        self.streams.append(value)


class OfAllInstances:
    streams: ClassVar[list[Any]] = []


class Lists(list):
    pass


def test_lists_that_variables_lead_to(model: LanguageModel, expected: list[Tensor]) -> None:
    box, slots, lists = SimpleNamespace(inner=SimpleNamespace(streams=[])), Slots(), Lists()
    by_name: defaultdict[str, defaultdict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    OfAllInstances.streams.clear()
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer, tracer.all():
        box.inner.streams.append(stream(model))
        slots.add(stream(model))
        lists.append(stream(model))
        by_name["h.1"]["output"].append(stream(model))
        OfAllInstances().streams.append(stream(model))
    found_there = (box.inner.streams, slots.streams, lists, by_name["h.1"]["output"], OfAllInstances.streams)
    assert all(same(one, expected) for one in found_there)


class Lazy(dict):
    def values(self) -> Any:
        raise NotImplementedError("this would load everything")

    __iter__ = __len__ = values


class Proxy:
    @property
    def __dict__(self) -> Any:
        raise RuntimeError("it stands for something that is not there")


def test_nothing_of_the_users_is_run(model: LanguageModel, expected: list[Tensor]) -> None:
    lazy, proxy, name = Lazy(one=[]), Proxy(), type("Name", (), {"__module__": property(len), "streams": []})()
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer, tracer.all():
        lazy["one"].append(stream(model))
        name.streams.append(stream(model))
    assert same(lazy["one"], expected) and same(name.streams, expected) and isinstance(proxy, Proxy)


@contextmanager
def every_step(tracer: Any) -> Iterator[None]:
    with tracer.all():
        yield


def fill(model: LanguageModel, append: Callable[[Any], None]) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer, tracer.all():
        append(stream(model))


def test_lists_of_functions_that_call_the_one_with_the_block(model: LanguageModel, expected: list[Tensor]) -> None:
    of_stack, of_manager, of_caller = [], [], []
    with ExitStack() as stack:
        tracer = stack.enter_context(model.generate(prompt(1, 6), max_new_tokens=STEPS))
        stack.enter_context(tracer.all())
        of_stack.append(stream(model))
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer, every_step(tracer):
        of_manager.append(stream(model))
    fill(model, of_caller.append)
    assert all(same(one, expected) for one in (of_stack, of_manager, of_caller))


def ending(model: LanguageModel) -> dict[str, Any]:
    """Options with which the text ends at the second of its steps."""
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        ids = tracer.result
    assert ids[0, -3] != ids[0, -4]
    return {"max_new_tokens": STEPS, "eos_token_id": int(ids[0, -3])}


def test_a_text_that_ends_has_no_further_values(model: LanguageModel, expected: list[Tensor]) -> None:
    with model.generate(prompt(1, 6), **ending(model)) as tracer:
        streams, pairs, late, early = [], [], ["before"], [stream(model)]
        with tracer.all():
            streams.append(stream(model))
            pairs += [(stream(model), 1), 2]
        with tracer.iter[2:]:
            late.append(stream(model))
        streams.append("after")
    assert same(streams[:-1], expected[:2]) and streams[-1] == "after"
    assert [type(one) for one in pairs] == [tuple, int] * 2 and late == ["before"] and len(early) == 1


def test_sizes_are_those_of_each_step(model: LanguageModel) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        sizes, halves, shapes = [], [], []
        with tracer.all():
            sizes.append(stream(model).shape[1])
            halves.append((stream(model), stream(model).shape[1] // 2))
            shapes.append(stream(model).shape)
    assert sizes == [6, 1, 1, 1] and [half for _, half in halves] == [3, 0, 0, 0]
    assert {*sizes, *(shape[1] for shape in shapes)} == {1, 6}


def test_a_list_under_two_names_is_filled_once(model: LanguageModel, expected: list[Tensor]) -> None:
    by_layer: defaultdict[int, list[Any]] = defaultdict(list)
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        streams = other = ["before"]
        with tracer.all():
            other.append(stream(model))
            by_layer[0] = streams
            by_layer[1].append(stream(model))
            by_layer[2] = by_layer[1]
    assert same(streams[1:], expected) and same(by_layer[1], expected)


def test_a_list_in_a_list_stays_itself(model: LanguageModel, expected: list[Tensor]) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        inner, outer = [], []
        outer.append(outer)
        with tracer.all():
            inner.append(stream(model))
            outer += [inner, outer]
    assert same(inner, expected) and len(outer) == 1 + 2 * STEPS
    assert all(one is inner for one in outer[1::2]) and all(one is outer for one in outer[::2])


def test_a_list_that_is_changed_otherwise_is_warned_of(model: LanguageModel) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        streams = [stream(model)]
        with pytest.warns(UserWarning, match="changed a list otherwise"), tracer.all():
            streams.insert(0, stream(model))
    assert len(streams) == 2


def test_nothing_is_held_that_the_code_lets_go_of(model: LanguageModel) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        large, steps = torch.zeros(8), tracer.all()
        kept = Lists([large])
        held, listed = weakref.ref(large), weakref.ref(kept)
        with steps:
            kept.append(stream(model))
        del large, kept
        gc.collect()
        assert listed() is not None  # until the text's end is known
    assert held() is None and listed() is None and steps is not None


def test_values_of_a_list_that_is_gone_are_not_computed(model: LanguageModel) -> None:
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        streams, ids = [], tracer.result
        with tracer.all():
            streams.append(stream(model))
        del streams
    assert ids.shape[1] == 6 + STEPS
    assert len(tracer.recorder.roots) == 1


def test_much_data_around_costs_little(model: LanguageModel) -> None:
    data = [list(range(2000)) for _ in range(2000)]
    with model.generate(prompt(1, 6), max_new_tokens=STEPS) as tracer:
        streams, start = [], time.perf_counter()
        with tracer.all():
            took = time.perf_counter() - start
            streams.append(stream(model))
    assert took < 0.5 and len(streams) == STEPS and len(data) == 2000
