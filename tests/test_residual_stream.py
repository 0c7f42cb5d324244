"""The residual stream taken apart: parts sum to the whole, and attributions to the logits."""

import pytest
import torch

from nnzoo.architectures.activation_cache import ActivationCache
from small_models import BATCH, FAMILIES, POS, difference, prompts, small

RMS = {"gpt2": 1e-10, "llama": 1e-5, "mistral": 1e-5}  # statistics of an RMSNorm are float32, whatever the model


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_components_sum_to_the_stream(family):
    model = small(family)
    _, cache = model.run_with_cache(prompts())
    for layer, mlp_input, stream in (
        (None, False, cache["resid_post", -1]),
        (1, False, cache["resid_pre", 1]),
        (1, True, cache["resid_mid", 1]),
        (0, True, cache["resid_mid", 0]),
    ):
        parts = {
            "sublayers": cache.decompose_resid(layer, mlp_input),
            "neurons": cache.get_full_resid_decomposition(layer, mlp_input),
            "heads": cache.get_full_resid_decomposition(layer, mlp_input, expand_neurons=False),
        }
        for what, stack in parts.items():
            assert difference(stack.sum(dim=0), stream) < 1e-10, (what, layer, mlp_input)


def test_attributions_sum_to_the_logits_of_a_raw_model(family):
    model, tokens = small(family), prompts()
    logits, cache = model.run_with_cache(tokens)
    bias = model.b_U if family != "gpt2" else model.b_U + model.ln_final.bias @ model.W_U
    right, wrong = tokens.roll(-1, dims=1), tokens
    for stack in (cache.decompose_resid(), cache.get_full_resid_decomposition()):
        attributed = cache.logit_attrs(stack, right, wrong).sum(dim=0)
        expected = (logits - bias).gather(-1, right[..., None]) - (logits - bias).gather(-1, wrong[..., None])
        assert difference(attributed, expected[..., 0]) < RMS[family]


@pytest.mark.parametrize("positions", [-1, (1, 4), [0, 2], None])
@pytest.mark.parametrize("prompt", [None, 1, [0, 2]])
def test_attributions_of_some_positions_and_prompts_are_those_parts_of_all(positions, prompt):
    _, cache = small("gpt2").run_with_cache(prompts())
    all_of_them = cache.logit_attrs(cache.decompose_resid(), 5)  # [component batch pos]
    some = cache.logit_attrs(cache.decompose_resid(pos_slice=positions), 5, pos_slice=positions, batch_slice=prompt)
    expected = all_of_them[:, slice(None) if prompt is None else prompt]
    expected = expected[
        ..., slice(*positions) if isinstance(positions, tuple) else slice(None) if positions is None else positions
    ]
    torch.testing.assert_close(some, expected)


def test_a_token_for_each_prompt_is_not_one_for_each_position():
    model = small("gpt2")
    _, cache = model.run_with_cache(prompts(batch=POS))  # as many prompts as positions: shapes cannot tell
    stack, answers = cache.decompose_resid(), torch.arange(POS)
    each = torch.stack([cache.logit_attrs(stack, int(answer))[:, i] for i, answer in enumerate(answers)], dim=1)
    torch.testing.assert_close(cache.logit_attrs(stack, answers), each)


def test_attributions_without_a_batch_axis(family):
    model, tokens = small(family), prompts(batch=1)
    _, cache = model.run_with_cache(tokens)
    batched = cache.logit_attrs(cache.decompose_resid(), 5)
    cache.remove_batch_dim()
    torch.testing.assert_close(cache.logit_attrs(cache.decompose_resid(), 5), batched[:, 0])
    torch.testing.assert_close(cache.get_full_resid_decomposition().sum(dim=0), cache["resid_post", -1])


def test_logit_attrs_refuses_what_does_not_fit():
    _, cache = small("gpt2").run_with_cache(prompts())
    whole, last = cache.decompose_resid(), cache.decompose_resid(pos_slice=-1)
    with pytest.raises(ValueError, match="hook_scale with this pos_slice"):
        cache.logit_attrs(whole, 5, pos_slice=-1)
    with pytest.raises(ValueError, match="hook_scale with this pos_slice"):
        cache.logit_attrs(last, 5)
    with pytest.raises(ValueError, match=r"the stack has .* \[3, 7\], but tokens \[2, 1\]"):
        cache.logit_attrs(whole, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="different shapes"):
        cache.logit_attrs(whole, torch.tensor([1, 2, 3]), 4)


def test_the_last_row_of_a_logit_lens_is_the_logits(family):
    model = small(family)
    logits, cache = model.run_with_cache(prompts())
    rows, labels = cache.accumulated_resid(apply_ln=True, incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    assert difference(model.unembed(rows[-1]), logits) < 1e-6
    middle = model.ln_final.fused(cache["resid_mid", 0])
    torch.testing.assert_close(rows[1], middle)


def test_rows_before_the_end_are_normed_with_the_scale_of_the_norm_there(family):
    model = small(family)
    _, cache = model.run_with_cache(prompts())
    rows = cache.accumulated_resid(1, apply_ln=True, mlp_input=True)
    assert len(rows) == 3
    bias = model.blocks[1].ln2.bias if family == "gpt2" else 0
    assert difference(rows[-1] + bias, cache["out", 1, "ln2"]) < RMS[family]


def test_heads_and_the_remainder_sum_to_the_stream(family):
    _, cache = small(family).run_with_cache(prompts())
    heads, labels = cache.stack_head_results(incl_remainder=True, return_labels=True)
    assert labels == [f"L{layer}H{head}" for layer in range(2) for head in range(4)] + ["remainder"]
    assert difference(heads.sum(dim=0), cache["resid_post", -1]) < 1e-10


def test_head_results_are_those_that_the_model_computes(family):
    model, tokens = small(family), prompts()
    _, cache = model.run_with_cache(tokens)
    _, full = model.run_with_cache(tokens, names_filter="*hook_result")
    stacked = cache.stack_head_results()
    assert "blocks.0.attn.hook_result" not in cache
    cache.compute_head_results()
    for layer in range(2):
        assert difference(cache["result", layer], full["result", layer]) < 1e-10
        assert difference(stacked[4 * layer + 1], full["result", layer][:, :, 1]) < 1e-10


def test_neurons_and_their_biases_are_what_the_mlp_writes(family):
    model = small(family)
    _, cache = model.run_with_cache(prompts())
    neurons, labels = cache.stack_neuron_results(-1, return_labels=True)
    assert labels[:2] + labels[-1:] == ["L0N0", "L0N1", "L1N27"]
    for layer in range(2):
        written = neurons[28 * layer : 28 * (layer + 1)].sum(dim=0) + model.blocks[layer].mlp.b_out
        assert difference(written, cache["mlp_out", layer]) < 1e-10
    one = cache.stack_neuron_results(-1, neuron_slice=3, pos_slice=-1)
    torch.testing.assert_close(one, neurons[[3, 31], :, -1])
    torch.testing.assert_close(cache.get_neuron_results(1, neuron_slice=3), neurons[31])


def test_components_are_normed_as_the_stream_is(family):
    _, cache = small(family).run_with_cache(prompts())
    for layer, mlp_input in ((None, False), (1, False), (1, True)):
        raw = cache.get_full_resid_decomposition(layer, mlp_input)
        normed = cache.get_full_resid_decomposition(layer, mlp_input, apply_ln=True)
        torch.testing.assert_close(normed, cache.apply_ln_to_stack(raw, layer, mlp_input))
    stream = cache.apply_ln_to_stack(cache["resid_post", -1][None])[0]
    for stack in (
        cache.decompose_resid(apply_ln=True),
        cache.stack_head_results(apply_ln=True, incl_remainder=True),
        cache.stack_neuron_results(-1, apply_ln=True, incl_remainder=True),
    ):
        assert difference(stack.sum(dim=0), stream) < 1e-10


@pytest.mark.parametrize("onto", [(), (5,)])
@pytest.mark.parametrize("apply_ln", [False, True])
def test_a_projected_decomposition_is_the_decomposition_projected(family, apply_ln, onto):
    _, cache = small(family).run_with_cache(prompts())
    directions = torch.randn(cache["embed"].shape[-1], *onto, dtype=torch.float64)
    for args in ({}, {"mlp_input": True, "layer": 1}, {"expand_neurons": False}):
        whole, labels = cache.get_full_resid_decomposition(**args, apply_ln=apply_ln, return_labels=True)
        assert len(whole) == len(labels)
        part = cache.get_full_resid_decomposition(**args, apply_ln=apply_ln, project_output_onto=directions)
        torch.testing.assert_close(part, whole @ directions)
    neurons = cache.stack_neuron_results(1, apply_ln=apply_ln, incl_remainder=True)
    part = cache.stack_neuron_results(1, apply_ln=apply_ln, incl_remainder=True, project_output_onto=directions)
    torch.testing.assert_close(part, neurons @ directions)


def test_stacks_below_the_first_block_are_empty():
    _, cache = small("gpt2").run_with_cache(prompts())
    assert cache.stack_head_results(0).shape == (0, BATCH, POS, 24)
    assert cache.stack_neuron_results(0, pos_slice=-1).shape == (0, BATCH, 24)
    torch.testing.assert_close(cache.stack_head_results(0, incl_remainder=True)[0], cache["resid_pre", 0])


@pytest.mark.parametrize("layer", [3, -2])
def test_a_layer_that_is_not_there_is_refused(layer):
    _, cache = small("gpt2").run_with_cache(prompts())
    with pytest.raises(ValueError, match=f"layer is 0 to 2 .*, not {layer}"):
        cache.decompose_resid(layer)
    with pytest.raises(ValueError, match="mlp_input needs a block"):
        cache.decompose_resid(mlp_input=True)


def test_stack_activation_stacks_the_blocks(family):
    _, cache = small(family).run_with_cache(prompts())
    torch.testing.assert_close(cache.stack_activation("pattern")[1], cache["pattern", 1])
    assert cache.stack_activation("scale", 1, "ln2").shape == (1, BATCH, POS, 1)


def test_a_cache_can_be_made_of_any_values():
    model = small("gpt2")
    _, cache = model.run_with_cache(prompts())
    doubled = ActivationCache({name: 2 * value for name, value in cache.items()}, model)
    torch.testing.assert_close(doubled.decompose_resid(), 2 * cache.decompose_resid())


def test_nothing_here_hangs_on_the_autograd_graph(family):
    _, cache = small(family).run_with_cache(prompts())
    results = [
        cache.accumulated_resid(apply_ln=True),
        cache.get_full_resid_decomposition(apply_ln=True),
        cache.logit_attrs(cache.stack_head_results(), 5),
        cache.get_neuron_results(0),
    ]
    assert not any(result.requires_grad for result in results)


def test_a_stack_that_requires_grad_is_followed():
    _, cache = small("gpt2").run_with_cache(prompts())
    stack = cache.decompose_resid().requires_grad_()
    cache.logit_attrs(stack, 5).sum().backward()
    assert stack.grad.any()
