"""A LanguageModel goes to other processes, and is copied, with all that its user did to it."""

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnzoo import LanguageModel
from nnzoo.architectures.hooks import HookPoint
from nnzoo.weights.hub import Access

pytestmark = pytest.mark.local("a model of this process is pickled")

TEXT = "The capital of France is"
D_MODEL = LanguageModel("nnzoo/tiny-gpt2").config.d_model


class Probe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.ones(D_MODEL, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.direction


def pickled(model: LanguageModel) -> LanguageModel:
    return pickle.loads(pickle.dumps(model))


def changed() -> LanguageModel:
    """A model with settings, weights, a module and edits of its user's."""
    model = LanguageModel("nnzoo/tiny-gpt2", dtype=torch.float64, rename={"transformer.h": "layers"})
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.transformer.h[0].probe = Probe()
    with model.edit(inplace=True):
        hidden = model.layers[0].output[0]
        for _ in range(300):  # a chain that is longer than Python's stack
            hidden = hidden * 1.0001
        hidden = model.transformer.h[0].probe(hidden, hook=True)
        model.transformer.h[0].output[0][:, hidden.shape[1] // 2 :] += model.transformer.ln_f(hidden).mean()
        model.transformer.h[1].output[0][:] += model._model.W_U[:, 3].detach()
    return model


def steered_logits(model: LanguageModel) -> Tensor:
    with model.trace(TEXT):
        model.layers[1].output[0][:] *= 1.5
        logits = model.output.save()
    return logits.detach()


def test_another_process_traces_a_model_and_gives_the_same_values():
    model = changed()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(steered_logits, [model]), steered_logits(model))


@pytest.mark.parametrize("dispatch", [False, True])
def test_a_pickle_holds_the_settings_and_weights_that_were_read(dispatch: bool):
    model = LanguageModel(
        "nnzoo/tiny-llama", dtype=torch.bfloat16, device="cpu", block_output="tensor", dispatch=dispatch,
        tokenizer_kwargs={"pad_token": "<pad>"},
    )  # fmt: skip
    data = pickle.dumps(model)
    assert (len(data) > 100_000) == dispatch
    new = pickle.loads(data)
    assert (new.dispatched, new.dtype, new.repo_id) == (dispatch, torch.bfloat16, "nnzoo/tiny-llama")
    assert new.tokenizer.pad_token == "<pad>"
    with new.trace(TEXT):
        hidden = new.model.layers[1].output.save()
    with model.trace(TEXT):
        expected = model.model.layers[1].output.save()
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize("again", [pickled, copy.deepcopy])
def test_a_new_model_has_edits_and_modules_of_its_own(again: Callable[[LanguageModel], LanguageModel]):
    model = changed()
    new, before = again(model), model(TEXT)
    assert torch.equal(new(TEXT), before)
    with torch.no_grad():
        new.transformer.ln_f.bias += 1  # of the model, and of the module that the edit calls
        new.transformer.h[0].probe.direction.mul_(2)
    assert torch.equal(model(TEXT), before)
    with torch.no_grad():
        model.transformer.ln_f.bias += 1
        model.transformer.h[0].probe.direction.mul_(2)
    assert torch.equal(model(TEXT), new(TEXT)) and not torch.equal(model(TEXT), before)
    new.clear_edits()
    assert model.edits


@pytest.mark.parametrize("again", [pickled, copy.deepcopy])
def test_edits_that_use_a_part_of_a_weight_go_along(again: Callable[[LanguageModel], LanguageModel]):
    model = LanguageModel("nnzoo/tiny-gpt2")
    with model.edit(inplace=True):
        model.transformer.h[1].output[0][:] += model._model.W_U[:, 3]
    assert torch.equal(again(model)(TEXT), model(TEXT))


def test_a_model_is_pickled_inside_its_trace_and_a_module_of_it_with_it():
    model = LanguageModel("nnzoo/tiny-gpt2")
    with model.trace(TEXT):
        new, block = pickle.loads(pickle.dumps((model, model.transformer.h[1])))
        model.transformer.h[1].mlp.output[:] = 0
    assert block == new.transformer.h[1] and torch.equal(new(TEXT), model(TEXT))


def test_copies_share_the_weights_and_take_turns():
    model = LanguageModel("nnzoo/tiny-gpt2")
    other = copy.copy(model)
    assert other._model is model._model and other.lock is model.lock


def no_stream(value: Tensor, hook: HookPoint) -> Tensor:
    return torch.zeros_like(value)


def test_hooks_of_the_native_model_go_along():
    model = LanguageModel("nnzoo/tiny-gpt2")
    plain = model(TEXT)
    model._model.add_hook("blocks.1.hook_resid_post", no_stream)
    again = pickled(model)
    assert torch.equal(again(TEXT), model(TEXT)) and not torch.equal(plain, model(TEXT))
    again._model.reset_hooks()
    assert torch.equal(again(TEXT), plain)


def test_weights_are_read_from_the_folder_that_was_named_wherever_that_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    LanguageModel("nnzoo/tiny-gpt2").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    model, stored = LanguageModel("model"), pickle.dumps(LanguageModel("model"))
    monkeypatch.chdir("/")
    assert model.repo_id == "model"
    assert torch.equal(model(TEXT), pickle.loads(stored)(TEXT))


def test_a_pickle_holds_no_secret():
    model = LanguageModel("nnzoo/tiny-gpt2")
    object.__setattr__(model._checkpoint, "access", Access(token="hf_secret", revision="main"))
    new = pickled(model)
    assert new._checkpoint.access == Access(revision="main") and model._checkpoint.access.token == "hf_secret"
