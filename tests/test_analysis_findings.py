"""The textbook's findings, found in the trained models: on each family, with prompts that no training sentence had."""

from functools import cache
from itertools import pairwise

import pytest
import torch

from nnzoo import LanguageModel
from nnzoo.analysis import (
    ablate,
    ablated,
    attribute_logits,
    attribute_patches,
    causal_trace,
    composition_scores,
    detect_heads,
    induction_scores,
    logit_lens,
    patch_activations,
    patch_paths,
    probe_layers,
    token_losses,
)
from nnzoo.processing import process_weights
from nnzoo.weights.tiny.corpus import held_out

FAMILIES = ["gpt2", "llama", "mistral"]


@pytest.fixture(params=FAMILIES)
def model(request):
    return model_of(request.param)


@cache
def model_of(family):
    return LanguageModel(f"nnzoo/tiny-{family}")


@cache
def repeated():
    """Sixteen tokens of random words, twice: [prompt pos]."""
    tokenizer = model_of("gpt2").tokenizer
    words = [prompt.sentence.split() for prompt in held_out("induction", 16)]
    texts = ["".join(f" {word}" for word in row[: len(row) // 2]) for row in words]
    rows = [tokenizer.encode(text, add_special_tokens=False)[:16] for text in texts]
    return torch.tensor([row + row for row in rows])


def heads_above(result, score):
    return [entry.index for entry in result.entries() if entry.value > score]


def accuracy(model, tokens):
    """The share of the second copy's tokens that are predicted, after its first, which nothing announces."""
    with torch.no_grad():
        return (model._model(tokens)[:, 16:-1].argmax(dim=-1) == tokens[:, 17:]).float().mean().item()


@cache
def facts(family, n=4):
    """Fact prompts that the model knows, with the positions of their subject."""
    model, found = model_of(family), []
    for prompt in held_out("facts", 30):
        clean, corrupted = (model._model.to_tokens(text)[0] for text in (prompt.text, prompt.corrupted))
        subject = (clean != corrupted).nonzero()[:, 0].tolist()
        right = model(prompt.text)[0, -1].softmax(dim=-1)[model._model.to_single_token(prompt.answer)] > 0.9
        if right and subject[-1] < len(clean) - 2:
            found.append((prompt, subject))
    return found[:n]


def indirect(n=5):
    return [prompt for prompt in held_out("ioi", 40) if prompt.text.startswith("When")][:n]


# --- induction ----------------------------------------------------------------------------------------------------


def test_induction_heads_carry_the_second_copy_and_as_many_other_heads_do_not(model):
    tokens = repeated()
    induction = heads_above(induction_scores(model, tokens), 0.5)
    before = heads_above(detect_heads(model, tokens, "previous_token"), 0.3)
    scores = induction_scores(model, tokens).values.flatten()
    others = [divmod(i, 4) for i in scores.argsort(descending=True).tolist()]
    others = [head for head in others if head not in induction and head not in before][: len(induction)]
    assert 1 <= len(induction) == len(others) <= 8
    assert accuracy(model, tokens) > 0.95
    for mode in ({"mode": "zero"}, {"mode": "mean", "reference": tokens}):
        with ablated(model, heads=induction, **mode):
            assert accuracy(model, tokens) < 0.1
            without = token_losses(model, tokens).values[:, 17:].mean()
        with ablated(model, heads=others, **mode):
            assert accuracy(model, tokens) > 0.8
            kept = token_losses(model, tokens).values[:, 17:].mean()
        assert without > kept + 2


def test_induction_heads_stand_on_heads_that_look_at_the_previous_token(model):
    tokens = repeated()
    induction = heads_above(induction_scores(model, tokens), 0.5)
    previous = detect_heads(model, tokens, "previous_token")
    [best] = previous.top(1)
    assert best.value > 0.5
    assert best.index[0] < min(layer for layer, _ in induction)
    others = repeated().flip(0)  # other words: what previous-token heads say of them is wrong here
    paths = patch_paths(model, tokens, others, second_copy(tokens), receivers=induction, into="k")
    assert paths.change.top(1, smallest=True)[0].index == best.index
    assert paths.change.values.min() < -1


def second_copy(tokens):
    """The mean log-probability of the second copy's tokens, as a metric of the logits."""

    def metric(logits):
        chances = logits[:, 16:-1].log_softmax(dim=-1)
        return chances.gather(-1, tokens[:, 17:, None])[..., 0].mean(dim=1)

    return metric


def test_the_weights_alone_say_that_induction_heads_read_previous_token_heads():
    native = process_weights(model_of("gpt2")._model)
    tokens = repeated()
    induction = heads_above(induction_scores(native, tokens), 0.5)
    layer, head = detect_heads(native, tokens, "previous_token").top(1)[0].index
    scores = composition_scores(native, "k").values.view(4, 4, 4, 4)
    mean = torch.stack([scores[:, :, at, to].where(scores[:, :, at, to] > 0, torch.nan) for at, to in induction])
    assert all(mean[i, layer, head] > mean[i].nanmean() for i in range(len(induction)))


# --- indirect objects ------------------------------------------------------------------------------------------------


def test_patching_moves_the_indirect_object(model):
    for prompt in indirect():
        names = (prompt.answer, prompt.wrong_answer)
        patched = patch_activations(model, prompt.corrupted, prompt.text, names)
        assert patched.base < -2 and patched.source > 2  # each run has its own answer
        clean, corrupted = (model._model.to_tokens(text)[0] for text in (prompt.text, prompt.corrupted))
        [changed] = (clean != corrupted).nonzero()[:, 0].tolist()
        moved = patched.restored.values
        assert moved[0, changed] == pytest.approx(1, abs=1e-3)  # before block 0 the word alone decides
        assert moved[:, :changed].abs().max() < 1e-3  # nothing runs backwards
        assert moved.topk(2, dim=1).values.sum(dim=1).min() > 0.7  # in every layer two places have most of it


def test_few_heads_write_the_name(model):
    prompts = indirect()
    effects, direct = [], []
    for prompt in prompts:
        names = (prompt.answer, prompt.wrong_answer)
        effects.append(patch_activations(model, prompt.text, prompt.corrupted, names, at="z").restored.values)
        direct.append(attribute_logits(model, prompt.text, *names, by="head").values)
    last = torch.stack(direct).mean(dim=0)
    assert last[-1].max() > last[0].max() and last[-1].max() > 1  # name movers stand late
    ranked = torch.stack(effects).mean(dim=0).flatten().abs().sort(descending=True).values
    assert ranked[:6].sum() > 3 * ranked[6:].sum()


def test_gradients_point_at_the_places_that_patching_finds(model):
    for prompt in indirect(3):
        names = (prompt.answer, prompt.wrong_answer)
        arguments = (model, prompt.corrupted, prompt.text, names)
        patched = patch_activations(*arguments, at="resid_pre").change
        estimated = attribute_patches(*arguments, at="resid_pre", steps=16).change
        assert torch.equal(patched.values.argmax(dim=1), estimated.values.argmax(dim=1))
        both = torch.stack([patched.values.flatten(), estimated.values.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.9


# --- the logit lens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["ioi", "facts", "agreement"])
def test_the_lens_sharpens_with_depth(model, task):
    lenses = [logit_lens(model, p.text, p.answer, positions=[-1]) for p in held_out(task, 15)]
    chances = torch.stack([lens.values[:, 0] for lens in lenses]).mean(dim=0)
    ranks = torch.stack([lens.ranks[:, 0].double() for lens in lenses]).mean(dim=0)
    assert chances[-1] > 0.85 and chances[0] < 0.5 * chances[-1]
    assert all(later > earlier - 0.1 for earlier, later in pairwise(chances))
    assert ranks[0] > 5 * ranks[-1] + 1 and ranks[-1] < 0.2


# --- facts -----------------------------------------------------------------------------------------------------------


def test_a_fact_is_recalled_early_at_its_subject_and_late_at_the_last_token(model):
    family = model._model.__class__.__name__.lower()
    known = facts(family)
    assert len(known) == 4
    early, late, elsewhere = [], [], []
    for prompt, subject in known:
        traced = causal_trace(model, prompt.text, subject, prompt.answer, samples=4).restored.values
        n = traced.shape[1]
        early.append(traced[0, subject[0] :].max())
        late.append(traced[1:, -1].min())
        elsewhere.append(torch.cat([traced[2:, : n - 1].flatten(), traced[:, : subject[0]].flatten()]).abs().max())
    early, late, elsewhere = (torch.stack(each).mean().item() for each in (early, late, elsewhere))
    assert early > 0.4
    assert late > 0.9
    assert elsewhere < 0.2


def test_attention_brings_a_fact_to_the_last_token_where_tracing_says(model):
    """The state of the last token holds the fact after block 1: attention has brought most of it by then."""
    family = model._model.__class__.__name__.lower()
    brought = torch.stack([
        causal_trace(model, prompt.text, subject, prompt.answer, at="attn_out", samples=4).restored.values[:, -1]
        for prompt, subject in facts(family)
    ]).mean(dim=0)  # fmt: skip
    assert brought[:2].max() > 0.5 and brought[:2].max() > 2 * brought[2:].max()
    lost = torch.stack([
        ablate(model, prompt.text, prompt.answer, at="attn_out", mode="mean").change.values
        for prompt, _ in facts(family)
    ]).mean(dim=0)  # fmt: skip
    assert lost.argmin() <= 1


def test_another_fact_is_told_where_tracing_says_that_this_one_is_recalled(model):
    """Blur and restore, or exchange with another subject's run: both find the same place in each layer."""
    for prompt, subject in facts(model._model.__class__.__name__.lower()):
        traced = causal_trace(model, prompt.text, subject, prompt.answer, samples=4).restored.values
        names = (prompt.answer, prompt.wrong_answer)
        swapped = patch_activations(model, prompt.corrupted, prompt.text, names, at="resid_post").restored.values
        assert torch.equal(traced[1:].argmax(dim=1), swapped[1:].argmax(dim=1))
        assert swapped[1:].amax(dim=1).min() > 0.8


# --- probes ----------------------------------------------------------------------------------------------------------


def test_a_probe_reads_the_number_of_the_head_noun_across_the_other_noun(model):
    prompts = held_out("agreement", 200)
    length = {len(model.tokenizer.encode(p.text)) for p in prompts}
    assert len(length) >= 1
    plural = [int(p.answer in (" are", " were")) for p in prompts]
    found = probe_layers(model, [p.text for p in prompts], plural)
    shuffled = torch.tensor(plural)[torch.randperm(len(plural))]
    control = probe_layers(model, [p.text for p in prompts], shuffled)
    assert found.values[-1] > 0.95
    assert control.values.max() < 0.75
