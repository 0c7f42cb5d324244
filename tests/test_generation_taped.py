"""On the CPU steps run from tapes: the same kernels, and so the same numbers to the last bit."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from families import N_CTX, PLAIN, folder, ids, ours, prompt
from nnzoo import LanguageModel
from nnzoo.architectures import hooked_model, products
from nnzoo.architectures.attention import ContextLengthError
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import Edit
from nnzoo.generation import generate, taped
from nnzoo.generation.loop import options_for, run
from nnzoo.generation.recorded import WORTH, recorded
from nnzoo.generation.steps import Listeners
from nnzoo.generation.taped import KEPT, MUCH, Taped
from nnzoo.generation.tapes import Tape
from recorded_steps import NEW, PADDED, TOKENS, Keeping, counted, decoded, listened, plainly
from test_generation_recorded import MODELS, OPTIONS

pytestmark = pytest.mark.usefixtures("unchecked")  # whole generations: checked calls take twice as long


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests have had the same models."""
    monkeypatch.setattr(taped, "_kept", weakref.WeakKeyDictionary())


def same(a: Keeping, b: Keeping) -> None:
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(torch.stack(a.logits), torch.stack(b.logits))


def check(model: HookedModel, tokens: Tensor = TOKENS, mask: Tensor | None = None, *, made: int = 1, **options) -> None:
    usual = plainly(decoded, model, tokens, mask, **options)
    with counted() as tapes:
        same(decoded(model, tokens, mask, **options), usual)
    assert tapes.made == made
    assert tapes.replays == usual.steps - 1 - made  # the prompt runs as usual, and the step before one is written


# --- nobody listens -----------------------------------------------------------------------------------------------


@ids(MODELS)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
def test_taped_steps_are_the_usual_ones(family, setting, mask):
    check(ours(family, setting), mask=mask)


@ids(PLAIN)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_tokens_are_chosen_from_taped_steps_as_from_others(family, setting, options):
    check(ours(family, setting), mask=PADDED, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@ids(PLAIN)
def test_taped_steps_have_the_dtype_of_the_model(family, setting, dtype):
    check(ours(family, setting, dtype), mask=PADDED)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("mask", [None, PADDED, PADDED.flip(1)], ids=["whole", "padded", "padded behind"])
def test_a_tape_goes_on_when_the_cache_has_grown(family, mask):
    check(ours(family, "n_ctx=256"), mask=mask, max_new_tokens=150)


@pytest.mark.parametrize("tokens", [prompt(1, 1), prompt(1, 30), prompt(7, 3)], ids=["one", "long", "many"])
def test_prompts_of_other_sizes(tokens):
    check(ours("llama", "default"), tokens, max_new_tokens=N_CTX - tokens.shape[1])


def test_a_text_longer_than_the_context_is_refused_as_ever():
    model, tokens = ours("gpt2", "default"), prompt(1, N_CTX - 8)
    with torch.no_grad(), counted() as tapes, pytest.raises(ContextLengthError, match="65 tokens"):
        cache = model.new_cache()
        steps = recorded(model, cache, NEW)
        while True:
            tokens = steps.next_logits(model, tokens, None, cache).argmax(dim=-1)[:, None]
    assert tapes.replays == 7 and cache.length == N_CTX


# --- somebody listens ---------------------------------------------------------------------------------------------


@ids(PLAIN)
@pytest.mark.parametrize(
    ("places", "made"),
    [
        (["blocks.1.attn.hook_pattern"], 2),
        (["blocks.0.hook_resid_pre", "blocks.2.hook_mlp_out"], 3),
        (["unembed.hook_out"], 1),
        (["ln_final.hook_scale", "blocks.2.hook_resid_post"], 1),
        (["hook_embed"], 0),
    ],
)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
def test_a_listener_hears_what_it_hears_in_usual_steps(family, setting, places, made, mask):
    model = ours(family, setting)
    usual, expected = plainly(listened, model, places, mask=mask)
    with counted() as tapes:
        found, heard = listened(model, places, mask=mask)
    same(found, usual)
    assert [name for name, _ in heard] == [name for name, _ in expected]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(heard, expected, strict=True))
    assert tapes.made == made
    assert not any(value.is_inference() for _, value in heard)


def test_what_a_listener_changes_is_gone_on_with():
    model = ours("llama", "default")
    with model.hooks([("blocks.1.hook_resid_mid", lambda value, hook: value / 2)]):
        usual = plainly(decoded, model)
        with counted() as tapes:
            same(decoded(model), usual)
    assert not torch.equal(usual.ids, decoded(model).ids)
    assert tapes.replays > NEW


class Changing(Keeping):
    """Does something to the model before some of its steps."""

    def choose(self, logits: Tensor) -> Tensor:
        self.change(self.steps)
        return super().choose(logits)


def changing(model: HookedModel, change) -> Keeping:
    decoder = Changing(options_for(model, TOKENS, None, {"max_new_tokens": NEW}, {}), TOKENS)
    decoder.change = change
    with torch.no_grad():
        run(model, decoder)
    return decoder


def test_a_listener_may_come_and_go():
    model, point = ours("gpt2", "default"), ours("gpt2", "default").hook_points["blocks.1.hook_resid_pre"]

    def change(step: int) -> None:
        point.hooks[:] = [Edit(lambda value, hook: value * 1.5)] if step % 7 in (3, 4, 5) else []

    try:
        usual = plainly(changing, model, change)
        with counted() as tapes:
            same(changing(model, change), usual)
    finally:
        point.hooks.clear()
    assert tapes.made == 1 + 2  # without the listener, and around it


def _replaced_parameter(model: HookedModel) -> None:
    model.blocks[1].ln1.weight = nn.Parameter(model.blocks[1].ln1.weight * 1.5)


def _replaced_memory(model: HookedModel) -> None:
    model.unembed.weight.data = model.unembed.weight.data.flip(0)


def _written(model: HookedModel) -> None:
    model.unembed.weight.data.mul_(-1)


def _replaced_module(model: HookedModel) -> None:
    other = copy.deepcopy(model.blocks[2].mlp)
    other.down.weight.data.mul_(2)
    model.blocks[2].mlp = other


@pytest.mark.parametrize("how", [_replaced_parameter, _replaced_memory, _written, _replaced_module])
@pytest.mark.parametrize(("family", "setting"), [("gpt2", "untied"), ("llama", "n_kv_heads=1")])
def test_a_model_that_changes_in_the_middle_of_a_generation(family, setting, how):
    def run_changed() -> Keeping:
        model = copy.deepcopy(ours(family, setting))
        return changing(model, lambda step: how(model) if step == 9 else None)

    usual = plainly(run_changed)
    with counted() as tapes:
        same(run_changed(), usual)
    assert not torch.equal(usual.ids, decoded(ours(family, setting)).ids)
    assert tapes.replays > NEW // 2


@pytest.mark.local("what is taped is counted in this process")
@pytest.mark.parametrize("look", [1, 2, 3, 4])  # among them the step that is taped
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_look_in_the_middle_of_a_step(family, look):
    model = LanguageModel(folder(family, "default"))

    def traced() -> tuple[Tensor, list[float], Tensor]:
        seen = []
        with model.generate(TOKENS[:2], max_new_tokens=NEW, min_new_tokens=NEW) as tracer:
            for step in tracer.iter[:]:
                norm = tracer.read("blocks.1.hook_resid_mid").norm()
                if step % 5 == look:
                    seen.append(float(norm))
                    tracer.put("blocks.1.hook_mlp_out", tracer.read("blocks.1.hook_mlp_out") * (1 + seen[-1] / 100))
                if step == 20:
                    logits = tracer.read("unembed.hook_out").save()
            ids = tracer.result.save()
        return ids, seen, logits

    usual = plainly(traced)
    with counted() as tapes:
        found = traced()
    assert torch.equal(found[0], usual[0]) and torch.equal(found[2], usual[2])
    assert found[1] == usual[1] and len(found[1]) == 6
    assert tapes.replays > NEW // 2


# --- where nothing is taped, or it fails --------------------------------------------------------------------------


def test_a_step_of_many_numbers_is_not_taped():
    model = ours("gpt2", "default")
    rows = MUCH // model.config.d_model + 1
    with counted() as tapes:
        decoded(model, prompt(rows, 2), max_new_tokens=WORTH)
        assert not tapes.made
        decoded(model, prompt(rows - 1, 2), max_new_tokens=WORTH)
        assert tapes.made == 1


@pytest.mark.parametrize("listening", [[], ["blocks.1.hook_resid_pre"]], ids=["nobody", "somebody"])
@pytest.mark.parametrize("when", [0, 1])
def test_a_tape_that_gives_other_numbers_is_warned_of_and_does_without(listening, when):
    if when and not listening:
        pytest.skip("there is one stretch")
    model, number, written = ours("mistral", "window=7"), 0, Tape.written

    def wrong(tape: Tape, work):
        nonlocal number
        output, calls = written(tape, work)
        number += 1
        return output, [*calls, lambda: output.mul_(1.1)] if number > when else calls

    usual, _ = plainly(listened, model, listening, mask=PADDED)
    with patch.object(Tape, "written", wrong), pytest.warns(UserWarning, match="other numbers, off by") as caught:
        same(listened(model, listening, mask=PADDED)[0], usual)
    assert len(caught) == 1 and caught[0].filename == decoded.__code__.co_filename


def test_a_step_that_cannot_be_taped_runs_as_usual(monkeypatch):
    model, linear = ours("llama", "default"), hooked_model.linear
    monkeypatch.setattr(hooked_model, "linear", lambda x, *weights: linear(x, *weights) * (x.sum().item() > -1e9))
    usual = plainly(decoded, model)
    with pytest.warns(UserWarning, match="since recording them failed: aten.item"):
        same(decoded(model), usual)


# --- from one generation to the next ------------------------------------------------------------------------------


def test_what_was_written_serves_the_next_generation():
    model = ours("llama", "default")
    with counted() as tapes:
        same(decoded(model), decoded(model))
    assert (tapes.made, tapes.replays) == (1, 2 * NEW - 3)  # the prompts, and the first step
    check(model, made=0)
    check(model, prompt(3, 17), made=0)
    check(model, prompt(2, 17))
    check(model, mask=PADDED)
    check(model, mask=PADDED.flip(1), made=0)
    with products.chosen_by_pytorch():
        check(model)


def test_what_was_written_without_a_listener_serves_none_with_one():
    model = ours("gpt2", "default")
    point = model.hook_points["blocks.1.hook_resid_pre"]
    decoded(model)
    try:
        point.hooks[:] = [Edit(lambda value, hook: value * 1.5)]
        same(decoded(model), plainly(decoded, model))
    finally:
        point.hooks.clear()


def test_a_listener_may_let_another_one_come():
    model = ours("gpt2", "default")
    early, late = (model.hook_points[f"blocks.{n}.hook_resid_pre"] for n in (0, 1))

    def generated() -> Tensor:
        late.hooks.clear()
        steps = iter(range(NEW))
        turned = Edit(lambda value, hook: value.flip(-1))
        early.hooks[:] = [Edit(lambda value, hook: late.hooks.append(turned) if next(steps) == 9 else None)]
        return generate(model, TOKENS, max_new_tokens=NEW)

    try:
        usual = plainly(generated)
        assert torch.equal(generated(), usual)
    finally:
        early.hooks.clear()
        late.hooks.clear()
    assert not torch.equal(generate(model, TOKENS, max_new_tokens=NEW), usual)


def test_generations_at_the_same_time_have_tapes_of_their_own():
    model = ours("gpt2", "default")
    usual = plainly(decoded, model)
    inner: list[Keeping] = []

    def change(step: int) -> None:
        if step == 12:
            inner.append(decoded(model))

    with counted() as tapes:
        outer = changing(model, change)
    same(outer, usual)
    same(inner[0], usual)
    assert tapes.made == 2
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(decoded, [model] * 8):
            same(found, usual)


def test_weights_that_have_moved_are_read_where_they_are():
    model = copy.deepcopy(ours("gpt2", "default"))
    decoded(model)
    model.float()
    with counted() as tapes:
        same(decoded(model), plainly(decoded, model))
    assert tapes.made == 1
    model.blocks[0].mlp.up.weight.data.mul_(3)  # in place: the tape has that memory
    with counted() as tapes:
        same(decoded(model), plainly(decoded, model))
    assert tapes.made == 0


def test_few_tapes_are_kept():
    model = ours("gpt2", "default")
    for rows in range(1, KEPT + 4):
        decoded(model, prompt(rows, 4))
        assert len(taped._kept[Listeners.of(model)]) == min(rows, KEPT)
    with counted() as tapes:
        decoded(model, prompt(KEPT + 3, 4))
        assert not tapes.made
        decoded(model, prompt(1, 4))
        assert tapes.made == 1


@pytest.mark.parametrize("how", ["done", "stopped", "failed"])
def test_a_generation_keeps_nothing_of_itself_and_the_model_is_not_kept(how):
    model = copy.deepcopy(ours("gpt2", "default"))
    gone = [weakref.ref(model), weakref.ref(model.unembed.weight)]
    init = Taped.__init__

    def noted(self, model, cache, **kwargs) -> None:
        init(self, model, cache, **kwargs)
        gone.extend([weakref.ref(self), weakref.ref(cache), weakref.ref(cache.layers[0])])

    def stop(step: int) -> None:
        if step == 9:
            raise KeyError("stopped")

    gc.collect()
    gc.disable()
    try:
        with patch.object(Taped, "__init__", noted):
            if how == "done":
                decoded(model)
            elif how == "stopped":
                with pytest.raises(KeyError, match="stopped"):
                    changing(model, stop)
            else:
                with patch.object(Tape, "written", side_effect=RuntimeError("no")), pytest.warns(match="failed: no"):
                    decoded(model)
        if how != "done":
            gc.collect()  # of an error's frames
        assert len(gone) == 5 and not any(one() is not None for one in gone[2:])
        (kept,) = taped._kept[Listeners.of(model)]
        assert not kept.is_taken and kept.common.way is None
        assert not any(x.numel() for x in kept.common.tape._found) and not kept.common.tape._live
        del model, kept
        assert not any(one() is not None for one in gone)
    finally:
        gc.enable()
