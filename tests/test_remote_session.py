"""A remote session is one request, and gives what its traces give one after the other."""

from typing import Any

import pytest
import torch
from torch import Tensor

import nnzoo
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import TraceError
from remote_programs import OTHER, PROMPT
from test_remote_trace import Pair, assert_same, every_family, pair, weightless

__all__ = ["pair", "weightless"]  # fixtures


def flowing(model: Any, **how: Any) -> dict[str, Any]:
    with model.session(**how):
        with model.trace(PROMPT):
            cat = model.blocks[3].output[0][:, -1]
        with model.trace(OTHER) as tracer:
            dog = model.blocks[3].output[0][:, -1].save()
            plain = tracer.result.save()
        direction = torch.nn.functional.normalize(cat - dog, dim=-1)
        with model.trace(OTHER):
            model.blocks[0].output[0][:, -1] += 5 * direction
            steered = model.output.save()
        distance = nnzoo.save((steered - plain).norm())
    return {"dog": dog, "plain": plain, "steered": steered, "distance": distance}


def edited_between(model: Any, **how: Any) -> dict[str, Any]:
    with model.session(**how):
        with model.trace(PROMPT):
            hidden = model.blocks[1].output[0]
            logits = model.output.save()
        hidden[:] = 0  # the trace is over: this is no intervention
        hidden += 1
        with model.trace(PROMPT):
            model.blocks[1].output[0][:] = hidden
            changed = model.output.save()
        with model.edit() as other:
            other.blocks[2].mlp.output[:] *= 0.5
        with other.trace(PROMPT):
            others = other.output.save()
        kept = nnzoo.save(hidden)
    return {"logits": logits, "changed": changed, "others": others, "kept": kept}


def looking_between(model: Any, **how: Any) -> dict[str, Any]:
    with model.session(**how):
        with model.trace(PROMPT):
            logits = model.output
        top = int(logits[0, -1].argmax())
        with model.trace(OTHER):
            probability = model.output[0, -1].softmax(-1)[top].save()
    return {"top": top, "probability": probability}


def generating(model: Any, **how: Any) -> dict[str, Any]:
    with model.session(**how):
        with model.generate(PROMPT, max_new_tokens=3) as tracer:
            first = tracer.result.save()
        with model.trace() as tracer:
            with tracer.invoke(OTHER):
                cache = tracer.cache([model.blocks[0]])
                model.blocks[0].output[0][:] *= 2
            with tracer.invoke("Hello world"):
                second = model.generate(max_new_tokens=2)
            with tracer.invoke():
                whole = model.blocks[3].output[0].save()
    (block,) = cache.values()
    return {"first": first, "block": block.output[0], "second": second, "whole": whole}


def drawing(model: Any, **how: Any) -> dict[str, Any]:
    with model.session(**how):
        with model.generate(PROMPT, max_new_tokens=4, do_sample=True, temperature=5.0) as tracer:
            first = tracer.result.save()
        noise = torch.rand(2)
        with model.generate(PROMPT, max_new_tokens=4, do_sample=True, temperature=5.0) as tracer:
            second = tracer.result.save()
    return {"first": first, "noise": noise, "second": second, "after": torch.rand(2)}


def differentiating(model: Any, **how: Any) -> dict[str, Any]:
    with model.session(**how):
        grads = []
        for prompt in (PROMPT, OTHER):
            with model.trace(prompt, max_batch=1):
                hidden = model.blocks[1].output[0]
                model.output[0, -1, 3].backward()
                grads.append(hidden.grad.norm().save())
        with torch.no_grad(), model.trace(PROMPT):
            logits = model.output.save()
    return {"grads": grads, "logits": logits}


@pytest.mark.parametrize(
    "program",
    [flowing, edited_between, looking_between, generating, drawing, differentiating],
    ids=lambda program: program.__name__,
)
def test_the_same_session_gives_the_same_values(pair: Pair, program: Any) -> None:
    assert_same(*pair.both(program))


@every_family
def test_it_is_one_request(pair: Pair) -> None:
    assert_same(*pair.both(flowing))
    assert len(pair.server.jobs) == 1


def test_ids_that_are_generated_in_it_are_there_after_it(pair: Pair) -> None:
    model = pair.there
    with model.session(remote=True):
        with model.generate(PROMPT, max_new_tokens=3) as tracer:
            first = tracer.result.save()
        plain = model.generate(PROMPT, max_new_tokens=2)
    assert torch.equal(plain, first[:, :-1])


def test_a_remote_trace_in_it_belongs_to_it(pair: Pair) -> None:
    model = pair.there
    with model.session(remote=True) as session:
        with model.trace(PROMPT, remote=True):
            hidden = model.blocks[1].output[0].save()
    assert type(hidden) is Tensor and len(pair.server.jobs) == 1
    assert session.job.id == session.backend.job_id == "j0"


def test_one_without_a_model_is_of_the_first_that_is_traced(pair: Pair) -> None:
    model, other = pair.there, pair.here
    with nnzoo.session(remote=True) as session:
        with model.trace(PROMPT):
            hidden = model.blocks[1].output[0]
        with pytest.raises(TraceError, match="one request to one model"), other.trace(PROMPT):
            pass
        with model.trace(OTHER):
            model.blocks[0].output[0][:, -1] = hidden[:, -1]
            logits = model.output.save()
    assert len(pair.server.jobs) == 1 and session.job.id == "j0"
    with other.trace(PROMPT):
        hidden = other.blocks[1].output[0]
    with other.trace(OTHER):
        other.blocks[0].output[0][:, -1] = hidden[:, -1]
        ours = other.output
    assert torch.equal(logits, ours)
    for error, body in ((TraceError, lambda: None), (ZeroDivisionError, lambda: 1 / 0)):
        with pytest.raises(error), nnzoo.session(remote=True):
            body()
        with model.trace(PROMPT, remote=True):
            model.output.save()


def test_it_need_not_wait(pair: Pair) -> None:
    model = pair.there
    with model.session(remote=True, blocking=False) as session:
        with model.trace(PROMPT):
            hidden, unsaved = model.blocks[1].output[0].save(), model.output
    assert isinstance(hidden, LazyTensor)
    session.job.result()
    assert type(hidden) is Tensor
    with pytest.raises(TraceError, match="was not saved"):
        unsaved + 1


def test_an_edit_in_a_session_cannot_use_what_the_session_has_not_sent(pair: Pair) -> None:
    model = pair.there
    with pytest.raises(TraceError, match="In a remote session it is a plain tensor when the session has ended"):
        with model.session(remote=True):
            with model.trace(PROMPT):
                hidden = model.blocks[1].output[0].save()
            with model.edit() as edited:
                edited.blocks[2].output[0][:] = hidden


def test_what_an_alias_sees_is_asked_for_explicitly(pair: Pair) -> None:
    model = pair.there
    with pytest.raises(TraceError, match=r"shares its memory with another .* take a clone before you edit it"):
        with model.session(remote=True):
            with model.trace(PROMPT):
                hidden = model.blocks[1].output[0]
                last = hidden[:, -1]
            hidden[:] = 0
            _ = last + 1


def test_a_trace_that_fails_keeps_the_session_from_being_sent(pair: Pair) -> None:
    model = pair.there
    with pytest.raises(TraceError, match="ended with an error, so the session was not sent"):
        with model.session(remote=True):
            with pytest.raises(ZeroDivisionError), model.trace(PROMPT):
                1 / 0
    assert not pair.server.asked and model._session.get() is None
    assert_same(*pair.both(flowing))


def test_an_error_of_its_run_ends_at_the_line_that_recorded_it(pair: Pair) -> None:
    model = pair.there
    with pytest.raises(IndexError, match="index 99") as raised, model.session(remote=True):
        with model.trace(PROMPT):
            picked = (lambda h: h[:, torch.tensor([99])])(model.blocks[1].output[0]).save()
    assert raised.traceback[-1].name == "<lambda>"
    del picked


def test_a_mode_of_one_trace_is_refused(pair: Pair) -> None:
    model = pair.there
    with pytest.raises(TraceError, match="one autocast"):
        with model.session(remote=True):
            with torch.autocast("cpu", dtype=torch.bfloat16), model.trace(PROMPT):
                pass
