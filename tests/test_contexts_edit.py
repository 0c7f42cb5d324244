"""Edits hold in every trace of the edited model, and what cannot be an edit is refused."""

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import speaking
from nnzoo import LanguageModel
from nnzoo.tracing.recorder import TraceError
from reference_values import Theirs
from snippets import assert_close

SHORT, LONG = "Hello world", "The cat sat on the quick brown dog"
N = 4
WIDTH = 48
VECTOR = torch.linspace(-1, 1, WIDTH).double() * 4


def halved(value: Tensor) -> Tensor:
    return value * 0.5


def steered(value: Tensor) -> Tensor:
    return value + VECTOR


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


class Sae(nn.Module):
    """An autoencoder, whose encoder is looked at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(WIDTH, 13).double(), nn.Linear(13, WIDTH).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).relu())


class TestModulesOfOnesOwn:
    @pytest.fixture
    def with_sae(self, model: LanguageModel) -> LanguageModel:
        model.transformer.h[1].sae = Sae()
        with model.edit(inplace=True):
            block = model.transformer.h[1]
            block.output[0][:] = block.sae(block.output[0], hook=True)
        return model

    def features(self, theirs: Theirs, prompt: str) -> Tensor:
        return Sae().encoder(theirs.forward(prompt, read=[theirs.block(1)])[theirs.block(1)]).detach()

    def test_their_values_are_those_of_the_invoke(self, with_sae: LanguageModel, theirs: Theirs) -> None:
        sae = with_sae.transformer.h[1].sae
        with torch.no_grad(), with_sae.trace() as tracer:
            with tracer.invoke(SHORT):
                short, into = sae.encoder.output, sae.input
            with tracer.invoke(LONG):
                long = sae.encoder.output
        assert_close(short, self.features(theirs, SHORT))
        assert_close(long, self.features(theirs, LONG))
        assert into.shape == (1, 2, WIDTH)

    def test_of_several_invokes_there_is_none(self, with_sae: LanguageModel) -> None:
        with pytest.raises(TraceError, match="nor has an edit"), with_sae.trace() as tracer:
            with tracer.invoke(SHORT):
                ...
            with tracer.invoke(LONG):
                ...
            with tracer.invoke():
                _ = with_sae.transformer.h[1].sae.output

    def test_a_call_of_the_body_comes_after_the_edits(self, with_sae: LanguageModel) -> None:
        sae = with_sae.transformer.h[1].sae
        with with_sae.trace(SHORT):
            first = sae.output.clone()
            sae(torch.zeros(1, WIDTH).double() * first.mean(), hook=True)
            second = sae.output
        assert first.shape == (1, 2, WIDTH) and second.shape == (1, WIDTH)

    def test_in_a_cache(self, with_sae: LanguageModel, theirs: Theirs) -> None:
        with torch.no_grad(), with_sae.trace(LONG) as tracer:
            cache = tracer.cache()
            named = tracer.cache(modules=["transformer.h.1.sae.encoder"], include_inputs=True)
        expected = self.features(theirs, LONG)
        assert_close(cache["model.transformer.h.1.sae.encoder"].output, expected)
        assert_close(named.transformer.h[1].sae.encoder.output, expected)
        assert named.transformer.h[1].sae.encoder.input.shape == (1, expected.shape[1], WIDTH)

    def test_at_every_step(self, model: LanguageModel, theirs: Theirs) -> None:
        model.transformer.h[1].sae = Sae()
        with model.edit(inplace=True) as tracer:
            for _ in tracer.all():
                block = model.transformer.h[1]
                block.sae(block.output[0], hook=True)
        ours = []
        with torch.no_grad(), model.generate(LONG, max_new_tokens=N) as tracer:
            first = model.transformer.h[1].sae.encoder.output
            for _ in tracer.iter[:]:
                ours.append(model.transformer.h[1].sae.encoder.output)
            cache = tracer.cache()
        streams = theirs.generate(LONG, N, read=[theirs.block(1)])[1][theirs.block(1)]
        assert first.shape == ours[0].shape and len(ours) == N
        for mine, cached, stream in zip(ours, cache.transformer.h[1].sae.encoder.output, streams, strict=True):
            assert_close(mine, Sae().encoder(stream).detach())
            assert_close(cached, Sae().encoder(stream).detach())


def open_for(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += VECTOR


def open_with(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[:]:
        model.transformer.h[1].output[0][:] += VECTOR


def all_with(model: LanguageModel, tracer: Any) -> None:
    with tracer.all():
        model.transformer.h[1].output[0] = model.transformer.h[1].output[0] + VECTOR


def later_for(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[1:]:
        model.transformer.h[1].output[0][:] += VECTOR


def counted_for(model: LanguageModel, tracer: Any) -> None:
    for step in tracer.iter[1:3]:
        assert step in (1, 2)
        model.transformer.h[1].output[0][:] += VECTOR


def counted_with(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[1:3]:
        model.transformer.h[1].output[0][:] += VECTOR


def listed_with(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[[0, 3]]:
        model.transformer.h[1].output[0][:] += VECTOR


def strided_for(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[0::2]:
        model.transformer.h[1].output[0][:] += VECTOR


def one_for(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[2]:
        model.transformer.h[1].output[0][:] += VECTOR


def moved_on(model: LanguageModel, tracer: Any) -> None:
    tracer.next()
    model.transformer.h[1].output[0][:] += VECTOR


def module_moved_on(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[:2]:
        stream = model.transformer.h[1].next().output[0]
        stream[:] = stream + VECTOR


LOOPS: list[tuple[Callable, list[int]]] = [
    (open_for, [0, 1, 2, 3]),
    (open_with, [0, 1, 2, 3]),
    (all_with, [0, 1, 2, 3]),
    (later_for, [1, 2, 3]),
    (counted_for, [1, 2]),
    (counted_with, [1, 2]),
    (listed_with, [0, 3]),
    (strided_for, [0, 2]),
    (one_for, [2]),
    (moved_on, [1]),
    (module_moved_on, [1, 2]),
]


class TestSteps:
    @pytest.mark.parametrize(("loop", "steps"), LOOPS)
    @pytest.mark.parametrize("kind", ["a generation", "in an invoke", "at once"])
    def test_it_holds_at_the_steps_that_are_named(
        self, model: LanguageModel, theirs: Theirs, loop: Callable, steps: list[int], kind: str
    ) -> None:
        with model.edit(inplace=True) as tracer:
            loop(model, tracer)
        expected, seen = theirs.generate(LONG, N, edits={theirs.block(1): steered}, steps=steps, read=[theirs.block(3)])
        if kind == "at once":
            ids = model.generate(LONG, max_new_tokens=N)
        elif kind == "in an invoke":
            with model.trace() as tracer:
                with tracer.invoke(LONG):
                    ids = model.generate(max_new_tokens=N)
        else:
            streams = []
            with model.generate(LONG, max_new_tokens=N) as tracer:
                ids = tracer.result
                for _ in tracer.iter[:]:
                    streams.append(model.transformer.h[3].output[0])
            for mine, stream in zip(streams, seen[theirs.block(3)], strict=True):
                assert_close(mine, stream)
        assert torch.equal(ids, expected)

    def test_a_pass_has_the_first_step_only(self, model: LanguageModel, theirs: Theirs) -> None:
        for loop, steps in LOOPS:
            model.clear_edits()
            with model.edit(inplace=True) as tracer:
                loop(model, tracer)
            edits = {theirs.block(1): steered} if 0 in steps else {}
            assert_close(model(LONG).detach(), theirs.forward(LONG, edits=edits).logits)

    def test_values_of_the_first_pass_go_into_later_steps(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit(inplace=True) as tracer:
            last = model.transformer.h[2].output[0][:, -1:] * 0.5
            for _ in tracer.iter[1:]:
                model.transformer.h[1].output[0][:] += last
        place = theirs.block(2)
        shift = theirs.forward(LONG, read=[place])[place][:, -1:] * 0.5
        edits = {theirs.block(1): lambda h: h + shift}
        expected, seen = theirs.generate(LONG, N, edits=edits, steps=[1, 2, 3], read=[place])
        with model.generate(LONG, max_new_tokens=N) as tracer:
            cache = tracer.cache(modules=["transformer.h.2"])
        for (mine,), stream in zip(cache.transformer.h[2].output, seen[place], strict=True):
            assert_close(mine, stream)
        assert torch.equal(self.in_an_invoke(model), expected)

    @staticmethod
    def in_an_invoke(model: LanguageModel) -> Tensor:
        with model.trace() as tracer:
            with tracer.invoke(LONG):
                ids = model.generate(max_new_tokens=N)
        return ids

    def test_a_text_that_ends_drops_the_steps_after(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit(inplace=True) as tracer:
            open_for(model, tracer)
        ids = model.generate(LONG, max_new_tokens=N)
        end = int(ids[0, -3])
        with model.generate(LONG, max_new_tokens=N, eos_token_id=end, pad_token_id=0) as tracer:
            ended = tracer.result
            cache = tracer.cache(modules=["transformer.h.1"])
        n = int((ids[0, -N:] == end).nonzero()[0]) + 1
        assert torch.equal(ended[0], ids[0, : ids.shape[1] - N + n])
        assert len(cache["model.transformer.h.1"]) == n

    @pytest.mark.parametrize("steps", [-1, slice(-2, None), slice(0, -1), [0, -1]])
    def test_steps_from_the_end_are_refused(self, model: LanguageModel, steps: Any) -> None:
        with pytest.raises(TraceError, match="counts steps from the first"), model.edit(inplace=True) as tracer:
            for _ in tracer.iter[steps]:
                ...

    def test_what_an_open_loop_cannot_be_is_refused(self, model: LanguageModel) -> None:
        for body, complaint in (
            (number_used, "step's number is not known"),
            (number_compared, "step's number is not known"),
            (carried, "does not do the same in each round"),
            (accumulated, "used outside of the loop"),
            (carried_in_part, "does not do the same in each round"),
            (drawn, "does not do the same in each round"),
            (nested, "inside another one's body"),
            (left_by_break, "left by a break"),
            (used_outside, "used outside of the loop"),
        ):
            with pytest.raises(TraceError, match=complaint), model.edit(inplace=True) as tracer:
                body(model, tracer)
            assert not model.edits, body.__name__


def number_used(model: LanguageModel, tracer: Any) -> None:
    for step in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += [VECTOR, VECTOR][step]


def number_compared(model: LanguageModel, tracer: Any) -> None:
    for step in tracer.iter[:]:
        if step == 3:
            model.transformer.h[1].output[0][:] += VECTOR


def carried(model: LanguageModel, tracer: Any) -> None:
    before = None
    for _ in tracer.iter[:]:
        if before is not None:
            model.transformer.h[1].output[0][:] += before
        before = model.transformer.h[1].output[0].clone()


def carried_in_part(model: LanguageModel, tracer: Any) -> None:
    before = model.transformer.h[0].output[0]
    for _ in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += before[:, -1:]
        before = model.transformer.h[0].output[0]


def accumulated(model: LanguageModel, tracer: Any) -> None:
    kept = []
    for _ in tracer.iter[:]:
        kept.append(model.transformer.h[1].output[0])
    model.transformer.h[2].output[0][:] = sum(kept)


def drawn(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += torch.randn(WIDTH).double()


def nested(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[:]:
        for _ in tracer.iter[1:2]:
            ...


def left_by_break(model: LanguageModel, tracer: Any) -> None:
    for _ in tracer.iter[:]:
        model.transformer.h[1].output[0][:] += VECTOR
        break


def used_outside(model: LanguageModel, tracer: Any) -> None:
    with tracer.iter[1:]:
        value = model.transformer.h[1].output[0].mean()
    model.transformer.h[2].output[0][:] += value


class TestWhatAnEditCannotDo:
    @pytest.fixture(
        params=[
            (lambda model, tracer, h: float(h.norm()), "a look at a value is not possible inside an edit"),
            (lambda model, tracer, h: bool(h.mean() > 0), "a look"),
            (lambda model, tracer, h: str(h), "a look"),
            (lambda model, tracer, h: h[h > 0], "a look"),
            (lambda model, tracer, h: h.sum().backward(), "backward is not possible inside an edit"),
            (lambda model, tracer, h: h.grad, "grad is not possible"),
            (lambda model, tracer, h: tracer.invoke(SHORT), "an invoke in an edit"),
            (lambda model, tracer, h: model.generate(max_new_tokens=2), r"generate\(\) in an edit"),
            (lambda model, tracer, h: tracer.ids, "generated ids in an edit"),
            (lambda model, tracer, h: tracer.cache(), "a cache in an edit"),
            (lambda model, tracer, h: tracer.stop(), r"stop\(\) in an edit"),
            (lambda model, tracer, h: model.edit().__enter__(), "an edit inside a trace"),
            (lambda model, tracer, h: model.clear_edits(), "inside a trace"),
        ]
    )
    def case(self, request: pytest.FixtureRequest) -> Any:
        return request.param

    def test_is_refused(self, model: LanguageModel, case: Any) -> None:
        body, complaint = case
        with pytest.raises(TraceError, match=complaint), model.edit(inplace=True) as tracer:
            body(model, tracer, model.transformer.h[1].output[0])
        assert not model.edits

    def test_a_mask_is_no_look(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit(inplace=True):
            stream = model.transformer.h[1].output[0]
            stream[stream < 0] = 0
        assert_close(model(LONG).detach(), theirs.forward(LONG, edits={theirs.block(1): torch.relu}).logits)

    def test_its_values_are_values_of_later_traces(self, model: LanguageModel) -> None:
        with model.edit(inplace=True):
            kept = model.transformer.h[1].output[0].save() * 2
        with pytest.raises(TraceError, match="an edit, which computes nothing"):
            _ = kept + 1
        assert repr(kept).startswith("LazyTensor(")
        with pytest.raises(TraceError, match="an edit, which computes nothing"), model.trace(SHORT):
            model.transformer.h[2].output[0][:] += kept

    def test_an_error_of_the_run_names_the_line_of_the_edit(self, model: LanguageModel) -> None:
        index = torch.tensor([99])
        with model.edit(inplace=True):
            model.transformer.h[1].output[0][:] += model.transformer.h[0].output[0][:, :, index]
            line = sys._getframe().f_lineno - 1
        with pytest.raises(IndexError) as caught, model.trace(SHORT):
            _ = model.output.save()
        notes = getattr(caught.value, "__notes__", [f"{__file__}:{line}"])
        assert any(f"{__file__}:{line}" in note for note in notes)

    def test_an_error_in_a_trace_names_the_line_of_the_edit(self, model: LanguageModel) -> None:
        with model.edit(inplace=True):
            model.transformer.h[1].output[0][:, 4] = 0  # a prompt of two tokens has none
        with pytest.raises(IndexError) as caught, model.trace(SHORT):
            _ = model.output
        notes = getattr(caught.value, "__notes__", ["edit of the model, recorded at test_contexts_edit.py"])
        assert any("edit of the model, recorded at" in note and __file__.split("/")[-1] in note for note in notes)
        with pytest.raises(TraceError, match="inside a trace only"):
            _ = model.output
