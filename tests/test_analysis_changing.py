"""Ablation, steering, probes and circuits, against hooks and against plain linear algebra."""

import pytest
import torch

from nnzoo import LanguageModel, load
from nnzoo.analysis import (
    FactoredMatrix,
    ablate,
    ablated,
    composition_scores,
    copying_scores,
    full_ov_circuit,
    full_qk_circuit,
    ov_circuit,
    probe_layers,
    qk_circuit,
    steering_vector,
    train_probe,
)
from nnzoo.generation import generate
from small_models import FAMILIES, difference, prompts, small

# an RMSNorm's statistics are float32 whatever the model's dtype
TOLERANCE = {"gpt2": 1e-10, "llama": 1e-6, "mistral": 1e-6}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def metric(logits):
    return logits[:, -1, 3] - logits[:, -1, 5]


# --- ablation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
@torch.no_grad()
def test_ablating_a_head_is_a_hook_that_silences_it(family, mode):
    model, tokens, reference = small(family), prompts(), prompts(batch=1)
    found = ablate(model, tokens, metric, mode=mode, reference=None if mode == "zero" else reference)
    _, other = model.run_with_cache(reference)
    for layer in range(2):
        for head in range(4):

            def silence(z, hook, head=head):
                kept = other[hook.name][:, :, head]
                z[:, :, head] = {"zero": 0, "mean": kept.mean(dim=(0, 1)), "resample": kept}[mode]

            logits = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", silence)])
            assert difference(found.values[layer, head], metric(logits).mean()) < TOLERANCE[family]
    assert found.base == pytest.approx(metric(model(tokens)).mean().item(), abs=1e-5)
    assert found.change.values.abs().max() > 1e-3


def test_other_parts_are_ablated_as_a_whole(family):
    model, tokens = small(family), prompts()
    found = ablate(model, tokens, metric, at="mlp_out", mode="mean", reference=prompts(pos=4))
    assert found.shape == {"layer": 2}
    neurons = ablate(model, tokens, metric, at="post", by="d_mlp", layers=[1])
    assert neurons.shape == {"layer": 1, "d_mlp": 28}
    patterns = ablate(model, tokens, metric, at="pattern", mode="mean")
    assert patterns.shape == {"layer": 2, "head": 4}


def test_resampling_draws_another_prompt_by_the_seed():
    model, tokens = small("gpt2"), prompts(batch=4)
    one, again, other = (ablate(model, tokens, 3, mode="resample", seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="needs another prompt"):
        ablate(model, tokens[:1], 3, mode="resample")
    with pytest.raises(ValueError, match="prompts of the same length: 7 and 4 tokens"):
        ablate(model, tokens, 3, mode="resample", reference=prompts(pos=4))


def test_the_mean_leaves_padding_out():
    model = load("nnzoo/tiny-llama").double()
    texts = ["The capital of France is", "Everyone knows that the capital of Italy is"]
    found = ablate(model, texts[0], " Paris", mode="mean", reference=texts)
    z = torch.cat([model.run_with_cache(text)[1]["z", 1][0] for text in texts])

    def silence(value, hook):
        value[:, :, 2] = z[:, 2].mean(dim=0)

    logits = model.run_with_hooks(texts[0], fwd_hooks=[("blocks.1.attn.hook_z", silence)])
    assert difference(found.values[1, 2], logits[0, -1, model.to_single_token(" Paris")]) < 1e-6


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_a_model_without_some_parts_is_one_with_hooks(family, mode):
    model, tokens, reference = small(family), prompts(), prompts(pos=5)
    _, other = model.run_with_cache(reference)

    def of(name, *head):
        return 0 if mode == "zero" else other[name].mean(dim=(0, 1))[head]

    def z(value, hook):
        value[:, :, 1] = of(hook.name, 1)
        value[:, :, 3] = of(hook.name, 3)

    def whole(value, hook):
        value[:] = of(hook.name)

    hooks = [("blocks.1.attn.hook_z", z), ("blocks.0.hook_mlp_out", whole), ("blocks.0.hook_attn_out", whole)]
    expected = model.run_with_hooks(tokens, fwd_hooks=hooks)
    given = {} if mode == "zero" else {"mode": "mean", "reference": reference}
    with ablated(model, heads=[(1, 1), (1, 3)], mlps=[0], attentions=[0], **given):
        found = model(tokens)
    assert difference(found, expected) < TOLERANCE[family]
    assert not [hook for point in model.hook_points.values() for hook in point.hooks]


def test_what_cannot_be_ablated_is_refused():
    model, tokens = small("gpt2"), prompts()
    with pytest.raises(ValueError, match="mode is one of zero, mean, resample, not 'none'"):
        ablate(model, tokens, 3, mode="none")
    with pytest.raises(ValueError, match="zeros need no reference"):
        ablate(model, tokens, 3, reference=tokens)
    for given, message in (
        ({}, "nothing is named"),
        ({"heads": [(2, 0)]}, "no head 0 in layer 2"),
        ({"mlps": [0], "mode": "mean"}, "the mean over reference"),
        ({"mlps": [0], "mode": "resample"}, "'zero' or 'mean' for runs of any prompts"),
    ):
        with pytest.raises(ValueError, match=message), ablated(model, **given):
            pass


# --- steering ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [-1, None])
def test_a_steering_vector_is_a_difference_of_means(position):
    model = load("nnzoo/tiny-gpt2").double()
    positive, negative = ["The capital of France is", "Everyone knows that the capital of Spain is"], ["The keys are"]

    def mean(texts):
        rows = [model.run_with_cache(text)[1]["resid_mid", 2][0] for text in texts]
        return torch.stack([row[-1] if position else row.mean(dim=0) for row in rows]).mean(dim=0)

    vector = steering_vector(model, positive, negative, 2, at="resid_mid", position=position)
    assert difference(vector.vector, mean(positive) - mean(negative)) < 1e-10
    with vector.added(model, scale=-2.5):
        steered = model(positive[0])
    hook = ("blocks.2.hook_resid_mid", lambda value, hook: value - 2.5 * vector.vector)
    assert difference(steered, model.run_with_hooks(positive[0], fwd_hooks=[hook])) < 1e-10


def test_a_steering_vector_is_added_where_it_was_read():
    model = small("llama")
    vector = steering_vector(model, prompts(), prompts(), 1, at="gate_in")
    assert vector.name == "blocks.1.mlp.hook_gate_in"
    with vector.added(model):
        assert [len(point.hooks) for point in model.hook_points.values() if point.hooks] == [1]


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-mistral"])
def test_generation_is_steered_at_every_step(name):
    model = LanguageModel(f"nnzoo/{name}")
    native, text = model._model, "The capital of Italy is"
    vector = steering_vector(model, "The capital of France is", text, layer=-1)
    assert vector.layer == 3
    tokens = native.to_tokens(text)
    for _ in range(3):  # without a KV cache, every token anew
        with vector.added(native, 1.5):
            tokens = torch.cat([tokens, native(tokens)[:, -1:].argmax(dim=-1)], dim=1)
    found = vector.generate(model, [text, "Today the capital of Italy is"], 1.5, max_new_tokens=3)
    assert found[0] == native.to_string(tokens[0])
    assert found[0] != native.to_string(generate(native, native.to_tokens(text), max_new_tokens=3)[0])
    assert found[1].startswith("Today the capital")


# --- probes -----------------------------------------------------------------------------------------------------------


def test_a_probe_is_where_its_loss_is_flat():
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randint(0, 3, (60,))
    x[:, 0] += 2.0 * y
    x[:, 1] *= 100
    probe = train_probe(x, y, l2=0.1)
    mean, scale = x.mean(dim=0), x.std(dim=0)
    weight = (probe.weight * scale[:, None]).requires_grad_()
    bias = (probe.bias + mean @ probe.weight).requires_grad_()
    loss = torch.nn.functional.cross_entropy((x - mean) / scale @ weight + bias, y) + 0.05 * weight.square().sum()
    assert max(g.abs().max().item() for g in torch.autograd.grad(loss, [weight, bias])) < 1e-4
    assert probe.accuracy(x, y) > 0.6
    assert probe.predict(x).shape == (60,)
    with pytest.raises(ValueError, match="60 vectors and 2 labels"):
        train_probe(x, [0, 1])


def test_probes_are_tested_on_prompts_that_they_never_saw():
    model = LanguageModel("nnzoo/tiny-gpt2")
    numbers = torch.randint(0, 774, (200, 6))
    random = probe_layers(model, numbers, torch.randint(0, 2, (200,)), position=2)
    assert random.values.mean() < 0.65  # labels of nothing cannot be told
    numbers[:, 2] = torch.randint(0, 2, (200,)) * 7 + 3
    told = probe_layers(model, numbers, (numbers[:, 2] > 3).long(), at="resid_pre", position=2)
    assert told.shape == {"layer": 4}
    assert told.values[0] == 1
    before = probe_layers(model, numbers, (numbers[:, 2] > 3).long(), at="resid_pre", position=1)
    assert before.values.mean() < 0.65
    with pytest.raises(ValueError, match="200 prompts, 2 labels"):
        probe_layers(model, numbers, [0, 1])
    with pytest.raises(ValueError, match="0 prompts to test on"):
        probe_layers(model, numbers, [0] * 200, held_out=0.0)


# --- circuits ---------------------------------------------------------------------------------------------------------


def factored(*many):
    return FactoredMatrix(torch.randn(*many, 9, 3, dtype=torch.float64), torch.randn(*many, 3, 7, dtype=torch.float64))


def test_a_factored_matrix_is_its_product():
    m, square = factored(2, 4), FactoredMatrix(torch.randn(9, 3).double(), torch.randn(3, 9).double())
    U, S, V = m.svd
    assert difference(U @ torch.diag_embed(S) @ V.transpose(-1, -2), m.AB) < 1e-10
    assert difference(m.singular_values, torch.linalg.svdvals(m.AB)[..., :3]) < 1e-10
    assert difference(m.norm, torch.linalg.matrix_norm(m.AB)) < 1e-10
    assert difference(m.T.AB, m.AB.transpose(-1, -2)) < 1e-10
    assert difference(m[1, 2].AB, m.AB[1, 2]) < 1e-10
    assert difference(m[0].AB, m.AB[0]) < 1e-10
    eigenvalues = torch.linalg.eigvals(square.AB)
    largest = eigenvalues[eigenvalues.abs().argsort(descending=True)][:3]
    assert difference(square.eigenvalues.abs().sort().values, largest.abs().sort().values) < 1e-8
    assert difference(square.eigenvalues.sum().real, square.AB.trace()) < 1e-10
    right, left, vector = torch.randn(7, 5).double(), torch.randn(6, 9).double(), torch.randn(7).double()
    assert difference((m @ right).AB, m.AB @ right) < 1e-10
    assert difference((left @ m).AB, left @ m.AB) < 1e-10
    assert difference(m @ vector, m.AB @ vector) < 1e-10
    assert difference(left[0] @ m, left[0] @ m.AB) < 1e-10
    assert difference((m @ m.T).AB, m.AB @ m.AB.transpose(-1, -2)) < 1e-10
    assert repr(m) == "FactoredMatrix(2x4x9x7, rank at most 3)"
    with pytest.raises(ValueError, match="only square matrices"):
        m.eigenvalues
    with pytest.raises(ValueError, match=r"the factors \[9, 3\] and \[4, 7\] do not fit"):
        FactoredMatrix(torch.zeros(9, 3), torch.zeros(4, 7))
    with pytest.raises(IndexError, match="3 indices for 2 axes of matrices"):
        m[0, 0, 0]


def test_circuits_are_products_of_weights(family):
    model = small(family)
    group = model.config.n_heads // model.config.n_kv_heads
    for layer, head in ((0, 1), (1, 3)):
        attn = model.blocks[layer].attn
        W_K, W_V = attn.W_K[head // group], attn.W_V[head // group]
        ov = W_V @ attn.W_O[head]
        assert difference(qk_circuit(model).AB[layer, head], attn.W_Q[head] @ W_K.T) < 1e-10
        assert difference(ov_circuit(model)[layer, head].AB, ov) < 1e-10
        assert difference(full_ov_circuit(model)[layer, head].AB, model.W_E @ ov @ model.W_U) < 1e-10
        assert (
            difference(full_qk_circuit(model)[layer, head].AB, model.W_E @ attn.W_Q[head] @ W_K.T @ model.W_E.T) < 1e-10
        )
        eigenvalues = torch.linalg.eigvals(model.W_E @ ov @ model.W_U)
        score = (eigenvalues.sum() / eigenvalues.abs().sum()).real
        assert difference(copying_scores(model).values[layer, head], score) < 1e-6


@pytest.mark.parametrize("into", ["q", "k", "v"])
def test_composition_is_the_norm_of_a_product_by_the_product_of_norms(family, into):
    model = small(family, n_layers=3)
    found = composition_scores(model, into)
    ov, qk = ov_circuit(model).AB, qk_circuit(model).AB
    reads = {"q": qk, "k": qk.transpose(-1, -2), "v": ov}[into]
    norm = torch.linalg.matrix_norm
    names = found.axes[0].labels
    for (i, h), (j, g) in (((0, 1), (1, 2)), ((0, 3), (2, 0)), ((1, 1), (2, 3))):
        expected = norm(ov[i, h] @ reads[j, g]) / norm(ov[i, h]) / norm(reads[j, g])
        score = found.values[names.index(f"L{i}H{h}"), names.index(f"L{j}H{g}")]
        assert difference(score, expected) < 1e-8
    assert not found.values[names.index("L1H0"), : names.index("L2H0")].any()
    with pytest.raises(ValueError, match="into is 'q', 'k' or 'v', not 'o'"):
        composition_scores(model, "o")
