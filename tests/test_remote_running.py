"""Requests give the values that their traces give here: alone, and with others in one pass."""

import gc
import importlib
import pkgutil
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import nnzoo
import programs
import speaking
from families import error, folder, prompt
from nnzoo import LanguageModel
from nnzoo.generation import adopt
from nnzoo.remote import running
from nnzoo.remote.limits import Limits
from nnzoo.remote.watching import Progress
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.tracer import Tracer
from nnzoo.tracing.walk import Walk
from programs import N_LAYERS, PROGRAMS
from wire import answers, packed, refusal, values

for module in pkgutil.iter_modules(programs.__path__):
    importlib.import_module(f"programs.{module.name}")


@cache
def tiny(family: str = "gpt2", setting: str = "default") -> LanguageModel:
    return LanguageModel(folder(family, setting))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each pass has."""
    seen: list[int] = []
    make = Walk.__init__

    def counting(walk: Walk, model: Any, invokes: list, *rest: Any) -> None:
        seen.append(len(invokes))
        make(walk, model, invokes, *rest)

    monkeypatch.setattr(Walk, "__init__", counting)
    return seen


class Traces:
    """Requests of traces, with the values that the traces gave."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.local: list[dict[int, Tensor]] = []

    def of(self, tracer: Tracer, *saved: Any) -> None:
        """Inside the body of a trace, at its end."""
        self.requests.append(packed(tracer.graph))
        self.local.append({one._node.index: one for one in saved})

    def check(self, found: list) -> None:
        assert len(found) == len(self.local)
        for message, local in zip(found, self.local, strict=True):
            remote = values(message)
            assert remote.keys() == local.keys()
            for number, value in local.items():
                assert error(remote[number], value) < 1e-10


# --- every program ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "most"), [("gpt2", 20), ("llama", 3)])
def test_every_program_of_nnsights_users_gives_what_it_gives_here(
    family: str, most: int, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    requests: dict[str, list[tuple[str, bytes, dict[int, Tensor]]]] = {}
    model = LanguageModel(speaking.folder(family, N_LAYERS), dtype=torch.float64)
    finish = Tracer._finish

    def storing(tracer: Tracer) -> None:
        for last in tracer._at_the_end:
            last(tracer)
        tracer._at_the_end.clear()
        data = packed(tracer.graph)
        alive = [lazy for ref in tracer.recorder.alive if (lazy := ref()) is not None]
        saved = {lazy._node.index: lazy for lazy in alive if lazy._node in tracer.recorder.saved}
        del alive
        finish(tracer)
        kept = {n: value.detach().clone() for n, value in saved.items() if not isinstance(value, LazyTensor)}
        if kept and not any(value.is_meta for value in kept.values()):
            requests.setdefault(family, []).append((program.name, data, kept))

    monkeypatch.setattr(Tracer, "_finish", storing)
    for program in PROGRAMS:
        if family == program.families[0] and not program.options:
            program(model, nnzoo)
    monkeypatch.setattr(Tracer, "_finish", finish)
    stored = requests[family]
    model.clear_edits()
    passes.clear()
    together = answers(model, [data for _, data, _ in stored])
    assert max(passes) >= most
    for (_, data, _), found in [*zip(stored, together, strict=True)][::8]:
        assert found.fields == answers(model, [data])[0].fields
    for (name, _, local), found in zip(stored, together, strict=True):
        remote = values(found)
        for number, value in local.items():
            assert error(remote[number], value) < 1e-9, name  # of a batch whose longest prompt is another's


# --- together --------------------------------------------------------------------------------------------------------

SETTINGS = [("gpt2", "default"), ("llama", "rope=dynamic"), ("llama", "rope=llama3"), ("mistral", "window=7")]


@pytest.mark.parametrize(("family", "setting"), SETTINGS)
def test_prompts_of_several_lengths_share_a_pass(family: str, setting: str, passes: list[int]) -> None:
    model, traces = tiny(family, setting), Traces()
    for n_pos in (3, 17, 9, 1):
        with model.trace(prompt(2, n_pos)) as tracer:
            layers = model.transformer.h if family == "gpt2" else model.model.layers
            layers[1].output[0][:, -1] *= 2
            hidden = layers[2].output[0].save()
            pattern = layers[0].attn.output[1].save() if family == "gpt2" else layers[0].self_attn.output[1].save()
            logits = model.output.save()
            traces.of(tracer, hidden, pattern, logits)
    passes.clear()
    traces.check(answers(model, traces.requests))
    assert passes == [4]


def generations(model: LanguageModel, *, sampled: bool) -> Traces:
    traces = Traces()
    for number, (n_pos, steps) in enumerate([(4, 6), (11, 3), (2, 9)]):
        options = {"do_sample": True, "seed": number} if sampled else {}
        with model.generate(prompt(1, n_pos), max_new_tokens=steps, **options) as tracer:
            with tracer.iter[1]:
                model.transformer.h[0].output[0][:] *= 1 + number
            last = model.transformer.h[2].output[0].save()
            ids = tracer.result.save()
            traces.of(tracer, last, ids)
    return traces


@pytest.mark.parametrize("sampled", [False, True])
def test_generations_share_their_passes(sampled: bool, passes: list[int]) -> None:
    traces = generations(tiny(), sampled=sampled)
    passes.clear()
    found = answers(tiny(), traces.requests)
    traces.check(found)
    assert passes == [3]
    assert [one.fields for one in found] == [answers(tiny(), [one])[0].fields for one in traces.requests]


def test_a_generation_that_draws_goes_on_where_the_clients_random_numbers_stand(passes: list[int]) -> None:
    model, traces, after = tiny(), Traces(), []
    for n_pos in (4, 7):
        with model.generate(prompt(1, n_pos), max_new_tokens=5, do_sample=True) as tracer:
            ids = tracer.result.save()
            traces.of(tracer, ids)
        after.append(torch.get_rng_state())
    with model.generate(prompt(1, 5), max_new_tokens=5, do_sample=True) as tracer:
        first = model.output.save()
        traces.of(tracer, first)
    after.append(torch.get_rng_state())
    passes.clear()
    found = answers(model, traces.requests)
    traces.check(found)
    assert passes == [2, 1]  # the last draws nothing alone, and would with others
    for message, state in zip(found, after, strict=True):
        generator = torch.Generator()
        generator.set_state(message.tensors[message.fields["drawn"][0]])
        adopt(generator)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_text_that_ends_leaves_later_steps_absent(passes: list[int]) -> None:
    model, traces, greedy = tiny(), Traces(), []
    with model.generate(prompt(1, 5), max_new_tokens=8, do_sample=True, seed=1) as tracer:
        ids = tracer.result.save()
    new = ids[0, 5:].tolist()
    assert new[2] not in new[:2]
    for end in (new[2], None):
        with model.generate(prompt(1, 5), max_new_tokens=8, do_sample=True, seed=1, eos_token_id=end) as tracer:
            for _ in range(6):
                greedy.append(model.transformer.h[0].output[0].save())
                tracer.next()
            text = tracer.result.save()
            traces.of(tracer, text)
    del greedy
    passes.clear()
    for found in (answers(model, traces.requests), [answers(model, [one])[0] for one in traces.requests]):
        early, late = found
        assert early.fields["made"] == [3]
        assert late.fields["made"] == [8]
        assert len(early.fields["absent"]) == 3
        assert late.fields["absent"] == []
        for message, local in zip(found, traces.local, strict=True):
            for number, value in local.items():
                assert torch.equal(values(message)[number], value)
    assert passes == [2, 1, 1]


def test_random_numbers_are_those_of_the_line(passes: list[int]) -> None:
    model, traces = tiny(), Traces()
    for _ in range(3):
        with model.trace(prompt(1, 6)) as tracer:
            hidden = model.transformer.h[1].output[0]
            noisy = torch.nn.functional.dropout(hidden.clone(), 0.5).save()
            traces.of(tracer, noisy)
    passes.clear()
    found = answers(model, [*traces.requests, traces.requests[0]])
    traces.check(found[:3])
    assert passes == [4]
    (first, *_, again) = [next(iter(values(one).values())) for one in found]
    assert torch.equal(first, again)


def test_what_goes_wrong_in_one_harms_no_other(passes: list[int]) -> None:
    model, traces = tiny(), Traces()
    for number in range(3):
        with model.generate(prompt(1, 4 + number), max_new_tokens=3, do_sample=True, seed=number) as tracer:
            text = tracer.result.save()
            noise = model.transformer.h[0].output[0].clone().bernoulli(0.5).save()
            traces.of(tracer, text, noise)
    with model.trace(prompt(1, 4)) as tracer:
        ids = model.transformer.wte.input
        bad = model.transformer.h[0].output[0].index_select(1, (ids * 0 + 40)[0]).save()
        request = packed(tracer.graph)
        del bad
        tracer.recorder.alive.clear()
    passes.clear()
    with model.generate(prompt(1, 3), max_new_tokens=2) as tracer:
        evil = tracer.result.save()
        hidden = model.transformer.h[0].output[0]
        evil = hidden.index_select(1, (hidden[0, :, 0] * 0 + 40).long()).save()
        wrong = packed(tracer.graph)
        del evil
        tracer.recorder.alive.clear()
    passes.clear()
    first, second, third, alone, last = answers(model, [*traces.requests, request, wrong])
    traces.check([first, second, third])
    for one in (alone, last):
        assert one.kind == "error"
        assert one.fields["code"] == "run"
        assert one.fields["line"][0] == __file__
        assert one.fields["type"] in ("IndexError", "RuntimeError")
    assert passes[0] == 4
    assert len(passes) == 6


def test_not_even_a_request_that_is_none(passes: list[int]) -> None:
    traces = generations(tiny(), sampled=False)
    one, two, three = traces.requests
    found = answers(tiny(), [b"", one, b"nnzoo\0\1\0garbage", two, one[:-9], three])
    traces.check([found[1], found[3], found[5]])
    assert [message.kind for message in found[::2]] == ["error", "error", "error"]


# --- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_come_back_and_reach_no_weight() -> None:
    model = tiny()
    given = torch.randn(48, dtype=torch.float64, requires_grad=True)
    with model.trace(prompt(2, 6)) as tracer:
        hidden = model.transformer.h[1].output[0].save()
        model.transformer.h[1].output[0][:, -1] += given
        loss = model.output[:, -1].logsumexp(-1).sum().save()
        loss.backward()
        gradient = hidden.grad.save()
        request = packed(tracer.graph)
        numbers = [one._node.index for one in (hidden, loss, gradient)]
    theirs, given.grad = given.grad, None
    for parameter in model._model.parameters():
        parameter.grad = None
    for _ in range(2):
        (message,) = answers(model, [request])
        remote = values(message)
        for number, local in zip(numbers, (hidden, loss, gradient), strict=True):
            assert error(remote[number], local) < 1e-10
        assert error(message.tensors[message.fields["grads"][str(numbers[0])]], hidden.grad) < 1e-10
        (name,) = message.fields["gradients"].values()
        assert error(message.tensors[name], theirs) < 1e-10
    assert all(one.grad is None and one.requires_grad for one in model._model.parameters())


def test_a_loss_that_nothing_asked_for_depends_on_is_differentiated_all_the_same() -> None:
    model = tiny()
    with model.trace(prompt(1, 4)) as tracer:
        top = model.output.argmax(-1).save()  # of what is saved, nothing can be differentiated
        model.output.sum().backward()
        request = packed(tracer.graph)
    (message,) = answers(model, [request])
    assert torch.equal(*values(message).values(), top)
    for parameter in model._model.parameters():
        parameter.grad = None


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def test_a_run_leaves_nothing_behind() -> None:
    model = tiny()
    with model.trace(prompt(1, 6)) as tracer:
        hidden = model.transformer.h[1].output[0]
        torch.set_default_dtype(torch.float64)
        noisy = torch.nn.functional.dropout(hidden * torch.zeros(()), 0.5).save()
        torch.set_default_dtype(torch.float32)
        noisy.sum().backward()
        hidden.grad.save()
        request = packed(tracer.graph)
    weights = {name: weight.clone() for name, weight in model._model.state_dict().items()}
    hooks = [len(point.hooks) for point in model._model.hook_points.values()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    gc.collect()
    gc.disable()
    try:
        answers(model, [request])
        count = sum(isinstance(one, Tensor) for one in gc.get_objects())
        for _ in range(5):
            answers(model, [request, request[:-3]])
        after = sum(isinstance(one, Tensor) for one in gc.get_objects())
    finally:
        gc.enable()
    assert after <= count + 60
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert [len(point.hooks) for point in model._model.hook_points.values()] == hooks
    assert all(torch.equal(weight, weights[name]) for name, weight in model._model.state_dict().items())


# --- progress, time --------------------------------------------------------------------------------------------------


def test_each_block_and_token_is_reported() -> None:
    traces = generations(tiny(), sampled=False)
    seen: dict[int, list[Progress]] = {}
    answers(tiny(), traces.requests[:2], report=lambda number, progress: seen.setdefault(number, []).append(progress))
    assert [(one.layer, one.token) for one in seen[0]] == [(layer, token) for token in range(6) for layer in range(3)]
    assert {one.n_tokens for one in seen[0]} == {6}
    assert {one.n_tokens for one in seen[1]} == {3}
    assert {one.n_layers for one in seen[0]} == {3}


def test_time_that_is_up_ends_a_run() -> None:
    (request, *_) = generations(tiny(), sampled=False).requests
    fields = refusal(tiny(), request, Limits(seconds=0.0))
    assert (fields["code"], fields["type"]) == ("timeout", "TimeoutError")
    assert "0 s, which is the limit `seconds`" in fields["message"]


def test_another_models_graph_is_refused() -> None:
    (request, *_) = generations(tiny(), sampled=False).requests
    fields = refusal(tiny("llama"), request)
    assert fields["code"] == "model"
    assert "GPT2" in fields["message"]


def test_a_graph_that_asks_for_nothing_is_refused() -> None:
    with tiny().trace(prompt(1, 3)) as tracer:
        tiny().transformer.h[0].output[0] * 2
        request = packed(tracer.graph)
    assert "nothing in the graph is saved" in refusal(tiny(), request)["message"]


def test_an_error_of_ours_is_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(running, "_values", broken)
    (request, *_) = generations(tiny(), sampled=False).requests
    fields = refusal(tiny(), request)
    assert (fields["type"], fields["message"], fields["line"]) == ("ZeroDivisionError", "ZeroDivisionError", None)
