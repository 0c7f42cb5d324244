"""An analysis has its model to itself, as a trace has."""

import inspect
from contextlib import AbstractContextManager

import pytest
import torch

from nnzoo import LanguageModel, analysis

PAIR = ("The capital of Italy is", "The capital of France is")
TOKEN = " Paris"
WORK = {
    "ablate": lambda model: analysis.ablate(model, PAIR[0], TOKEN),
    "ablated": lambda model: analysis.ablated(model, mlps=[1], mode="mean", reference=PAIR[1]),
    "attention_patterns": lambda model: analysis.attention_patterns(model, PAIR[0]),
    "attribute_edges": lambda model: analysis.attribute_edges(model, *PAIR, TOKEN),
    "attribute_logits": lambda model: analysis.attribute_logits(model, PAIR[0], TOKEN),
    "attribute_patches": lambda model: analysis.attribute_patches(model, *PAIR, TOKEN),
    "causal_trace": lambda model: analysis.causal_trace(model, PAIR[0], "Italy", samples=1),
    "detect_heads": lambda model: analysis.detect_heads(model, PAIR[0], "induction"),
    "feature_activations": lambda model: analysis.feature_activations(model, PAIR[0], sae()),
    "generation_steps": lambda model: analysis.generation_steps(model, PAIR[0], max_new_tokens=1),
    "induction_scores": lambda model: analysis.induction_scores(model),
    "integrated_gradients": lambda model: analysis.integrated_gradients(model, PAIR[0], TOKEN, steps=2),
    "logit_lens": lambda model: analysis.logit_lens(model, PAIR[0]),
    "patch_activations": lambda model: analysis.patch_activations(model, *PAIR, TOKEN),
    "patch_paths": lambda model: analysis.patch_paths(model, *PAIR, TOKEN),
    "probe_layers": lambda model: analysis.probe_layers(model, [*PAIR, *PAIR], [0, 1, 0, 1]),
    "spliced": lambda model: analysis.spliced(model, sae()),
    "steering_vector": lambda model: analysis.steering_vector(model, *PAIR, layer=1),
    "token_losses": lambda model: analysis.token_losses(model, PAIR[0]),
    "train_tuned_lens": lambda model: analysis.train_tuned_lens(model, PAIR[0], steps=1),
}
READS_WEIGHTS = {
    "composition_scores", "copying_scores", "full_ov_circuit", "full_qk_circuit", "ov_circuit", "qk_circuit",
    "repeated_tokens",
}  # fmt: skip


def sae():
    place, width = "blocks.1.hook_resid_pre", analysis_model().config.d_model
    config = analysis.SAEConfig("standard", width, 8, width, place, place, True, "none", False)
    shapes = {"W_enc": (width, 8), "b_enc": (8,), "W_dec": (8, width), "b_dec": (width,)}
    return analysis.SAE(config, {name: torch.rand(shape) for name, shape in shapes.items()})


class Lock:
    """Says whether it is held."""

    held = 0

    def __enter__(self):
        self.held += 1

    def __exit__(self, *error):
        self.held -= 1


def analysis_model():
    return LanguageModel("nnzoo/tiny-gpt2")


def test_every_analysis_is_here():
    functions = {name for name in analysis.__all__ if inspect.isfunction(getattr(analysis, name))}
    of_models = {name for name in functions if "model" in inspect.signature(getattr(analysis, name)).parameters}
    assert of_models == WORK.keys() | READS_WEIGHTS


@pytest.mark.parametrize("name", WORK)
def test_an_analysis_holds_the_lock_of_its_model_while_it_runs(name, monkeypatch):
    model, held, holding = analysis_model(), [], Lock()
    monkeypatch.setattr(model, "lock", holding)
    model._model.blocks[1].register_forward_pre_hook(lambda module, args: held.append(holding.held))
    found = WORK[name](model)
    if isinstance(found, AbstractContextManager):
        with found:
            model._model(PAIR[0])
    assert held and all(held)
    assert not holding.held


def test_a_steering_vector_holds_the_lock_while_it_is_added():
    model = analysis_model()
    vector = analysis.steering_vector(model, *PAIR, layer=1)
    model.lock = holding = Lock()
    with vector.added(model):
        assert holding.held
    assert not holding.held
