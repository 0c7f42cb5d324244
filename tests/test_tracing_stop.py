"""tracer.stop(): the body ends there, and no layer runs that nothing above it needs."""

import pytest
import torch

from families import folder, prompt
from nnzoo import LanguageModel
from nnzoo.tracing.recorder import TraceError

TOKENS = prompt(1, 7)


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


def ran(model: LanguageModel) -> list[int]:
    blocks: list[int] = []
    for layer, block in enumerate(model._model.blocks):
        block.register_forward_pre_hook(lambda *_, layer=layer: blocks.append(layer))
    return blocks


def test_statements_after_it_do_not_run_and_values_before_it_are_there(model: LanguageModel) -> None:
    blocks, lines = ran(model), []
    with model.trace(TOKENS) as tracer:
        hidden = model.transformer.h[0].output[0]
        hidden[:, 0] = 1
        tracer.stop()
        lines.append(model.output)
        hidden[:] = 0
    assert blocks == [0] and lines == []
    assert (hidden[:, 0] == 1).all() and hidden[:, 1:].any()
    with model.trace(TOKENS):
        pass  # the model is free for others


def test_in_an_invoke_it_ends_that_invokes_body(model: LanguageModel) -> None:
    lines = []
    with model.trace() as tracer:
        with tracer.invoke(TOKENS):
            first = model.transformer.h[0].output[0]
            tracer.stop()
            lines.append("first")
        with tracer.invoke(TOKENS):
            second = model.output
        lines.append("between")
        tracer.stop()
        lines.append("after")
    assert lines == ["between"] and first.isfinite().all()
    assert torch.allclose(second, model(TOKENS))


def test_an_except_of_the_body_does_not_take_it(model: LanguageModel) -> None:
    lines = []
    with model.trace(TOKENS) as tracer:
        try:
            tracer.stop()
        except Exception:
            lines.append("except")
        lines.append("after")
    assert lines == []


def test_in_a_loop_over_steps_it_ends_the_loop_and_the_body(model: LanguageModel) -> None:
    with model.generate(TOKENS, max_new_tokens=5) as tracer:
        tokens = []
        for step in tracer.iter[:]:
            tokens.append(model.lm_head.output[:, -1].argmax(-1))
            if step == 2:
                tracer.stop()
        tokens.append(None)
    assert torch.equal(torch.stack(tokens, dim=1), model.generate(TOKENS, max_new_tokens=3)[:, 7:])


def test_in_a_backward_passs_body_it_ends_all_bodies(model: LanguageModel) -> None:
    with model.trace(TOKENS) as tracer:
        hidden = model.transformer.h[0].output[0]
        with model.output.sum().backward():
            grad = hidden.grad
            tracer.stop()
        del grad
    assert grad.shape == hidden.shape and grad.any()


def test_an_error_of_another_kind_goes_on(model: LanguageModel) -> None:
    with pytest.raises(KeyError, match="of my own"), model.trace() as tracer, tracer.invoke(TOKENS):
        raise KeyError("of my own")


def test_where_it_cannot_be_is_said(model: LanguageModel) -> None:
    with model.trace(TOKENS) as tracer:
        pass
    with pytest.raises(TraceError, match="body is not running"):
        tracer.stop()
    with (
        pytest.raises(TraceError, match=r"tracer.stop\(\) is not possible inside a `with tracer.iter"),
        model.generate(TOKENS, max_new_tokens=5) as tracer,
        tracer.iter[1:3],
    ):
        tracer.stop()
    with (
        pytest.raises(TraceError, match="body is not running"),
        model.trace(TOKENS) as outer,
        model.trace(TOKENS),
    ):
        outer.stop()
