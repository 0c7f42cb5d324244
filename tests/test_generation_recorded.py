"""Steps that are recorded and replayed give what the usual ones give; here on the CPU, with a tape for the graph."""

import copy

import pytest
import torch
from torch import Tensor

from families import N_CTX, PLAIN, error, folder, ids, ours, prompt
from nnzoo import LanguageModel
from nnzoo.architectures.attention import ContextLengthError
from nnzoo.architectures.hooks import Edit
from nnzoo.generation import generate
from nnzoo.generation.loop import options_for, run
from nnzoo.generation.recorded import recorded
from nnzoo.weights import load
from recorded_steps import NEW, PADDED, TOKENS, Keeping, agree, decoded, listened, plainly
from tape import taped

pytestmark = pytest.mark.usefixtures("unchecked")  # whole generations: checked calls take twice as long

MODELS = [
    *PLAIN,
    ("gpt2", "inverse_layer_scale"),
    ("llama", "n_kv_heads=1"),
    ("llama", "n_kv_heads=4"),
    ("llama", "attention_bias"),
    ("llama", "rope=linear"),
    ("llama", "rope=dynamic"),
    ("llama", "rope=llama3"),
    ("llama", "rope=yarn"),
    ("mistral", "window=1"),
    ("mistral", "window=3"),
    ("mistral", "window=null"),
]
EOS = (17, 23, 46, 60, 81)
OPTIONS = {
    "greedy": {},
    "ends": {"eos_token_id": EOS},
    "sampled": {"do_sample": True, "seed": 3, "temperature": 1.4},
    "several": {"do_sample": True, "seed": 3, "num_return_sequences": 2, "eos_token_id": EOS},
    "processed": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "eos_token_id": EOS, "min_new_tokens": 20},
}


# --- nobody listens -----------------------------------------------------------------------------------------------


def check(family: str, setting: str, mask: Tensor | None, **options) -> None:
    model = ours(family, setting)
    usual = plainly(decoded, model, mask=mask, **options)
    with taped() as tapes:
        agree(decoded(model, mask=mask, **options), usual)
        assert tapes.made == 1
        assert tapes.replays == 1 + usual.steps - 2  # to compare; the prompt and the first step run as usual


@ids(MODELS)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
def test_recorded_steps_are_the_usual_ones(family, setting, mask):
    check(family, setting, mask)


@ids(PLAIN)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_tokens_are_chosen_from_recorded_steps_as_from_others(family, setting, options):
    check(family, setting, PADDED, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@ids(PLAIN)
def test_recorded_steps_have_the_dtype_of_the_model(family, setting, dtype):
    model = ours(family, setting, dtype)
    usual = plainly(decoded, model, mask=PADDED, max_new_tokens=18)
    with taped() as tapes:
        found = decoded(model, mask=PADDED, max_new_tokens=18)
    assert tapes.replays and found.logits[-1].dtype == dtype
    same = (found.ids == usual.ids)[:, TOKENS.shape[1] :].cumprod(dim=1).sum(dim=1)  # tokens until a near tie
    for i, (a, b) in enumerate(zip(found.logits, usual.logits, strict=True)):
        if (alike := same >= i).any():
            assert error(a[alike], b[alike]) < {torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]


def test_stop_strings_end_recorded_steps():
    model = load("nnzoo/tiny-gpt2")
    tokens, options = (
        model.to_tokens("The capital of France is"),
        {"max_new_tokens": 24, "stop_strings": ["the year 1444"]},
    )
    usual = plainly(generate, model, tokens, **options)
    with taped() as tapes:
        assert torch.equal(generate(model, tokens, **options), usual) and tapes.replays
    assert usual.shape[1] < tokens.shape[1] + 24


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
def test_steps_are_recorded_again_when_the_cache_has_grown(family, mask):
    model = ours(family, "n_ctx=256")  # Mistral's window is 3, and what has left it leaves the cache too
    usual = plainly(decoded, model, mask=mask, max_new_tokens=150)
    with taped() as tapes:
        agree(decoded(model, mask=mask, max_new_tokens=150), usual)
    assert tapes.made == (3 if family == "mistral" else 2)


def test_a_prompt_of_one_token_and_a_text_as_long_as_the_context():
    model, tokens = ours("gpt2", "default"), prompt(1, 1)
    usual = plainly(decoded, model, tokens, max_new_tokens=N_CTX - 1)
    with taped() as tapes:
        agree(decoded(model, tokens, max_new_tokens=N_CTX - 1), usual)
    assert tapes.replays == usual.steps - 1


def test_a_text_longer_than_the_context_is_refused_as_ever():
    model, tokens = ours("gpt2", "default"), prompt(1, N_CTX - 8)
    with taped() as tapes, torch.no_grad(), pytest.raises(ContextLengthError, match="65 tokens"):
        cache = model.new_cache()
        steps = recorded(model, cache, NEW)
        while True:
            tokens = steps.next_logits(model, tokens, None, cache).argmax(dim=-1)[:, None]
    assert tapes.replays == 8 and cache.length == N_CTX


def test_padding_behind_a_prompt_is_hidden_too():
    model, mask = ours("llama", "default"), PADDED.flip(1)
    usual = plainly(decoded, model, mask=mask)
    with taped():
        agree(decoded(model, mask=mask), usual)


# --- somebody listens ---------------------------------------------------------------------------------------------


@ids(PLAIN)
@pytest.mark.parametrize(
    ("places", "made"),
    [
        (["blocks.1.attn.hook_pattern"], 2),
        (["blocks.0.hook_resid_pre", "blocks.2.hook_mlp_out"], 3),
        ([f"blocks.{i}.attn.hook_z" for i in range(3)], 2),
        (["unembed.hook_out"], 1),
        (["ln_final.hook_scale", "blocks.2.hook_resid_post"], 1),
        (["hook_embed"], 0),
    ],
)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
def test_a_listener_hears_what_it_hears_in_usual_steps(family, setting, places, made, mask):
    model = ours(family, setting)
    usual, expected = plainly(listened, model, places, mask=mask)
    with taped() as tapes:
        found, heard = listened(model, places, mask=mask)
    agree(found, usual)
    assert [name for name, _ in heard] == [name for name, _ in expected]
    assert all(error(a, b) < 1e-6 for (_, a), (_, b) in zip(heard, expected, strict=True))
    assert tapes.made == made


def test_what_a_listener_changes_is_gone_on_with():
    model = ours("llama", "default")

    def halve(value: Tensor, hook: object) -> Tensor:
        return value / 2

    with model.hooks([("blocks.1.hook_resid_mid", halve)]):
        usual = plainly(decoded, model)
        with taped() as tapes:
            agree(decoded(model), usual)
    assert not torch.equal(usual.ids, decoded(model).ids)
    assert tapes.replays > NEW


def test_a_listener_may_come_and_go():
    model, point = ours("gpt2", "default"), ours("gpt2", "default").hook_points["blocks.1.hook_resid_pre"]

    class Changing(Keeping):
        def choose(self, logits: Tensor) -> Tensor:
            point.hooks[:] = [Edit(lambda value, hook: value * 1.5)] if self.steps % 7 in (3, 4, 5) else []
            return super().choose(logits)

    def decoded_with_changes() -> Keeping:
        decoder = Changing(options_for(model, TOKENS, None, {"max_new_tokens": NEW}, {}), TOKENS)
        with torch.no_grad():
            run(model, decoder)
        point.hooks.clear()
        return decoder

    usual = plainly(decoded_with_changes)
    with taped() as tapes:
        agree(decoded_with_changes(), usual)
    assert tapes.made == 1 + 2  # without the listener, and around it


@pytest.mark.parametrize("how", ["hook", "module", "forward"])
def test_what_a_recording_would_not_hear_of_stays_outside(how, monkeypatch):
    model, calls = copy.deepcopy(ours("gpt2", "default")), []
    mlp = model.blocks[1].mlp

    class Other(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return mlp(x) / len(calls)

    if how == "hook":
        mlp.register_forward_hook(lambda module, args, out: calls.append(1) or out / len(calls))
    elif how == "module":
        model.blocks[1].mlp = Other()
    else:
        forward = mlp.forward
        mlp.forward = lambda x: calls.append(1) or forward(x) / len(calls)
    usual = plainly(decoded, model)
    calls.clear()
    with taped() as tapes:
        agree(decoded(model), usual)
    assert len(calls) == NEW and tapes.made == 2


@pytest.mark.local("what is recorded is counted in this process")
@pytest.mark.parametrize("places", [["blocks.1"], ["blocks.0", "blocks.2"]], ids=str)
def test_a_trace_reads_and_changes_some_blocks_of_recorded_steps(places):
    model = LanguageModel(folder("gpt2", "default"))

    def traced() -> tuple[Tensor, list[Tensor]]:
        values = []
        with model.generate(TOKENS[:1], max_new_tokens=NEW, min_new_tokens=NEW) as tracer:
            for _ in tracer.iter[:]:
                for place in places:
                    tracer.put(f"{place}.hook_resid_mid", tracer.read(f"{place}.hook_resid_mid") * 1.25)
                    values.append(tracer.read(f"{place}.attn.hook_pattern").save())
            ids = tracer.result.save()
        return ids, values

    ids, values = plainly(traced)
    with taped() as tapes:
        found, patterns = traced()
    assert torch.equal(found, ids)
    assert all(error(a, b) < 1e-6 for a, b in zip(patterns, values, strict=True))
    assert tapes.made == len(places) + 1 and tapes.replays == tapes.made * (NEW - 1)


@pytest.mark.local("what is recorded is counted in this process")
@pytest.mark.parametrize("look", [4, 9])
def test_a_look_in_the_middle_of_a_recorded_step(look):
    model = LanguageModel(folder("llama", "default"))

    def traced() -> tuple[Tensor, Tensor, float]:
        with model.generate(max_new_tokens=NEW, min_new_tokens=NEW) as tracer:
            with tracer.invoke(TOKENS[:1, 3:]):
                with tracer.iter[look]:
                    seen = float(tracer.read("blocks.1.hook_resid_mid").norm())
                    tracer.put("blocks.1.hook_resid_post", tracer.read("blocks.1.hook_resid_post") * (1 + seen / 100))
                first = tracer.result.save()
            with tracer.invoke(TOKENS[1:2]):
                with tracer.iter[look + 2 :]:
                    tracer.put("blocks.2.hook_mlp_out", tracer.read("blocks.2.hook_mlp_out") * 0)
                second = tracer.result.save()
        return first, second, seen

    usual = plainly(traced)
    with taped() as tapes:
        found = traced()
    assert torch.equal(found[0], usual[0]) and torch.equal(found[1], usual[1])
    assert found[2] == pytest.approx(usual[2]) and tapes.replays > NEW
