"""A streamer hears of each token when it is chosen: in plain generation, of an edited model, in a trace."""

from typing import Any

import pytest
import torch
from torch import Tensor

from families import folder, prompt, theirs
from nnzoo import LanguageModel
from nnzoo.tracing.recorder import TraceError

TOKENS, N = prompt(1, 7), 5

pytestmark = pytest.mark.local("a streamer hears each token when it is chosen, and a server's come together")


class Heard(list):
    """A streamer of transformers' protocol: what it heard, and how many steps of the model had been made by then."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.steps = 0
        model._model.unembed.register_forward_pre_hook(self._count)

    def _count(self, *args: Any) -> None:
        self.steps += 1

    def put(self, ids: Tensor) -> None:
        self.append((ids.tolist(), self.steps))

    def end(self) -> None:
        self.append(("end", self.steps))


def as_chosen(ids: Tensor) -> list:
    """What is heard of a generation, each token after the step that chose it."""
    new = [([token], step + 1) for step, token in enumerate(ids[0, 7:].tolist())]
    return [(TOKENS.tolist(), 0), *new, ("end", len(new))]


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


def edited(model: LanguageModel) -> LanguageModel:
    with model.edit() as other:
        for _ in other.tracer.iter[:]:
            other.transformer.h[1].mlp.output[:] *= -1
    return other


def steered(model: LanguageModel) -> None:
    with model.tracer.iter[:]:  # a `for` would look at each step whether the text goes on
        model.transformer.h[1].mlp.output[:] *= -1


def test_it_hears_what_transformers_says_to_it(model: LanguageModel) -> None:
    ours, said = Heard(model), []
    streamer = type("Said", (), {"put": lambda _, ids: said.append(ids.tolist()), "end": lambda _: said.append("end")})
    theirs("gpt2", "default").generate(TOKENS, max_new_tokens=N, do_sample=False, streamer=streamer())
    ids = model.generate(TOKENS, max_new_tokens=N, streamer=ours)
    assert [one for one, _ in ours] == said and ours == as_chosen(ids)


def test_of_an_edited_model(model: LanguageModel) -> None:
    other = edited(model)
    expected = other.generate(TOKENS, max_new_tokens=N).clone()
    heard = Heard(model)
    ids = other.generate(TOKENS, max_new_tokens=N, streamer=heard)
    assert torch.equal(ids, expected) and not torch.equal(ids, model.generate(TOKENS, max_new_tokens=N))
    assert heard == as_chosen(ids)


@pytest.mark.parametrize("form", ["invoke", "inside"])
def test_in_a_trace(model: LanguageModel, form: str) -> None:
    expected, heard = edited(model).generate(TOKENS, max_new_tokens=N).clone(), Heard(model)
    if form == "invoke":
        with model.generate(max_new_tokens=N, streamer=heard) as tracer, tracer.invoke(TOKENS):
            steered(model)
            assert heard == []
    else:
        with model.trace(TOKENS):
            model.generate(max_new_tokens=N, streamer=heard)
            steered(model)
    assert heard == as_chosen(expected)


def test_once_of_each_step_whatever_was_looked_at(model: LanguageModel) -> None:
    expected = model.generate(TOKENS, max_new_tokens=N).clone()
    heard, ends = Heard(model), int(expected[0, -1])
    options = {"max_new_tokens": 20, "eos_token_id": ends, "streamer": heard}
    with model.generate(**options) as tracer, tracer.invoke(TOKENS):
        norms = []
        for _ in tracer.iter[:]:  # each round looks whether the text goes on
            norms.append(model.transformer.h[1].output[0].norm().item())
        assert heard == []
    length = expected[0, 7:].tolist().index(ends) + 1
    assert [one for one, _ in heard] == [TOKENS.tolist(), *([t] for t in expected[0, 7 : 7 + length].tolist()), "end"]


def test_a_generation_that_draws_is_heard_as_it_is_kept(model: LanguageModel) -> None:
    heard = Heard(model)
    options = {"max_new_tokens": N, "do_sample": True, "seed": 3, "streamer": heard}
    with model.generate(**options) as tracer, tracer.invoke(TOKENS):
        if model.lm_head.output.norm() > 0:
            ids = tracer.result
    assert [one for one, _ in heard] == [one for one, _ in as_chosen(ids)]


def test_a_generation_that_has_run_is_no_trace(model: LanguageModel) -> None:
    with pytest.raises(TraceError, match="has run at once"):
        with model.generate(TOKENS, max_new_tokens=N, streamer=Heard(model)):
            pass


def test_what_a_streamer_cannot_hear_is_refused(model: LanguageModel) -> None:
    heard = Heard(model)
    with (
        pytest.raises(TraceError, match="a streamer hears of one prompt"),
        model.generate(max_new_tokens=N, streamer=heard) as tracer,
    ):
        for _ in range(2):
            with tracer.invoke(TOKENS):
                pass
    assert heard == []
