"""Edits that call modules of the user's own: a trace reads what these give, and changes it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import speaking
from first_edits import LONG, SHORT, WIDTH, N
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

    @pytest.mark.parametrize("change", ["assign", "in place", "times", "replace"])
    def test_an_edit_goes_on_with_what_the_body_makes_of_their_values(
        self, with_sae: LanguageModel, theirs: Theirs, change: str
    ) -> None:
        sae, logits = with_sae.transformer.h[1].sae, {}
        with torch.no_grad(), with_sae.trace() as tracer:
            for prompt in (SHORT, LONG):
                with tracer.invoke(prompt):
                    late = with_sae.transformer.h[2].output[0]  # of a layer above, asked for before
                    features = sae.encoder.output
                    before = features.clone()
                    if features.abs().max() > 0:  # a look below what the edit sets
                        self.change(sae, change)
                    logits[prompt] = with_sae.output
                    stream = with_sae.transformer.h[1].output[0]
        for prompt in (SHORT, LONG):
            seen = theirs.forward(prompt, read=[theirs.block(2), theirs.block(1)], edits={theirs.block(1): self.halved})
            assert_close(logits[prompt], seen.logits)
        assert_close(late, seen[theirs.block(2)])
        assert_close(stream, seen[theirs.block(1)])
        assert_close(before, self.features(theirs, LONG))

    @staticmethod
    def change(sae: Any, change: str) -> None:
        if change == "assign":
            sae.encoder.output[..., :5] = sae.encoder.output[..., :5] * 0.5
        elif change == "in place":
            sae.encoder.output[..., :5].mul_(0.5)
        elif change == "times":
            mask = torch.ones(13).double()
            mask[:5] = 0.5
            sae.encoder.output *= mask
        else:
            old = sae.encoder.output
            sae.encoder.output = torch.cat([old[..., :5] * 0.5, old[..., 5:]], -1)

    @staticmethod
    def halved(stream: Tensor) -> Tensor:
        sae = Sae()
        features = sae.encoder(stream).detach()
        features[..., :5] *= 0.5
        return sae.decoder(features.relu()).detach()

    def test_of_several_edits_at_every_step_in_any_order(self, model: LanguageModel, theirs: Theirs) -> None:
        for layer in (1, 2):
            model.transformer.h[layer].sae = Sae()
            with model.edit(inplace=True) as tracer:
                for _ in tracer.iter[:]:
                    block = model.transformer.h[layer]
                    block.output[0][:] = block.sae(block.output[0], hook=True)
        with torch.no_grad(), model.generate(LONG, max_new_tokens=N) as tracer:
            streams = []
            for _ in tracer.iter[:]:
                for layer in (2, 1):
                    model.transformer.h[layer].sae.encoder.output[..., :5] *= 0.5
                streams.append(model.transformer.h[1].output[0])
            ids = tracer.result
        edits = {theirs.block(layer): self.halved for layer in (1, 2)}
        expected, seen = theirs.generate(LONG, N, read=[theirs.block(1)], edits=edits, steps=range(N))
        assert torch.equal(ids, expected)
        for mine, stream in zip(streams, seen[theirs.block(1)], strict=True):
            assert_close(mine, stream)

    def test_in_the_traces_of_a_session(self, with_sae: LanguageModel, theirs: Theirs) -> None:
        sae = with_sae.transformer.h[1].sae
        with torch.no_grad(), with_sae.session():
            with with_sae.trace(SHORT):
                first = sae.encoder.output[0, -1]
            with with_sae.trace(LONG):
                features = sae.encoder.output
                features[:, -1] = first
                if features.norm() > 0 and first.norm() > 0:
                    logits = with_sae.output
        expected = self.features(theirs, SHORT)[0, -1]

        def patched(stream: Tensor) -> Tensor:
            features = Sae().encoder(stream).detach()
            features[:, -1] = expected
            return Sae().decoder(features.relu()).detach()

        assert_close(logits, theirs.forward(LONG, edits={theirs.block(1): patched}).logits)

    def test_a_change_that_comes_too_late_or_does_not_fit_says_so(self, with_sae: LanguageModel) -> None:
        sae = with_sae.transformer.h[1].sae
        with pytest.raises(ValueError, match="cannot take its place"), with_sae.trace(SHORT):
            sae.encoder.output = torch.zeros(1, 2, 12).double()
        with pytest.raises(TraceError, match="gone on with this value"), with_sae.trace(SHORT):
            _ = with_sae.transformer.h[1].output[0]
            sae.encoder.output = torch.zeros(1, 2, 13).double()
        with pytest.raises(TraceError, match="gone on with this value"), with_sae.trace(SHORT):
            _ = with_sae.transformer.h[1].output[0]
            sae.encoder.output[:] = 0

    def test_gradients_flow_through_what_was_changed(self, with_sae: LanguageModel, theirs: Theirs) -> None:
        sae = with_sae.transformer.h[1].sae
        with with_sae.trace(LONG):
            features = sae.encoder.output
            features[..., :5] *= 0.5
            loss = with_sae.output[0, -1].square().mean()
            loss.backward()
            gradient = features.grad
        leaf: list[Tensor] = []

        def hook(stream: Tensor) -> Tensor:
            features = sae.encoder._module(stream).clone()
            features[..., :5] *= 0.5
            features.retain_grad()
            leaf.append(features)
            return sae.decoder._module(features.relu())

        logits = theirs.forward(LONG, edits={theirs.block(1): hook}, grad=True).logits
        logits[0, -1].square().mean().backward()
        assert_close(gradient, leaf[0].grad)
