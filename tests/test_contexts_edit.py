"""Edits hold in every trace of the edited model, on everybody's own tokens."""

import copy

import pytest
import torch
from torch import Tensor, nn

import speaking
from first_edits import LONG, SHORT, VECTOR, WIDTH, N, halved, steered
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


def edited(model: LanguageModel) -> LanguageModel:
    """The model with block 1 halved, and then steered."""
    with model.edit() as other:
        other.transformer.h[1].output[0][:] *= 0.5
    with other.edit() as both:
        both.transformer.h[1].output[0][:] += VECTOR
    return both


BOTH = {"transformer.h.1.output": lambda h: steered(halved(h))}


class TestWhereItHolds:
    @pytest.mark.parametrize("prompt", [SHORT, LONG, "Hello"])
    def test_in_a_trace_of_any_length(self, model: LanguageModel, theirs: Theirs, prompt: str) -> None:
        with edited(model).trace(prompt) as tracer:
            logits = tracer.result
        assert_close(logits, theirs.forward(prompt, edits=BOTH).logits)

    @pytest.mark.parametrize("family", ["llama", "mistral"])
    def test_in_other_families(self, family: str) -> None:
        ours, theirs = LanguageModel(speaking.folder(family, 4)), Theirs(family, 4)
        with ours.edit(inplace=True):
            queries = ours.model.layers[1].self_attn.q_proj.output
            queries[:, -1] = queries[:, 0] * 2
            ours.model.layers[2].mlp.output = ours.model.layers[1].mlp.output + 1
        with ours.trace(LONG):
            logits = ours.output
        seen = theirs.forward(LONG, read=["model.layers.1.mlp.output"], edits={
            "model.layers.1.self_attn.q_proj.output": lambda q: torch.cat([q[:, :-1], q[:, :1] * 2], 1)
        })  # fmt: skip
        edits = {
            "model.layers.1.self_attn.q_proj.output": lambda q: torch.cat([q[:, :-1], q[:, :1] * 2], 1),
            "model.layers.2.mlp.output": lambda m: seen["model.layers.1.mlp.output"] + 1,
        }
        assert_close(logits, theirs.forward(LONG, edits=edits).logits)

    def test_in_every_invoke_on_its_own_tokens(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit() as other:
            stream = other.transformer.h[1].output[0]
            stream[:, 0] = stream[:, -1]
        with other.trace() as tracer:
            with tracer.invoke(SHORT):
                short = other.output
            with tracer.invoke(LONG):
                long = other.output
            with tracer.invoke():
                batch = other.transformer.h[3].output[0]

        def first_is_last(h: Tensor) -> Tensor:
            return torch.cat([h[:, -1:], h[:, 1:]], 1)

        for prompt, logits in ((SHORT, short), (LONG, long)):
            assert_close(logits, theirs.forward(prompt, edits={theirs.block(1): first_is_last}).logits)
        last = theirs.forward(LONG, edits={theirs.block(1): first_is_last}, read=[theirs.block(3)])
        assert_close(batch[1:], last[theirs.block(3)])

    def test_in_a_call_with_labels_too(self, model: LanguageModel, theirs: Theirs) -> None:
        ids, both = theirs.ids(LONG), edited(model)
        expected = theirs.forward(LONG, edits=BOTH).logits
        assert_close(both(LONG), expected)
        assert_close(both.trace(LONG, trace=False).logits, expected)
        loss = nn.functional.cross_entropy(expected[0, :-1], ids[0, 1:])
        assert_close(both(ids, labels=ids).loss, loss)
        assert both(LONG).requires_grad
        with pytest.raises(ValueError, match=r"stop_at_layer: .* know nothing of edits"):
            both(LONG, stop_at_layer=1)

    def test_in_a_generation_of_any_kind(self, model: LanguageModel, theirs: Theirs) -> None:
        both, expected = edited(model), theirs.generate(LONG, N, edits=BOTH)[0]
        assert not torch.equal(expected, theirs.generate(LONG, N)[0]), "the edits make a difference"
        assert torch.equal(both.generate(LONG, max_new_tokens=N), expected)
        with both.generate(LONG, max_new_tokens=N) as tracer:
            ids = tracer.result
        assert torch.equal(ids, expected)
        with both.trace() as tracer:
            with tracer.invoke(LONG):
                inside = both.generate(max_new_tokens=N)
        assert torch.equal(inside, expected)

    def test_before_the_body(self, model: LanguageModel, theirs: Theirs) -> None:
        both = edited(model)
        with both.trace(LONG):
            before = both.transformer.h[1].output[0].clone()
            both.transformer.h[1].output[0][:] = before * 3
            logits = both.output
        seen = theirs.forward(LONG, read=[theirs.block(1)], edits=BOTH)
        assert_close(before, seen[theirs.block(1)])
        assert_close(logits, theirs.forward(LONG, edits={theirs.block(1): lambda h: steered(halved(h)) * 3}).logits)

    def test_under_gradients(self, model: LanguageModel, theirs: Theirs) -> None:
        both = edited(model)
        with both.trace(LONG):
            hidden = both.transformer.h[0].output[0]
            both.output[0, -1, 5].backward()
            gradient = hidden.grad
        seen = theirs.forward(LONG, read=[theirs.block(0)], edits=BOTH, grad=True)
        seen.logits[0, -1, 5].backward()
        expected = seen[theirs.block(0)].grad
        assert expected is not None
        assert_close(gradient, expected)

    def test_in_a_cache_and_a_scan(self, model: LanguageModel, theirs: Theirs) -> None:
        both = edited(model)
        with both.trace(LONG) as tracer:
            cache = tracer.cache()
        seen = theirs.forward(LONG, read=[theirs.block(1), theirs.block(3)], edits=BOTH)
        for layer in (1, 3):
            assert_close(cache.transformer.h[layer].output[0], seen[theirs.block(layer)])
        with both.scan(LONG):
            shape = tuple(both.transformer.h[1].output[0].shape)
        assert shape == seen[theirs.block(1)].shape

    def test_when_parameters_of_it_change(self, model: LanguageModel, theirs: Theirs) -> None:
        torch.manual_seed(0)
        adapter = nn.Linear(WIDTH, WIDTH).double()
        model.transformer.h[1].adapter = adapter
        with model.edit(inplace=True):
            block = model.transformer.h[1]
            block.output[0] = block.output[0] + block.adapter(block.output[0])
        optimiser = torch.optim.SGD(adapter.parameters(), lr=0.1)
        for _ in range(3):
            with model.trace(LONG):
                loss = -model.output[0, -1].log_softmax(-1)[7]
            mine = theirs.forward(LONG, edits={theirs.block(1): lambda h: h + adapter(h)}, grad=True).logits
            assert_close(loss.detach(), -mine[0, -1].log_softmax(-1)[7].detach())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    @pytest.mark.local("weights of the model get no gradients")
    def test_with_the_modes_of_its_lines(self, model: LanguageModel) -> None:
        weight = torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)
        with model.edit(inplace=True):
            with torch.no_grad():
                shift = weight * 2
            model.transformer.h[1].output[0][:] += shift * model.transformer.h[0].output[0].mean()
            with torch.no_grad():
                model.transformer.h[2].output[0] = model.transformer.h[2].output[0] * weight
        with model.trace(LONG):
            logits = model.output
        logits.sum().backward()
        assert weight.grad is None and model.lm_head.weight.grad is not None

    def test_when_a_module_is_skipped(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit(inplace=True):
            model.transformer.h[2].skip((model.transformer.h[2].input,))
        with model.trace(LONG):
            logits = model.output
        inputs = theirs.forward(LONG, read=[theirs.block(1)])[theirs.block(1)]
        assert_close(logits, theirs.forward(LONG, edits={theirs.block(2): lambda h: inputs}).logits)

    def test_random_numbers_are_drawn_when_the_trace_runs(self, model: LanguageModel) -> None:
        with model.edit(inplace=True):
            model.transformer.h[1].output[0][:] += torch.randn_like(model.transformer.h[1].output[0])
        outs = []
        for _ in range(2):
            with model.trace(LONG):
                outs.append(model.output)
        assert not torch.equal(*outs)


class TestWhoIsEdited:
    def test_the_copy_and_not_the_model(self, model: LanguageModel, theirs: Theirs) -> None:
        both = edited(model)
        assert_close(model(LONG).detach(), theirs.forward(LONG).logits)
        assert both._model is model._model, "the weights are shared"
        both.clear_edits()
        assert_close(both(LONG).detach(), theirs.forward(LONG).logits)

    def test_the_weights_are_shared_whoever_reads_them_first(self) -> None:
        model = LanguageModel(speaking.folder("gpt2", 4))
        both = edited(model)
        assert model._native is None and both._native is None, "an edit reads no weights"
        assert both.half() is both and model.dtype == both.dtype == torch.float16
        assert both.lm_head.weight is model.lm_head.weight

    def test_a_copy_of_a_model_has_its_own_edits(self, model: LanguageModel) -> None:
        other = copy.copy(model)
        with other.edit(inplace=True):
            other.transformer.h[1].mlp.output[:] = 0
        assert len(other.edits) == 1 and not model.edits

    def test_in_place_binds_the_tracer_and_else_the_model(self, model: LanguageModel) -> None:
        with model.edit(inplace=True) as tracer:
            assert tracer is model.tracer
        with model.edit() as other:
            assert isinstance(other, LanguageModel) and other is not model

    def test_in_nnsights_form_it_binds_both(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit() as (tracer, other):
            assert tracer is other.tracer and other is not model
            for _ in tracer.iter[:]:
                other.transformer.h[1].mlp.output[:] *= 0.5
        with other.trace(SHORT):
            logits = other.output
        assert_close(logits, theirs.forward(SHORT, edits={theirs.block(1, "mlp.output"): halved}).logits)
        for one in (model, other):
            with pytest.raises(TypeError, match="one module, not a list"):
                iter(one)

    def test_a_body_that_fails_leaves_the_model_as_it_was(self, model: LanguageModel) -> None:
        with pytest.raises(ZeroDivisionError), model.edit(inplace=True):
            model.transformer.h[1].mlp.output[:] = 0
            _ = 1 / 0
        assert not model.edits
        with pytest.raises(TraceError, match="inside a trace only"):
            _ = model.transformer.h[1].output
