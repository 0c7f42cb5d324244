"""Processed weights: another model with the same predictions."""

import pytest
import torch

from nnzoo.processing import center_unembed, center_writing_weights, fold_ln, fold_value_biases, process_weights
from small_models import FAMILIES, difference, prompts, small
from test_transformer_lens import lens, lens_weights

EXACT = {"gpt2": 1e-10, "llama": 1e-5, "mistral": 1e-5}  # statistics of an RMSNorm are float32, whatever the model
STEPS = [fold_ln, center_writing_weights, center_unembed, fold_value_biases, process_weights]
REFUSED = [(family, "center_writing_weights") for family in ("llama", "mistral")]
CASES = [(family, step) for family in FAMILIES for step in STEPS if (family, step.__name__) not in REFUSED]


def model_of(family, **changes):
    return small(family, **({} if family == "gpt2" else {"attn_bias": True, "mlp_bias": True}), **changes)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("family", "step"), CASES)
def test_predictions_stay(family, step, tied):
    model, tokens = model_of(family, tied=tied), prompts()
    before, after = model(tokens), step(model)(tokens)
    if step in (center_unembed, process_weights):  # all logits of a position may shift alike
        before, after = (x - x.mean(dim=-1, keepdim=True) for x in (before, after))
    assert difference(after, before) < EXACT[family]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("family", "step"), CASES)
def test_the_model_it_was_given_stays(family, step, tied):
    model = model_of(family, tied=tied)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    new = step(model)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    assert {name for name, _ in model.named_parameters()} == set(before)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert model.config.tied == tied
    assert (model.unembed.weight is model.embed.weight) == tied


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_after_folding_is_the_normalized_stream(family):
    model = fold_ln(model_of(family))
    _, cache = model.run_with_cache(prompts())
    for block in (0, 1):
        for norm in ("ln1", "ln2"):
            assert torch.equal(cache["out", block, norm], cache["normalized", block, norm])
    assert torch.equal(cache["ln_final.hook_out"], cache["normalized"])


def test_reading_weights_of_a_layer_norm_are_centred():
    model = fold_ln(model_of("gpt2"))
    for W in (model.W_Q, model.W_K, model.W_V, model.W_in, model.W_U):
        assert W.mean(dim=-2).abs().max() < 1e-10


def test_what_is_written_has_mean_zero():
    model = center_writing_weights(model_of("gpt2"))
    _, cache = model.run_with_cache(prompts())
    stack = torch.cat([cache.get_full_resid_decomposition(), cache.accumulated_resid()])
    values = [cache["mlp_out", 1], cache["attn_out", 1], cache["resid_post", 1], cache["embed"], cache["pos_embed"]]
    assert all(value.mean(dim=-1).abs().max() < 1e-10 for value in (*values, *stack))


@pytest.mark.parametrize("family", FAMILIES)
def test_centred_logits_have_mean_zero(family):
    model = center_unembed(fold_ln(model_of(family)))
    assert model(prompts()).mean(dim=-1).abs().max() < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_values_have_no_bias_and_heads_take_none(family):
    model = fold_value_biases(model_of(family))
    assert not model.b_V.any()
    assert model.b_O.any()


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_writing_weights_of_a_model_with_rms_norm_are_not_centred(family):
    model = model_of(family)
    with pytest.raises(ValueError, match="has RMSNorm, which does not"):
        center_writing_weights(model)
    with pytest.raises(ValueError, match="has RMSNorm, which does not"):
        process_weights(model, center_writing_weights=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_asked_is_a_plain_copy(family):
    model, tokens = model_of(family), prompts()
    off = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    assert torch.equal(process_weights(model, **off)(tokens), model(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_steps_one_by_one_are_all_of_them(family):
    model, tokens = model_of(family), prompts()
    new = model
    for step in STEPS[:-1]:
        new = step(new) if (family, step) in CASES else new
    assert torch.equal(new(tokens), process_weights(model)(tokens))


def test_a_model_of_low_precision_keeps_it_and_is_rounded_once():
    model = small("gpt2", torch.bfloat16)
    new = process_weights(model)
    assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}
    expected = process_weights(small_copy(model)).to(torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))


def small_copy(model):
    wide = small("gpt2", torch.float32)
    wide.load_state_dict(model.state_dict(), strict=False)
    return wide


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_are_not_taken_along_and_the_tokenizer_is(family):
    model, tokens = model_of(family), prompts()
    model.tokenizer = tokenizer = object()
    plain = process_weights(model)(tokens)
    model.add_hook("hook_embed", lambda value, hook: value * 0, is_permanent=True)
    new = process_weights(model)
    assert torch.equal(new(tokens), plain)
    assert new._tokenizer is tokenizer
    assert not model.run_with_cache(tokens)[1]["embed"].any()
    zero = ("hook_embed", lambda value, hook: value * 0)
    assert not torch.equal(new.run_with_hooks(tokens, fwd_hooks=[zero]), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_processed_weights_are_those_of_transformer_lens(family):
    model = model_of(family)
    theirs = lens(model)
    theirs.load_and_process_state_dict(lens_weights(model))
    ours, expected = lens_weights(process_weights(model)), theirs.state_dict()
    norms = {name for name in ours if ".ln" in name or name.startswith("ln")}  # folded, it has none
    for name in set(ours) - norms:
        assert difference_or_zero(ours[name], expected[name]) < 1e-5, name  # its processing is in float32
    for name in norms:
        assert (ours[name] == (1 if name.endswith("w") else 0)).all(), name


def difference_or_zero(ours, theirs):
    return (ours - theirs).abs().max().item() if theirs.abs().max() < 1e-5 else difference(ours, theirs)
