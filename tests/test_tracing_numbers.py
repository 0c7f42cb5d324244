"""Numbers in a body: those that were looked at, and those by which one indexes."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from families import error, folder, prompt, theirs
from nnzoo import Graph, LanguageModel
from nnzoo.tracing.recorder import TraceError

TOKENS = prompt(2, 9)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


def stream() -> Tensor:
    """The stream after block 1 in transformers."""
    with torch.no_grad():
        return theirs("gpt2", "default")(TOKENS, output_hidden_states=True).hidden_states[2]


# --- looked at -------------------------------------------------------------------------------------------------------


def test_a_number_that_was_looked_at_can_be_saved(model: LanguageModel) -> None:
    with model.trace(TOKENS):
        h = model.transformer.h[1].output[0]
        norm, best = h.norm().item().save(), h[0, -1].argmax().item().save()
        positive = (h.sum() > 0).item()
    assert norm.value == pytest.approx(stream().norm().item())
    assert isinstance(norm, float) and isinstance(best, int) and positive in (True, False)
    assert best == stream()[0, -1].argmax() and pickle.loads(pickle.dumps(best)) == best
    assert (repr(norm), str(best)) == (repr(float(norm)), str(int(best)))


def test_it_is_a_number_where_one_is_wanted(model: LanguageModel) -> None:
    with model.trace(TOKENS) as tracer:
        h = model.transformer.h[1].output[0]
        width, size = abs(h[0, 0].argmax().item()) + 1, h.norm().item()
        part = (h[..., :width] / size).save()
        graph = tracer.graph
    assert error(part, stream()[..., :width] / stream().norm()) < 1e-9
    *_, again = Graph.from_bytes(graph.to_bytes()).run(model).values()
    assert torch.equal(again, part)


# --- an index --------------------------------------------------------------------------------------------------------


def best_of(h: Tensor) -> Tensor:
    return h[0, :, 0].argmax()


@pytest.mark.parametrize("index", [best_of, lambda h: torch.tensor(3), lambda h: torch.tensor(-2, dtype=torch.int32)])
def test_one_integer_picks_a_view(model: LanguageModel, index: Callable[[Tensor], Tensor]) -> None:
    expected = stream().clone()
    expected[:, index(expected)][..., 0] = 5
    with model.trace(TOKENS):
        h = model.transformer.h[1].output[0]
        h[:, index(h)][..., 0] = 5
        seen = model.transformer.h[1].output[0].clone()
    assert error(seen, expected) < 1e-9


def test_an_integer_that_is_computed_needs_no_pass_of_its_own() -> None:
    model, calls = LanguageModel(folder("gpt2", "default")), []
    for i, block in enumerate(model._model.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: calls.append(i))
    with model.trace() as tracer:
        chosen = []
        for row in TOKENS:
            with tracer.invoke(row):
                logits = model.output
                chosen.append(logits[0, -1, logits[0, -1].argmax()])
    assert calls == [0, 1, 2]
    with torch.no_grad():
        assert error(torch.stack(chosen), theirs("gpt2", "default")(TOKENS).logits[:, -1].max(-1).values) < 1e-9


def test_the_gradient_of_what_an_integer_picks_is_that_of_transformers(model: LanguageModel) -> None:
    answers, plain = torch.tensor([5, 7]), theirs("gpt2", "default")
    embeds = plain.transformer.wte(TOKENS).detach().requires_grad_()
    logits = plain(inputs_embeds=embeds).logits
    (expected,) = torch.autograd.grad(logits[0, -1, answers[0]] + logits[1, -1, logits[1, -1].argmax()], embeds)
    with model.trace(TOKENS):
        h, ours = model.transformer.wte.output, model.output
        (ours[0, -1, answers[0]] + ours[1, -1, ours[1, -1].argmax()]).backward()
        grad = h.grad
    assert error(grad, expected) < 1e-9


def test_an_integer_is_computed_anew_for_each_prompt_of_an_edited_model(model: LanguageModel) -> None:
    with model.edit() as edited:
        h = edited.transformer.h[1].output[0]
        h[:, best_of(h)] = 0
    with edited.trace(TOKENS):
        changed = edited.transformer.h[1].output[0].clone()
    expected = stream().clone()
    expected[:, best_of(expected)] = 0
    assert error(changed, expected) < 1e-9


def test_a_row_of_the_weights_is_picked_and_they_stay(model: LanguageModel) -> None:
    weight = model.transformer.wte.weight
    before = weight.detach().clone()
    with model.trace(TOKENS):
        logits = model.output
        row = weight[logits[0, -1].argmax()]
        doubled = row * 2
        with pytest.raises(TraceError, match="change a clone of the part"):
            row[:] = 0
        rows = weight[logits[:, -1].argmax(-1)]
        rows[0] = 0
    with torch.no_grad():
        best = theirs("gpt2", "default")(TOKENS).logits[:, -1].argmax(-1)
    assert torch.equal(row, before[best[0]]) and torch.equal(doubled, 2 * row)
    assert torch.equal(rows[1], before[best[1]]) and not rows[0].any()
    assert torch.equal(weight, before)


def test_a_graph_with_a_computed_index_is_stored(model: LanguageModel) -> None:
    with model.trace(TOKENS) as tracer:
        h = model.transformer.h[1].output[0]
        h[0, best_of(h)] = 1
        picked = h[:, best_of(h)].save()
        graph = tracer.graph
    *_, again = Graph.from_bytes(graph.to_bytes()).run(model).values()
    assert torch.equal(again, picked)


def test_an_integer_beyond_the_end_is_an_error_of_its_line(model: LanguageModel) -> None:
    with pytest.raises(IndexError, match="index 12") as raised, model.trace(TOKENS):
        kept = (lambda h: h[:, best_of(h) * 0 + 12])(model.transformer.h[1].output[0])
    assert raised.traceback[-1].name == "<lambda>"
    del kept


@pytest.mark.parametrize("index", [(True, torch.ones(2, 9).bool()), (torch.tensor(True), ..., torch.ones(48).bool())])
def test_masks_stand_beside_what_takes_no_axis(model: LanguageModel, index: tuple) -> None:
    with model.trace(TOKENS):
        picked = model.transformer.h[1].output[0][index]
    assert error(picked, stream()[index]) < 1e-9
