"""`nnzoo.debug()`: what goes wrong is named where it first does; what is right passes, and nothing stays behind."""

import math
import threading

import pytest
import torch
from torch import nn

import nnzoo
from families import ids, ours, prompt, settings_of
from nnzoo import LanguageModel
from nnzoo.architectures.hooks import HookPoint, HookShapeError
from nnzoo.debugging import NonFiniteError
from nnzoo.transformer_lens import HookedRootModule, HookedTransformer
from nnzoo.transformer_lens.hook_points import HookPoint as LensPoint
from nnzoo.weights import load

PROMPT = "The capital of France is"
PLAIN_CALL = HookPoint.__call__


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    assert HookPoint.__call__ is PLAIN_CALL
    for hooks in (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks):
        assert not hooks


@pytest.fixture
def model():
    return LanguageModel("nnzoo/tiny-llama", dispatch=True)


def poison(model: LanguageModel, name: str) -> None:
    with torch.no_grad():
        model._model.get_parameter(name).view(-1)[5] = math.nan


def named(error: pytest.ExceptionInfo) -> str:
    return str(error.value).split()[0]


# --- what is right ---------------------------------------------------------------------------------------------------


@ids([(f, s) for f, s in settings_of() if s in ("default", "upcast", "rope=yarn", "attention_bias", "window=3")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sound_models_pass(family, setting, dtype):
    model = ours(family, setting, dtype)
    with nnzoo.debug() as checks:
        checked = model(prompt(2, 9))
    with torch.no_grad():
        torch.testing.assert_close(checked, model(prompt(2, 9)), atol=1e-9 if dtype == torch.float64 else 1, rtol=0.1)
    asked = [point for point in model.hook_points.values() if not point.on_request]
    assert checks.n_checked == len(asked)  # patterns and the statistics of norms too


def test_padding_is_no_fault():
    model, mask = ours("mistral", "window=7"), torch.ones(2, 9, dtype=torch.bool)
    mask[0, :4] = False
    with nnzoo.debug():
        model(prompt(2, 9), attention_mask=mask)


def test_every_way_to_run_a_model_is_checked(model):
    native, runs = model._model, {}
    ids = native.to_tokens(PROMPT)
    with nnzoo.debug() as checks:
        for name, run in {
            "plain": lambda: native(ids),
            "cache": lambda: native.run_with_cache(ids),
            "trace": lambda: traced(model),
            "generation": lambda: nnzoo.generation.generate(native, ids, max_new_tokens=3),
            "from a layer": lambda: native(torch.zeros(1, 5, native.config.d_model), start_at_layer=2),
        }.items():
            before = checks.n_checked
            run()
            runs[name] = checks.n_checked - before
    assert min(runs.values()) > 60
    assert runs["generation"] > 3 * 120


def traced(model: LanguageModel) -> None:
    with model.trace(PROMPT):
        streams = torch.stack([block.output[0] for block in model.model.layers])
        lens = model.lm_head(model.model.norm(streams))  # modules called by themselves, on a value of four axes
        logits = model.output.save()
    assert lens[-1].equal(logits)


def test_a_generation_has_a_run_for_each_step(model):
    with nnzoo.debug() as checks:
        list(model.generate(PROMPT, max_new_tokens=3))
    assert [(run.sizes["pos"][0], run.sizes["key"][0]) for run in checks.runs] == [(5, 5), (1, 6), (1, 7)]
    assert checks.sizes.values[checks.sizes.axes[0].labels.index("key")].tolist() == [5, 6, 7]
    assert "key" in str(checks)
    assert "<table" in checks._repr_html_()


def test_a_model_that_is_loaded_inside_is_checked_and_no_other():
    with nnzoo.debug() as checks:
        model = LanguageModel("nnzoo/tiny-gpt2")
        traced_logits(model)
    assert len(checks.runs) == 1
    assert checks.runs[0].sizes["d_vocab"] == (model.config.d_vocab, "")


def traced_logits(model: LanguageModel) -> torch.Tensor:
    with model.trace(PROMPT):
        logits = model.output.save()
    return logits


def test_other_threads_go_on_as_before(model):
    poison(model, "blocks.1.mlp.down.weight")
    with nnzoo.debug() as checks:
        thread = threading.Thread(target=lambda: model._model(PROMPT))
        thread.start()
        thread.join()
    assert checks.n_checked == 0


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        lambda model: model._model(PROMPT),
        traced_logits,
        lambda model: list(model.generate(PROMPT, max_new_tokens=2)),
    ],
    ids=["plain", "trace", "generation"],
)
def test_the_first_hook_point_with_nan_is_named(model, run):
    poison(model, "blocks.1.mlp.down.weight")
    with pytest.raises(NonFiniteError) as error, nnzoo.debug():
        run(model)
    assert named(error) == "blocks.1.hook_mlp_out"
    assert "before it, blocks.1.mlp.hook_post, was still finite" in str(error.value)
    assert "mlp.down.weight" in str(error.value)
    assert "d_model 0" in str(error.value)
    assert not any(point.hooks for point in model._model.hook_points.values())


def test_patterns_are_looked_at_before_what_is_made_of_them(model):
    poison(model, "blocks.2.attn.q.weight")
    with pytest.raises(NonFiniteError) as error, nnzoo.debug():
        model._model(PROMPT)
    assert named(error) == "blocks.2.attn.hook_q"


def test_what_a_hook_puts_back_is_told_from_what_the_model_computes(model):
    def wreck(value, hook):
        value[:, 2, 1] = math.inf

    with pytest.raises(NonFiniteError, match="what a hook or a trace put back is not") as error, nnzoo.debug():
        model._model.run_with_hooks(PROMPT, fwd_hooks=[("blocks.2.attn.hook_z", wreck)])
    assert named(error) == "blocks.2.attn.hook_z"
    assert "pos 2, head 1" in str(error.value)
    assert "all in head 1" in str(error.value)


def test_scores_may_be_masked_and_nothing_else(model):
    def wreck(value, hook):
        value[:, 1, 3, 0] = math.inf

    with pytest.raises(NonFiniteError, match=r"1 of 100 numbers.*head 1, query 3, key 0"), nnzoo.debug():
        model._model.run_with_hooks(PROMPT, fwd_hooks=[("blocks.0.attn.hook_attn_scores", wreck)])


def test_large_numbers_are_finite(model):
    point = HookPoint("pos")
    with nnzoo.debug():
        point(torch.full((4,), 60000.0, dtype=torch.float16))  # their sum is not


# --- shapes and dtypes -----------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """A user's own module, which forgets a token."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_in, self.hook_out = HookPoint("batch pos d_in"), HookPoint("batch pos d_out")
        self.hook_in.name, self.hook_out.name = "hook_in", "hook_out"

    def forward(self, x, change):
        return self.hook_out(change(self.hook_in(x)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, 1:], r"hook_out holds .*'pos' is 2, but hook_in has 3"),
        (lambda x: x[0], r"hook_out declares .* has 2 axes, not 3"),
        (lambda x: x.double(), r"hook_out holds torch.float64, but hook_in has torch.float32"),
    ],
    ids=["size", "rank", "dtype"],
)
def test_a_mismatch_names_both_hook_points(change, message):
    with pytest.raises(HookShapeError, match=message), nnzoo.debug():
        Toy()(torch.zeros(1, 3, 4), change)


def test_a_size_that_the_config_does_not_have_is_refused():
    model = load("nnzoo/tiny-gpt2")
    model.blocks[1].mlp.hook_post.axes = "batch pos d_model"
    with pytest.raises(HookShapeError, match=r"blocks.1.mlp.hook_post .*'d_model' is 192, but the model's config says"):
        with nnzoo.debug():
            model(PROMPT)


def test_a_context_that_ends_in_an_error_leaves_the_next_one_whole(model):
    with pytest.raises(ZeroDivisionError), nnzoo.debug():
        model._model.run_with_hooks(PROMPT, fwd_hooks=[("blocks.2.attn.hook_z", lambda value, hook: 1 / 0)])
    with nnzoo.debug() as outer, nnzoo.debug() as inner:
        model._model(PROMPT)
    assert (outer.n_checked, len(inner.runs)) == (0, 1)


class ToyOfTransformerLens(HookedRootModule):
    """Its hook points declare no shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.hook_up, self.hook_sum = nn.Linear(3, 4), LensPoint(), LensPoint()
        self.setup()

    def forward(self, x):
        return self.hook_sum(self.hook_up(self.up(x)).sum(dim=0))


def test_toy_models_of_transformer_lens_are_checked_for_what_they_declare():
    toy = ToyOfTransformerLens()
    with nnzoo.debug() as checks:
        toy(torch.zeros(2, 3))
    assert checks.n_checked == 2
    with pytest.raises(NonFiniteError, match=r"hook_up is .* 8 of 8 numbers \[2, 4\], the first at axis 0 0, axis 1 0"):
        with nnzoo.debug():
            toy(torch.full((2, 3), math.nan))


def test_a_hooked_transformer_is_checked():
    model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
    with nnzoo.debug() as checks:
        model.run_with_cache(PROMPT)
    assert checks.n_checked > 60
