"""Jobs of several keys on one worker: none sees or changes what is another's, and none has it for too long."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from families import folder, prompt
from nnzoo import LanguageModel
from nnzoo.remote import running
from nnzoo.remote.limits import Limits
from test_remote_running import generations, passes, tiny
from wire import answers, packed, values

__all__ = ["passes"]


@cache
def model_of(family: str) -> LanguageModel:
    return LanguageModel(folder(family, "default"))


def clean(family: str) -> bytes:
    """A request that changes nothing, and asks for much."""
    model = model_of(family)
    with model.trace(prompt(2, 5)) as tracer:
        kept = [model.output.save(), *(tracer.read(hook).save() for hook in [*model.order][::9])]
        request = packed(tracer.graph)
        del kept
        tracer.recorder.alive.clear()
    return request


def overwriting(family: str, hook: str, value: float) -> bytes:
    """A request that fills the value of a hook point in place, whatever it is."""
    model = model_of(family)
    with model.trace(prompt(1, 9)) as tracer:
        found = tracer.read(hook)
        found[:] = value if found.is_floating_point() else 1
        kept = [found.save(), model.output.save()]
        request = packed(tracer.graph)
        del kept, found
        tracer.recorder.alive.clear()
        tracer.recorder.effects.clear()
    return request


def assert_close(ours: dict[int, Tensor], theirs: dict[int, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for number, value in theirs.items():
        torch.testing.assert_close(ours[number], value, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_one_job_overwrites_no_other_sees_in_its_pass_or_later(family: str, passes: list[int]) -> None:
    (before,) = map(values, answers(model_of(family), [clean(family)]))
    for hook in model_of(family).order:
        passes.clear()
        theirs, ours = answers(model_of(family), [overwriting(family, hook, math.nan), clean(family)])
        assert theirs.kind == "result" and passes == [2], hook  # they shared a pass
        assert_close(values(ours), before)
    assert_close(*map(values, answers(model_of(family), [clean(family)])), before)


# --- turns -----------------------------------------------------------------------------------------------------------


def test_what_is_not_begun_when_a_turn_is_over_is_given_back() -> None:
    requests = [*generations(tiny(), sampled=False).requests[:2], *gradients()[:3]]
    for turn, n_answered in ((0.0, 2), (60.0, 5)):  # the first two share their passes
        found = [*running.answers(tiny(), requests, Limits(), lambda number, progress: None, turn)]
        assert [number for number, answer in found if answer is not None] == list(range(n_answered))
        assert [number for number, answer in found if answer is None] == list(range(n_answered, 5))[::-1]


def gradients() -> list[bytes]:
    """Requests of which each runs alone."""
    requests = []
    for _ in range(3):
        with tiny().trace(prompt(1, 4)) as tracer:
            hidden = tiny().transformer.h[0].output[0]
            tiny().output.sum().backward()
            hidden.grad.save()
            requests.append(packed(tracer.graph))
            tracer.recorder.effects.clear()
            tracer.recorder.alive.clear()
    return requests


def test_jobs_that_fail_together_are_given_back_too() -> None:
    with tiny().trace(prompt(1, 4)) as tracer:
        ids = tiny().transformer.wte.input
        bad = tiny().transformer.h[0].output[0].index_select(1, (ids * 0 + 40)[0]).save()
        request = packed(tracer.graph)
        del bad
        tracer.recorder.alive.clear()
    found = [*running.answers(tiny(), [request] * 3, Limits(), lambda number, progress: None, 0.0)]
    assert found == [(2, None), (1, None), (0, None)]
