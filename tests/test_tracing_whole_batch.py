"""An invoke without a prompt: the whole batch, and the prompts in it, are one memory to a body."""

import pytest
import torch
from torch import Tensor

from families import prompt
from nnzoo import LanguageModel
from nnzoo.tracing.graph_object import Graph
from nnzoo.tracing.recorder import TraceError
from nnzoo.tracing.tracer import Tracer
from test_tracing_invokes import traced

PLACE = "blocks.1.hook_resid_post"


def test_an_edit_of_what_was_put_is_seen_by_every_prompt() -> None:
    with traced("gpt2", "default").trace() as tracer:
        with tracer.invoke(prompt(1, 9)):
            pass
        with tracer.invoke(prompt(1, 9)):
            pass
        with tracer.invoke():
            value = tracer.read(PLACE) * 2
            tracer.put(PLACE, value)
            value[:] = 0.5
            after = tracer.read(PLACE)
    assert (after == 0.5).all()


def test_an_edit_of_one_prompt_is_not_undone_by_a_write_into_another_row_of_the_whole() -> None:
    with traced("gpt2", "default").trace() as tracer:
        with tracer.invoke(prompt(1, 9)):
            first = tracer.read(PLACE)
        with tracer.invoke(prompt(1, 9)):
            second = tracer.read(PLACE)
        with tracer.invoke():
            whole = tracer.read(PLACE)
            first[:] = 1
            whole[1:] = 2
    assert (first == 1).all() and (second == 2).all()
    assert torch.equal(whole, torch.cat([first, second]))


def test_the_whole_shows_an_edit_of_one_prompt() -> None:
    with traced("gpt2", "default").trace() as tracer:
        with tracer.invoke(prompt(1, 9)):
            first = tracer.read(PLACE)
        with tracer.invoke(prompt(1, 9)):
            pass
        with tracer.invoke():
            whole = tracer.read(PLACE)
            first[:] = 1
    assert (whole[0] == 1).all()


def test_prompts_of_one_length_are_the_rows_of_one_tensor() -> None:
    model, batch = traced("gpt2", "default"), prompt(2, 9)

    def body(whole: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        before, last = whole.clone(), whole[:, -1]
        first[:, 0] = 1
        whole[:, 1] *= 2
        last += whole[0, 0]
        between = whole * 1
        second.mul_(0.5)
        whole[0] = whole[1] - first[0]
        return before, between, whole, first, second, last

    with model.trace(batch) as tracer:
        whole = tracer.read(PLACE)
        theirs = body(whole, whole[:1], whole[1:])
        expected = model.output
    with model.trace() as tracer:
        with tracer.invoke(batch[:1]):
            first = tracer.read(PLACE)
        with tracer.invoke(batch[1:]):
            second = tracer.read(PLACE)
        with tracer.invoke():
            ours = body(tracer.read(PLACE), first, second)
            logits = model.output
    for a, b in zip((*ours, logits), (*theirs, expected), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_padding_is_the_wholes_own() -> None:
    with traced("llama", "default").trace() as tracer:
        with tracer.invoke(prompt(1, 3)):
            short = tracer.read(PLACE)
        with tracer.invoke(prompt(1, 9)):
            pass
        with tracer.invoke():
            whole = tracer.read(PLACE)
            before = whole.clone()
            whole[:] = 1
            short[:] = 2
    assert (before[0, :6] == 0).all() and (whole[0, :6] == 1).all()
    assert (whole[0, 6:] == 2).all() and short.shape[1] == 3 and (whole[1] == 1).all()


def test_two_wholes_show_one_another() -> None:
    with traced("gpt2", "default").trace() as tracer:
        for n in (4, 9):
            with tracer.invoke(prompt(1, n)):
                pass
        with tracer.invoke():
            two = tracer.read(PLACE)
        with tracer.invoke(prompt(1, 6)):
            third = tracer.read(PLACE)
        with tracer.invoke():
            three = tracer.read(PLACE)
            three[:2] *= 3
            third[:] = 0
            two[:, -1] = 5
    assert torch.equal(two, three[:2]) and (three[2] == 0).all() and (two[:, -1] == 5).all()


def test_what_replaces_a_prompts_value_is_no_part_of_an_older_whole() -> None:
    with traced("gpt2", "default").trace() as tracer:
        with tracer.invoke(prompt(1, 9)):
            old = tracer.read(PLACE)
        with tracer.invoke(prompt(1, 9)):
            pass
        with tracer.invoke():
            before = tracer.read(PLACE)
        tracer._places.put(tracer.invokes[:1], PLACE, 0, old * 2)
        with tracer.invoke():
            before[:] = 1
            after = tracer.read(PLACE)
    assert (old == 1).all() and (before == 1).all()
    assert (after[1] == 1).all() and not (after[0] == 1).any()


def test_the_whole_of_prompts_in_consecutive_passes_is_read_and_cannot_be_written() -> None:
    model = traced("gpt2", "default")

    def patched(tracer: Tracer) -> Tensor:
        with tracer.invoke(prompt(1, 9)):
            late = tracer.read("blocks.2.hook_resid_post")
        with tracer.invoke(prompt(1, 9)):
            tracer.put("blocks.0.hook_resid_post", late)
        return late

    with model.trace() as tracer:
        patched(tracer)
        with tracer.invoke():
            whole = tracer.read(PLACE)
            second = tracer._places.read(tracer.invokes[1:], PLACE, 0)
            second[:] = 3
    assert (whole[1] == 3).all() and not (whole[0] == 3).any()
    with pytest.raises(TraceError, match=f"{PLACE} of invoke 0 cannot be set"), model.trace() as tracer:
        patched(tracer)
        with tracer.invoke():
            tracer.read(PLACE)[:] = 1


@pytest.mark.parametrize("max_batch", [None, 1])
def test_a_loss_flows_through_the_whole_to_each_prompt(max_batch: int | None) -> None:
    model, batch = traced("gpt2", "default"), prompt(2, 9)
    with model.trace(batch) as tracer:
        whole = tracer.read("blocks.0.hook_resid_post")
        tracer.read(PLACE)[:] *= 2
        (tracer.read(PLACE)[0] * tracer.read(PLACE)[1]).sum().backward()
        expected = whole.grad
    with model.trace(max_batch=max_batch) as tracer:
        values = []
        for row in batch.split(1):
            with tracer.invoke(row):
                values.append(tracer.read("blocks.0.hook_resid_post"))
        with tracer.invoke():
            tracer.read(PLACE)[:] *= 2
            (tracer.read(PLACE)[0] * tracer.read(PLACE)[1]).sum().backward()
        grads = [value.grad for value in values]
    torch.testing.assert_close(torch.cat(grads), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("form", ["statement", "with"])
def test_the_gradient_of_the_whole_is_that_of_every_prompts_value(form: str) -> None:
    with traced("gpt2", "default").trace() as tracer:
        values = []
        for n in (4, 9):
            with tracer.invoke(prompt(1, n)):
                values.append(tracer.read(PLACE))
        with tracer.invoke():
            whole = tracer.read(PLACE)
            loss = (whole * whole).sum() + tracer.read("unembed.hook_out").square().mean()
            if form == "with":
                with loss.backward():
                    grad, own = whole.grad, [value.grad for value in values]
            else:
                loss.backward()
                grad, own = whole.grad, [value.grad for value in values]
    assert (grad[0, :5] == 0).all()
    assert torch.equal(grad[0, 5:], own[0][0]) and torch.equal(grad[1], own[1][0])
    assert not torch.equal(own[1], 2 * values[1])  # what comes from above is in it


def test_the_gradient_of_a_whole_that_was_written_into_is_refused() -> None:
    for late in (False, True):
        with pytest.raises(TraceError, match="own invoke, and ask"), traced("gpt2", "default").trace() as tracer:
            for n in (4, 9):
                with tracer.invoke(prompt(1, n)):
                    pass
            with tracer.invoke():
                whole = tracer.read(PLACE)
                if not late:
                    whole *= 2
                tracer.read("unembed.hook_out").sum().backward()
                whole.grad
                whole *= 2


def test_in_a_generation_the_rows_of_a_text_that_has_ended_are_padding() -> None:
    model = traced("gpt2", "default")
    first, second = prompt(1, 6), prompt(1, 9)
    ends = int(model.generate(first, max_new_tokens=1)[0, -1])
    alone = _generated(model, first, second, ends, whole=False)
    assert len(alone[0][0]) == 7 and len(alone[1][0]) == 15
    for got, expected in zip(_generated(model, first, second, ends, whole=True), alone, strict=True):
        assert torch.equal(got, expected)


def _generated(model: LanguageModel, first: Tensor, second: Tensor, ends: int, *, whole: bool) -> list[Tensor]:
    """Both texts, the second with an edit at its later steps: made of its own value, or of the whole batch's."""
    with model.generate(max_new_tokens=6, eos_token_id=ends) as tracer:
        ids = []
        for one in (first, second):
            with tracer.invoke(one):
                ids.append(tracer.result)
                for _ in tracer.iter[2:5] if one is second and not whole else ():
                    tracer.read(PLACE)[:] *= -1
        with tracer.invoke():
            seen = []
            for step in tracer.iter[2:5] if whole else ():
                seen.append(tracer.read(PLACE))
                tracer._places.read(tracer.invokes[:1], PLACE, step).mul_(2)  # it is not there, and changes nothing
                seen[-1].mul_(-1)
    assert all((value[0] == 0).all() and not (value[1] == 0).any() for value in seen)
    return ids


def test_a_stored_trace_of_the_whole_batch_gives_the_values_it_gave() -> None:
    model = traced("llama", "default")
    with model.trace() as tracer:
        for n in (4, 9):
            with tracer.invoke(prompt(1, n)):
                value = tracer.read(PLACE).save()
        with tracer.invoke():
            whole = tracer.read(PLACE).save()
            whole[:, -1] *= 3
            value[:, 0] = 1
            logits = tracer.read("unembed.hook_out").save()
        stored = tracer.graph.to_bytes()
        numbers = [one._node.index for one in (value, whole, logits)]
    again = Graph.from_bytes(stored).run(model)
    for number, one in zip(numbers, (value, whole, logits), strict=True):
        assert torch.equal(again[number], one)
