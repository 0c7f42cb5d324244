"""Sweeps against a loop of single runs: what an experiment gives is what a hook at that place does."""

from itertools import product

import pytest
import torch

from families import PLAIN, ids, theirs
from families import ours as hf_ours
from nnzoo import LanguageModel, load
from nnzoo.analysis import Logit, patch_activations
from nnzoo.architectures.names import get_act_name
from small_models import FAMILIES, POS, difference, prompts, small

# an RMSNorm's statistics are float32 whatever the model's dtype, so that a last bit of float64 may cost one of float32
TOLERANCE = {"gpt2": 1e-10, "llama": 1e-6, "mistral": 1e-6}
SITES = [
    ("resid_pre", None), ("resid_mid", "pos"), ("resid_post", "pos"), ("attn_out", "pos"), ("mlp_out", "pos"),
    ("z", None), ("z", "pos head"), ("q", "head"), ("k", "head pos"), ("v", "head"), ("pattern", "head"),
    ("attn_scores", "head key"), ("pattern", "head query"), ("post", "d_mlp"), ("result", "head"), ("mlp_out", ""),
]  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def last_difference(logits):
    return logits[:, -1, 3] - logits[:, -1, 5]


def one_by_one(model, base, source, metric, at, by):
    """Each patch in a run of its own, by hooks."""
    rows = []
    for layer in range(len(model.blocks)):
        name = get_act_name(at, layer)
        _, cache = model.run_with_cache(source, names_filter=name)
        symbols = model.hook_points[name].axes.split()[1:]
        wanted = [s if s in symbols else f"kv_{s}" for s in by.split()]
        sizes = [cache[name].shape[1 + symbols.index(s)] for s in wanted]
        for place in product(*map(range, sizes)):
            where = (slice(None), *(dict(zip(wanted, place, strict=True)).get(s, slice(None)) for s in symbols))

            def put(value, hook, where=where, cache=cache):
                value[where] = cache[hook.name][where]

            rows.append(metric(model.run_with_hooks(base, fwd_hooks=[(name, put)])).mean())
    return torch.stack(rows).view(len(model.blocks), *sizes)


@pytest.mark.parametrize(("at", "by"), SITES)
def test_a_sweep_of_patches_is_a_loop_of_runs(family, at, by):
    model, base, source = small(family), prompts(), prompts()
    found = patch_activations(model, base, source, last_difference, at=at, by=by, batch_size=3)
    with torch.no_grad():
        by = by if by is not None else "head" if at in ("z",) else "pos"
        expected = one_by_one(model, base, source, last_difference, at, by)
    assert difference(found.values, expected) < TOLERANCE[family]
    assert found.values.std() > 1e-3  # else any two sweeps were equal
    assert difference(torch.tensor(found.base), last_difference(model(base)).mean().detach().float()) < 1e-6
    assert difference(torch.tensor(found.source), last_difference(model(source)).mean().detach().float()) < 1e-6


@pytest.mark.parametrize("right", [3, torch.tensor([3, 4, 6])])
@pytest.mark.parametrize("wrong", [None, 5, torch.tensor([1, 2, 5])])
def test_tokens_as_a_metric_are_the_logits_that_a_function_reads(family, right, wrong):
    model, base, source = small(family), prompts(), prompts()

    def by_hand(logits):
        value = logits[torch.arange(3), -1, right]
        return value if wrong is None else value - logits[torch.arange(3), -1, wrong]

    short = patch_activations(model, base, source, right if wrong is None else (right, wrong))
    assert difference(short.values, patch_activations(model, base, source, by_hand).values) < TOLERANCE[family]
    hooked = [("unembed.hook_in", lambda value, hook: 2 * value)]
    with model.hooks(hooked):  # somebody at the end of the model is heard
        double = patch_activations(model, base, source, right if wrong is None else (right, wrong))
    assert difference(double.values, 2 * short.values) < TOLERANCE[family]


def test_a_bias_of_the_unembedding_counts():
    model, base, source = small("gpt2"), prompts(), prompts()
    model.unembed.bias = torch.nn.Parameter(torch.randn(31, dtype=torch.float64))
    found = patch_activations(model, base, source, (3, 5), at="mlp_out")
    assert (
        difference(found.values, patch_activations(model, base, source, last_difference, at="mlp_out").values) < 1e-10
    )


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_how_many_patches_make_a_pass_changes_nothing(batch_size):
    model, base, source = small("llama"), prompts(), prompts()
    one, other = (patch_activations(model, base, source, 3, batch_size=n) for n in (batch_size, 5))
    assert difference(one.values, other.values) < TOLERANCE["llama"]


def test_padded_prompts_are_patched_as_each_alone():
    model = load("nnzoo/tiny-gpt2").double()
    clean = ["The capital of France is", "Everyone knows that the capital of Italy is"]
    corrupted = ["The capital of Italy is", "Everyone knows that the capital of France is"]
    together = patch_activations(model, corrupted, clean, ([" Paris", " Rome"], [" Rome", " Paris"]), at="z")
    alone = [
        patch_activations(model, corrupted[i], clean[i], pair, at="z").values
        for i, pair in enumerate([(" Paris", " Rome"), (" Rome", " Paris")])
    ]
    assert difference(together.values, torch.stack(alone).mean(dim=0)) < 1e-10


def test_padded_prompts_are_patched_position_by_position_as_each_alone():
    model = load("nnzoo/tiny-llama").double()
    clean = ["The capital of France is", "Everyone knows that the capital of Italy is"]
    corrupted = ["The capital of Italy is", "Everyone knows that the capital of France is"]
    answers = [(" Paris", " Rome"), (" Rome", " Paris")]
    together = patch_activations(model, corrupted, clean, tuple(map(list, zip(*answers, strict=True))), at="resid_mid")
    short, long = (
        patch_activations(model, corrupted[i], clean[i], answers[i], at="resid_mid").change.values for i in (0, 1)
    )
    padding = long.shape[1] - short.shape[1]
    expected = (torch.nn.functional.pad(short, (padding, 0)) + long) / 2
    assert padding > 0
    assert difference(together.change.values, expected) < TOLERANCE["llama"]


@pytest.mark.parametrize("at", ["resid_pre", "attn_out", "pattern"])
def test_nothing_left_of_a_patch_runs_again(at):
    model, base, source = small("gpt2"), prompts(), prompts()
    read = []
    handle = model.blocks[1].mlp.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[:2].numel()))
    patch_activations(model, base, source, 3, at=at, by="query" if at == "pattern" else "pos", batch_size=1)
    handle.remove()
    whole, patches = 3 * POS, 2 * 3 * sum(range(1, POS + 1))
    assert sum(read) == (1 + 1 + 1) * whole + patches  # base, source and the source's values


def test_hooks_on_the_model_see_whole_prompts():
    model, base, source = small("mistral"), prompts(), prompts()
    places = torch.rand(POS, 1, dtype=torch.float64)
    with model.hooks([("blocks.1.hook_mlp_out", lambda value, hook: value * places)]):
        found = patch_activations(model, base, source, last_difference)
        with torch.no_grad():
            expected = one_by_one(model, base, source, last_difference, "resid_pre", "pos")
    assert difference(found.values, expected) < TOLERANCE["mistral"]


@pytest.mark.parametrize("position", [0, 2, -2])
def test_a_metric_may_read_any_position(family, position):
    model, base, source = small(family), prompts(), prompts()
    found = patch_activations(model, base, source, Logit(torch.tensor([3]), position=position))
    assert (
        difference(found.values, patch_activations(model, base, source, lambda logits: logits[:, position, 3]).values)
        < (TOLERANCE[family])
    )
    assert found.values.std() > 1e-3


@ids(PLAIN)
def test_patching_a_block_is_what_a_hook_on_transformers_does(family, setting):
    model, other = hf_ours(family, setting), theirs(family, setting)
    base, source = torch.randint(0, 97, (2, 9)), torch.randint(0, 97, (2, 9))
    blocks = other.transformer.h if family == "gpt2" else other.model.layers
    expected = torch.zeros(3, 9, dtype=torch.float64)
    with torch.no_grad():
        states = other(source, output_hidden_states=True).hidden_states
        for layer, pos in product(range(3), range(9)):

            def put(module, args, kwargs, layer=layer, pos=pos):
                args[0][:, pos] = states[layer][:, pos]

            handle = blocks[layer].register_forward_pre_hook(put, with_kwargs=True)
            expected[layer, pos] = last_difference(other(base).logits).mean()
            handle.remove()
    found = patch_activations(model, base, source, (3, 5))
    assert difference(found.values, expected) < (1e-10 if family == "gpt2" else 1e-5)


def test_nothing_stays_on_the_model(family):
    model = small(family)
    patch_activations(model, prompts(), prompts(), 3, at="pattern")
    assert not [hook for point in model.hook_points.values() for hook in point.hooks]
    assert all(parameter.grad is None for parameter in model.parameters())

    def fails(logits):
        raise RuntimeError("in the metric")

    with pytest.raises(RuntimeError, match="in the metric"):
        patch_activations(model, prompts(), prompts(), fails, at="z")
    assert not [hook for point in model.hook_points.values() for hook in point.hooks]


def test_a_language_model_and_its_native_model_give_the_same():
    model = LanguageModel("nnzoo/tiny-llama")
    texts = ("The capital of France is", "The capital of Italy is")
    one = patch_activations(model, *texts, (" Paris", " Rome"))
    other = patch_activations(model._model, *(model._model.to_tokens(text) for text in texts), (" Paris", " Rome"))
    assert torch.equal(one.values, other.values)
    assert one.axes == other.axes
    assert one.axes[1].labels[3] == " France"


def test_some_layers_are_those_rows_of_all():
    model, base, source = small("gpt2"), prompts(), prompts()
    whole = patch_activations(model, base, source, 3)
    last = patch_activations(model, base, source, 3, layers=[-1])
    assert difference(last.values, whole.values[1:]) < 1e-10
    assert last.axes[0].labels == ("1",)


def test_restored_is_the_share_of_the_way_between_the_two_runs():
    model, base, source = small("gpt2"), prompts(), prompts()
    found = patch_activations(model, base, source, (3, 5), by="")
    assert difference(found.restored.values, torch.ones(2, dtype=torch.float64)) < 1e-10
    assert difference(found.change.values, found.values - found.base) == 0
    same = patch_activations(model, base, base, (3, 5))
    with pytest.raises(ValueError, match="no way between them"):
        same.restored


def test_what_cannot_be_patched_is_refused():
    model, tiny = small("llama"), LanguageModel("nnzoo/tiny-gpt2")
    two = prompts(), prompts()
    with pytest.raises(KeyError, match=r"no block has 'residual'.*resid_pre"):
        patch_activations(model, *two, 3, at="residual")
    with pytest.raises(ValueError, match="has the axes pos d_model, and no head"):
        patch_activations(model, *two, 3, by="head")
    with pytest.raises(ValueError, match="names an axis twice"):
        patch_activations(model, *two, 3, by="pos pos")
    with pytest.raises(ValueError, match="layer 2 is none of the model's 2"):
        patch_activations(model, *two, 3, layers=[2])
    with pytest.raises(ValueError, match=rf"base has \[3, {POS}\] tokens"):
        patch_activations(model, prompts(), prompts(pos=4), 3)
    with pytest.raises(ValueError, match="2 tokens for 3 prompts"):
        patch_activations(model, *two, [1, 2])
    with pytest.raises(ValueError, match=r"a scalar or \[batch\] = \[3\] for logits, not \[3, 7\]"):
        patch_activations(model, *two, lambda logits: logits[..., 0])
    with pytest.raises(ValueError, match="'Mary and' is 5 tokens"):
        patch_activations(tiny, "a b", "a b", "Mary and")
    with tiny.edit() as edited:
        edited.transformer.h[1].mlp.output[:] = 0
    with pytest.raises(ValueError, match="knows nothing of this model's edits"):
        patch_activations(edited, "a", "a", 1)
