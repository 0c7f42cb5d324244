"""Logits, patterns and gradients are transformers', for every family and every setting of its config."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from families import PLAIN, error, ids, ours, prompt, settings_of, theirs
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.weights import build

PATHS = pytest.mark.parametrize("path", ["fused", "explicit"])
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
HALVES = [*PLAIN, ("gpt2", "act=relu"), ("llama", "attention_bias"), ("llama", "rope=yarn"), ("mistral", "window=null")]
ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def tokens_for(family: str, setting: str, n_pos: int = 40) -> Tensor:
    return prompt(2, n_pos, d_vocab=ours(family, setting).config.d_vocab)


def run(model: HookedModel, tokens: Tensor, path: str = "fused", **kwargs: Tensor) -> Tensor:
    """Logits, with nobody listening or with somebody at every hook point."""
    if path == "fused":
        return model(tokens, **kwargs)
    return model.run_with_cache(tokens, names_filter=lambda name: True, **kwargs)[0]


def logits_of(model: PreTrainedModel, tokens: Tensor, **kwargs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens, **kwargs).logits


@PATHS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@ids(settings_of())
def test_logits_are_those_of_transformers(family, setting, dtype, path):
    tokens = tokens_for(family, setting)
    a = run(ours(family, setting, dtype), tokens, path)
    b = logits_of(theirs(family, setting, dtype), tokens)
    assert a.dtype == b.dtype == dtype
    assert error(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ULP, ids=str)
@ids(HALVES)
def test_half_precision_logits_are_within_ulps_of_transformers(family, setting, dtype):
    tokens = tokens_for(family, setting)
    a = ours(family, setting, dtype)(tokens)
    b = logits_of(theirs(family, setting, dtype), tokens)
    # the tanh GELU is one kernel here and seven rounded operations there; the rest is the same to the bit
    assert error(a, b) <= (4 * ULP[dtype] if (family, setting) == ("gpt2", "default") else 0)


@PATHS
@pytest.mark.parametrize("dtype", ULP, ids=str)
@ids(HALVES)
def test_half_precision_is_as_near_to_the_truth_as_transformers(family, setting, dtype, path):
    tokens = tokens_for(family, setting)
    truth = logits_of(theirs(family, setting), tokens)
    a = run(ours(family, setting, dtype), tokens, path)
    b = logits_of(theirs(family, setting, dtype), tokens)
    assert (a - truth).abs().mean() < 1.25 * (b - truth).abs().mean()


@pytest.mark.parametrize("n_pos", [40, 100])
@PATHS
def test_dynamic_rope_stretches_a_prompt_past_the_trained_length_as_transformers_does(n_pos, path):
    tokens = tokens_for("llama", "rope=dynamic", n_pos)
    a = run(ours("llama", "rope=dynamic"), tokens, path)
    b = logits_of(theirs("llama", "rope=dynamic"), tokens)
    assert error(a, b) < 1e-10


@ids([*PLAIN, ("gpt2", "unscaled_but_by_layer"), ("llama", "n_kv_heads=1"), ("llama", "rope=yarn_attention_factor")])
def test_patterns_are_those_of_transformers(family, setting):
    tokens = tokens_for(family, setting)
    _, cache = ours(family, setting).run_with_cache(tokens, names_filter="blocks.*.attn.hook_pattern")
    with torch.no_grad():
        attentions = theirs(family, setting, attention="eager")(tokens, output_attentions=True).attentions
    for layer, b in enumerate(attentions):
        # LLaMA's eager attention takes its softmax in float32, and the layers below pass that on
        assert error(cache[f"blocks.{layer}.attn.hook_pattern"], b) < (1e-10 if family == "gpt2" else 1e-5)


def gradients(model: torch.nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """d loss / d parameter by name, for a loss that weighs every logit differently."""
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def same_parameter(wanted: Tensor, model: torch.nn.Module) -> str:
    """The name of the parameter that holds the same numbers: no two of the random ones do."""
    same = [name for name, p in model.named_parameters() if p.shape == wanted.shape and torch.equal(p, wanted)]
    assert len(same) == 1
    return same[0]


GRADIENTS = [*PLAIN, ("gpt2", "untied"), ("llama", "attention_bias"), ("llama", "mlp_bias"), ("llama", "tied")]


@PATHS
@ids(GRADIENTS)
def test_gradients_of_parameters_are_those_of_transformers(family, setting, path):
    # RMSNorm's statistics are float32 in every dtype, and its two paths differ in the order of their gradients
    tolerance = 1e-10 if path == "fused" or family == "gpt2" else 1e-6
    tokens, a, b = tokens_for(family, setting), ours(family, setting), theirs(family, setting)
    found, wanted = gradients(a, run(a, tokens, path)), gradients(b, b(tokens).logits)
    assert len(found) == len(wanted)
    for name, parameter in a.named_parameters():
        assert error(found[name], wanted[same_parameter(parameter, b)]) < tolerance, name


def test_a_tied_model_is_built_with_one_matrix():
    for family, setting in (("gpt2", "default"), ("llama", "tied")):
        model = build(ours(family, setting).config)
        assert model.unembed.weight is model.embed.weight
    untied = build(ours("llama", "default").config)
    assert untied.unembed.weight is not untied.embed.weight
