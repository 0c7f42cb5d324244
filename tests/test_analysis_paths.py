"""Path patching, gradients and causal tracing, against single runs with hooks and against finite differences."""

from itertools import product

import pytest
import torch

from nnzoo import LanguageModel, load
from nnzoo.analysis import (
    attribute_edges,
    attribute_patches,
    causal_trace,
    integrated_gradients,
    patch_activations,
    patch_paths,
)
from small_models import FAMILIES, difference, prompts, small

# an RMSNorm's statistics are float32 whatever the model's dtype
TOLERANCE = {"gpt2": 1e-10, "llama": 1e-6, "mistral": 1e-6}
GRADIENTS = {"gpt2": 1e-8, "llama": 1e-5, "mistral": 1e-5}
PROMPT = "The capital of France is"


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def metric(logits):
    return logits[:, -1, 3] - logits[:, -1, 5]


def put(kept, head=None, position=slice(None)):
    """A hook that puts back what a cache holds: all of it, or one head's, or one head's at a position."""

    def hook(value, hook):
        if head is None:
            return kept[hook.name]
        value[:, position, head] = kept[hook.name][:, position, head]
        return value

    return hook


# --- paths ----------------------------------------------------------------------------------------------------------


def by_hooks(model, base, source, sender, receivers, into, through_mlps, position=slice(None)):
    """Wang et al.'s three runs, with hooks alone."""
    _, old = model.run_with_cache(base)
    _, new = model.run_with_cache(source)
    layer, head = sender
    freeze = [("*attn.hook_z", put(old)), (f"blocks.{layer}.attn.hook_z", put(new, head, position))]
    if not through_mlps:
        freeze.append(("*hook_mlp_out", put(old)))
    kept = {}
    with model.hooks(freeze):
        logits, cache = model.run_with_cache(base)
    if receivers is None:
        return metric(logits).mean()
    kept = {name: value for name, value in cache.items() if name.endswith(f"attn.hook_{into}")}
    group = model.config.n_heads // kept[f"blocks.0.attn.hook_{into}"].shape[2]
    hooks = [(f"blocks.{at}.attn.hook_{into}", put(kept, to // group)) for at, to in receivers if at > layer]
    return metric(model.run_with_hooks(base, fwd_hooks=hooks)).mean()


@pytest.mark.parametrize("through_mlps", [True, False])
@pytest.mark.parametrize(
    ("receivers", "into"), [(None, "q"), ([(1, 2)], "q"), ([(2, 1), (1, 3)], "k"), ([(2, 0), (2, 2)], "v")]
)
@torch.no_grad()
def test_a_path_is_three_runs_with_hooks(family, receivers, into, through_mlps):
    model, base, source = small(family, n_layers=3), prompts(), prompts()
    found = patch_paths(
        model, base, source, metric, receivers=receivers, into=into, through_mlps=through_mlps, batch_size=3
    )
    expected = torch.stack([
        torch.stack([by_hooks(model, base, source, (i, h), receivers, into, through_mlps) for h in range(4)])
        for i in range(3)
    ])  # fmt: skip
    assert difference(found.values, expected) < TOLERANCE[family]
    assert found.change.values[0].abs().max() > 1e-3


@pytest.mark.parametrize(("receivers", "into"), [(None, "q"), ([(2, 1), (1, 3), (2, 3)], "k"), ([(2, 0)], "q")])
@torch.no_grad()
def test_a_path_from_one_position_is_three_runs_with_hooks(family, receivers, into):
    model, base, source = small(family, n_layers=3), prompts(), prompts()
    found = patch_paths(model, base, source, metric, receivers=receivers, into=into, by="head pos")
    assert found.shape == {"layer": 3, "head": 4, "pos": 7}
    for layer, head, pos in product(range(3), (0, 3), (0, 3, 6)):
        expected = by_hooks(model, base, source, (layer, head), receivers, into, True, position=pos)
        assert difference(found.values[layer, head, pos], expected) < 10 * TOLERANCE[family]
    assert found.change.values[0].abs().max() > 1e-3


def test_paths_from_the_last_layer_are_its_heads_patched(family):
    model, base, source = small(family), prompts(), prompts()
    direct = patch_paths(model, base, source, (3, 5))
    patched = patch_activations(model, base, source, (3, 5), at="z")
    assert difference(direct.values[-1], patched.values[-1]) < TOLERANCE[family]
    assert difference(direct.values[0], patched.values[0]) > 1e-3


def test_receivers_that_are_not_there_are_refused():
    model, two = small("gpt2"), (prompts(), prompts())
    with pytest.raises(ValueError, match="no head 4 in layer 1: the model has 2 layers of 4 heads"):
        patch_paths(model, *two, 3, receivers=[(1, 4)])
    with pytest.raises(ValueError, match="the list is empty"):
        patch_paths(model, *two, 3, receivers=[])
    with pytest.raises(ValueError, match="into is 'q', 'k' or 'v', not 'z'"):
        patch_paths(model, *two, 3, receivers=[(1, 1)], into="z")
    with pytest.raises(ValueError, match="gone through by 'head' or by 'head pos', not 'pos'"):
        patch_paths(model, *two, 3, by="pos")


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "by"), [("resid_pre", None), ("mlp_out", "pos"), ("z", "head"), ("z", "head pos"), ("pattern", "query head")]
)
def test_for_a_small_change_attribution_is_patching(family, at, by):
    """Values of a source that is next to the base: to first order both are the same."""
    model, tokens = small(family), prompts()
    embeds = model.W_E.detach()[tokens]
    step = 1e-4 if family == "gpt2" else 1e-2  # float32 statistics: smaller changes drown in them
    other = prompts()
    noise = step * (model.W_E.detach()[other] - embeds)
    # two ids of the vocabulary cannot be close: the source's embeddings are moved by a hook that counts on its ids
    found = {}
    for name, function in (("patching", patch_activations), ("attribution", attribute_patches)):

        def nudge(value, hook):
            return embeds + noise if torch.equal(value.detach(), model.W_E.detach()[other]) else value

        with model.hooks([("hook_embed", nudge)]):
            found[name] = function(model, tokens, other, metric, at=at, by=by).change.values
    assert difference(found["attribution"], found["patching"]) < (1e-2 if family == "gpt2" else 0.3)
    assert found["patching"].abs().max() > 0


def test_integrated_effects_of_a_layer_sum_to_patching_it_whole(family):
    model, base, source = small(family), prompts(), prompts()
    for at in ("resid_pre", "z", "mlp_out"):
        whole = patch_activations(model, base, source, (3, 5), at=at, by="").change.values
        parts = attribute_patches(model, base, source, (3, 5), at=at, steps=200).change.values
        assert difference(parts.sum(dim=1), whole) < 2e-2, at
        once = attribute_patches(model, base, source, (3, 5), at=at).change.values
        assert difference(once.sum(dim=1), whole) > 2e-2, at


def test_integrated_gradients_sum_to_the_difference_to_zero_embeddings(family):
    model, tokens = small(family, eps=1.0), prompts()  # a norm of nothing is steep where its eps is small
    found = integrated_gradients(model, tokens, (3, 5), steps=300)
    zero = model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda value, hook: 0 * value)])
    expected = (metric(model(tokens)) - metric(zero)).mean().detach()
    assert difference(found.values.sum(), expected) < 5e-2


def test_gradients_leave_no_trace_on_the_model(family):
    model = small(family)
    attribute_patches(model, prompts(), prompts(), (3, 5), at="z", steps=2)
    attribute_edges(model, prompts(), prompts(), (3, 5))
    integrated_gradients(model, prompts(), (3, 5), steps=2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not [hook for point in model.hook_points.values() for hook in point.hooks]


def test_gradients_need_no_parameter_that_asks_for_one(family):
    model, base, source = small(family), prompts(), prompts()
    expected = attribute_patches(model, base, source, (3, 5), at="z")
    edges = attribute_edges(model, base, source, (3, 5))
    model.requires_grad_(False)
    assert difference(attribute_patches(model, base, source, (3, 5), at="z").values, expected.values) < 1e-10
    assert difference(attribute_edges(model, base, source, (3, 5)).values, edges.values) < 1e-10


def test_edges_into_a_receiver_sum_to_the_gradient_along_all_that_it_reads(family):
    model, base, source = small(family), prompts(), prompts()
    edges = attribute_edges(model, base, source, (3, 5))
    receivers = edges.axes[1].labels
    names = ["blocks.1.hook_q_input", "blocks.1.hook_v_input", "blocks.1.hook_mlp_in", "ln_final.hook_in"]
    kept = {}

    def keep(value, hook):
        kept[hook.name] = value
        return value

    metric(model.run_with_hooks(base, fwd_hooks=[(names, keep)])).mean()
    score = metric(model.run_with_hooks(base, fwd_hooks=[(names, keep)])).mean()
    gradients = dict(zip(names, torch.autograd.grad(score, [kept[name] for name in names]), strict=True))
    _, new = model.run_with_cache(source, names_filter=names)
    effect = {name: (new[name] - kept[name].detach()) * gradients[name] for name in names}
    heads = effect["blocks.1.hook_q_input"].sum(dim=(0, 1, 3))
    for head in range(4):
        column = edges.values[:, receivers.index(f"L1H{head} q")]
        assert difference(column.sum(), heads[head]) < GRADIENTS[family]
    values = effect["blocks.1.hook_v_input"].sum(dim=(0, 1, 3))
    assert difference(edges.values[:, receivers.index("L1H1 v")].sum(), values[1]) < GRADIENTS[family]
    for name, label in ((names[2], "L1 mlp"), (names[3], "logits")):
        assert difference(edges.values[:, receivers.index(label)].sum(), effect[name].sum()) < GRADIENTS[family]


def test_no_edge_runs_backwards():
    edges = attribute_edges(small("gpt2"), prompts(), prompts(), (3, 5))
    values = {(s, r): edges.values[i, j].item() for i, s in enumerate(edges.axes[0].labels)
              for j, r in enumerate(edges.axes[1].labels)}  # fmt: skip
    assert values["L0H1", "L0 mlp"] != 0 and values["L0 mlp", "L1H0 q"] != 0 and values["embed", "L0H0 k"] != 0
    backwards = [("L0 mlp", "L0H0 q"), ("L1H0", "L1H0 q"), ("L1 mlp", "L1 mlp"), ("L1H2", "L0 mlp")]
    assert all(values[edge] == 0 for edge in backwards)


# --- causal tracing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "window"), [("resid_post", 1), ("resid_pre", 1), ("mlp_out", 1), ("mlp_out", 3), ("attn_out", 2)]
)
@torch.no_grad()
def test_causal_tracing_is_a_loop_of_blurred_runs(family, at, window):
    model, tokens = small(family, n_layers=3), prompts(1)
    found = causal_trace(model, tokens, [1, 2], 3, at=at, window=window, samples=3, noise=0.5)
    drawn = torch.randn(3, 2, model.config.d_model, generator=torch.Generator().manual_seed(0))
    noise = (0.5 * model.W_E.std() * drawn).double()
    _, clean = model.run_with_cache(tokens)
    many = tokens.repeat(3, 1)

    def blur(value, hook):
        value[:, [1, 2]] += noise

    def probability(hooks):
        logits = model.run_with_hooks(many, fwd_hooks=[("hook_embed", blur), *hooks])
        return logits[:, -1].softmax(dim=-1)[:, 3].mean()

    for layer in range(3):
        first = layer - window // 2
        names = [f"blocks.{i}.hook_{at}" for i in range(max(0, first), min(3, first + window))]
        for pos in (0, 2, 6):

            def restore(value, hook, pos=pos):
                value[:, pos] = clean[hook.name][:, pos]

            assert difference(found.values[layer, pos], probability([(names, restore)])) < TOLERANCE[family]
    assert abs(found.base - probability([]).item()) < 1e-6
    assert abs(found.source - model(tokens)[0, -1].softmax(dim=-1)[3].item()) < 1e-6
    assert found.values.std() > 1e-6


def test_the_subject_is_found_in_the_text():
    model = LanguageModel("nnzoo/tiny-llama")
    text = "The Eiffel Tower is in the city of"
    labels = model._model.to_str_tokens(text)
    by_name = causal_trace(model, text, "Eiffel Tower", samples=2)
    positions = [i for i, label in enumerate(labels) if label.strip() and label.strip() in "Eiffel Tower"]
    assert torch.equal(by_name.values, causal_trace(model, text, positions, samples=2).values)
    assert by_name.source == pytest.approx(model(text)[0, -1].softmax(dim=-1).max().item(), abs=1e-5)
    with pytest.raises(ValueError, match="'Berlin' is no part of the prompt, whose tokens are"):
        causal_trace(model, text, "Berlin")
    with pytest.raises(ValueError, match="takes one prompt, not 2"):
        causal_trace(model, model._model.to_tokens([text, text]), "Eiffel")
    with pytest.raises(ValueError, match="window and samples are at least 1"):
        causal_trace(model, text, "Eiffel", window=0)


def test_the_noise_follows_its_seed():
    model = load("nnzoo/tiny-gpt2")
    one, again, other = (causal_trace(model, PROMPT, "France", samples=2, seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
