"""Generation is, token for token, that of transformers: greedy and sampled, with every option."""

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

import nnzoo
from checkpoints import copied
from families import N_CTX, PLAIN, folder, ids, ours, prompt, theirs
from nnzoo.generation import generate
from nnzoo.weights import load

N_POS, NEW = 10, 9  # beyond Mistral's window of 7
TOKENS = prompt(3, N_POS)
MASK = torch.ones(3, N_POS, dtype=torch.bool)
MASK[0, :5] = False
MASK[1, :1] = False
TOKENS[0, :5], TOKENS[1, 0] = TOKENS[0, 5], TOKENS[1, 1]  # transformers 5.20 penalises what stands in padding
SEEDS = [0, 1]
EOS = {"eos_token_id": [17, 23, 46, 60, 81]}  # some of them come, at different steps

SAMPLING = {
    "plain": {},
    "top_k=0": {"top_k": 0},
    "top_k=3": {"top_k": 3},
    "top_k=None": {"top_k": None},
    "top_p=0.6": {"top_p": 0.6},
    "min_p=0.2": {"min_p": 0.2},
    "top_h=0.4": {"top_h": 0.4},
    "typical_p=0.5": {"typical_p": 0.5},
    "epsilon_cutoff=0.02": {"epsilon_cutoff": 0.02},
    "eta_cutoff=0.02": {"eta_cutoff": 0.02},
    "temperature=0.4": {"temperature": 0.4},
    "all": {"temperature": 4.0, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
}
SCORES = {
    "repetition_penalty": {"repetition_penalty": 3.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(2, 97, 3)] + [[4, 5], [7, 9]]},
    "sequence_bias": {"sequence_bias": [[[i], -4.0] for i in range(3, 97, 2)]},
    "suppress_tokens": {"suppress_tokens": list(range(4, 97, 3))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(2, 97))},
    "forced_eos_token_id": {"forced_eos_token_id": 7},
    "exponential_decay": {"exponential_decay_length_penalty": (2, 1.9), **EOS},
    "min_new_tokens": {"min_new_tokens": NEW - 1, **EOS},
    "min_length": {"min_length": N_POS + NEW - 1, **EOS},
    "several ends": EOS,
    "several ends, padding": {**EOS, "pad_token_id": 5},
    "all": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 4,
        "renormalize_logits": True,
        **EOS,
    },
}


def by_transformers(family: str, setting: str, seed: int = 0, tokens: Tensor = TOKENS, mask: Tensor = MASK, **options):
    model = theirs(family, setting)  # reading it draws random numbers
    torch.manual_seed(seed)
    options = {"eos_token_id": None, "max_new_tokens": NEW, **options}
    return model.generate(tokens, attention_mask=mask.long(), **options)


def by_nnzoo(family: str, setting: str, seed: int = 0, tokens: Tensor = TOKENS, mask: Tensor = MASK, **options):
    model = ours(family, setting)
    torch.manual_seed(seed)
    return generate(model, tokens, mask, **{"max_new_tokens": NEW, **options})


@cache
def without(family: str, setting: str, seed: int, do_sample: bool) -> Tensor:
    return by_transformers(family, setting, seed, do_sample=do_sample)


def each(cases: dict[str, dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("options", cases.values(), ids=cases.keys())


# --- the same tokens ----------------------------------------------------------------------------------------------


@ids(PLAIN)
@each(SAMPLING)
def test_sampling_draws_the_tokens_of_transformers(family: str, setting: str, options: dict) -> None:
    texts = []
    for seed in SEEDS:
        expected = by_transformers(family, setting, seed, do_sample=True, **options)
        assert torch.equal(by_nnzoo(family, setting, seed, do_sample=True, **options), expected)
        texts.append(expected)
    assert not torch.equal(*texts)  # it is drawn
    if options:
        plain = [without(family, setting, seed, True) for seed in SEEDS]
        assert not all(map(torch.equal, texts, plain)) or options.get("top_k", 1) in (0, None)  # the option matters


@ids(PLAIN)
@each(SCORES)
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_what_changes_the_logits_gives_the_tokens_of_transformers(
    family: str, setting: str, options: dict, do_sample: bool
) -> None:
    expected = by_transformers(family, setting, do_sample=do_sample, **options)
    assert torch.equal(by_nnzoo(family, setting, do_sample=do_sample, **options), expected)
    assert not torch.equal(expected, without(family, setting, 0, do_sample))


def test_what_stands_in_padding_is_not_penalised() -> None:
    fills = [TOKENS.where(MASK, fill) for fill in (17, 85)]
    first, second = (by_nnzoo("gpt2", "default", tokens=tokens, repetition_penalty=3.0) for tokens in fills)
    assert torch.equal(first[:, N_POS:], second[:, N_POS:])
    assert {17, 85} <= set(first[:2, N_POS:].flatten().tolist())  # they would be words of the text


@ids(PLAIN)
def test_rows_end_at_different_steps_and_the_last_ends_the_text(family: str, setting: str) -> None:
    expected = by_transformers(family, setting, do_sample=True, temperature=9.0, top_k=0, pad_token_id=5, **EOS)
    got = by_nnzoo(family, setting, do_sample=True, temperature=9.0, top_k=0, pad_token_id=5, **EOS)
    assert torch.equal(got, expected)
    ends = torch.isin(got[:, N_POS:], torch.tensor(EOS["eos_token_id"])).int().argmax(dim=1)
    assert len(set(ends.tolist())) > 1


@ids(PLAIN)
def test_a_prompt_several_times(family: str, setting: str) -> None:
    options = {"do_sample": True, "num_return_sequences": 3, "repetition_penalty": 1.2, **EOS}
    got = by_nnzoo(family, setting, **options)
    assert torch.equal(got, by_transformers(family, setting, **options))
    assert len(got) == 9
    assert not torch.equal(got[0], got[1])


@pytest.mark.parametrize("prompt_length", [1, 2])
def test_the_forced_second_token_of_a_text(prompt_length: int) -> None:
    tokens, options = TOKENS[:, :prompt_length], {"forced_bos_token_id": 9, "begin_suppress_tokens": list(range(60))}
    mask = torch.ones_like(tokens, dtype=torch.bool)
    expected = by_transformers("llama", "default", tokens=tokens, mask=mask, do_sample=False, **options)
    assert torch.equal(by_nnzoo("llama", "default", tokens=tokens, mask=mask, **options), expected)


def test_invalid_logits_become_valid_ones() -> None:
    model = load(folder("gpt2", "default"), dtype=torch.float64)
    reference = type(theirs("gpt2", "default")).from_pretrained(folder("gpt2", "default"), dtype=torch.float64)
    with torch.no_grad():
        for weights in (model.unembed.weight, reference.lm_head.weight):  # tied: those of token 96 only, not in TOKENS
            weights[96] = torch.inf
    tokens, options = TOKENS.clamp(max=95), {"remove_invalid_values": True, "suppress_tokens": [96]}
    expected = reference.generate(tokens, max_new_tokens=5, do_sample=False, eos_token_id=None, **options)
    assert torch.equal(generate(model, tokens, max_new_tokens=5, **options), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_up_to_the_last_position(family: str) -> None:
    options = {"max_new_tokens": N_CTX + 1 - N_POS, "do_sample": False}
    expected = by_transformers(family, "default", **options)
    assert torch.equal(by_nnzoo(family, "default", **options), expected)
    assert expected.shape[1] == N_CTX + 1  # the last token takes no position: nobody reads it


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_without_a_length_twenty_tokens_come_or_as_many_as_fit() -> None:
    for n_pos in (5, N_CTX - 3):
        tokens, nothing = prompt(1, n_pos), {"max_new_tokens": None}
        mask = torch.ones_like(tokens, dtype=torch.bool)
        expected = by_transformers("gpt2", "default", tokens=tokens, mask=mask, do_sample=False, **nothing)
        assert torch.equal(by_nnzoo("gpt2", "default", tokens=tokens, mask=mask, **nothing), expected)
        assert expected.shape[1] == min(n_pos + 20, N_CTX)


# --- stop strings -------------------------------------------------------------------------------------------------

PROMPT = "The capital of France is"


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("with_end", [False, True], ids=["no end", "end"])
def test_stop_strings_end_where_those_of_transformers_do(family: str, do_sample: bool, with_end: bool) -> None:
    from transformers import AutoModelForCausalLM

    from nnzoo.weights import resolve

    model = nnzoo.LanguageModel(f"nnzoo/tiny-{family}")
    reference = AutoModelForCausalLM.from_pretrained(resolve(f"nnzoo/tiny-{family}"))
    tokens = torch.stack([model.tokenizer(PROMPT, return_tensors="pt")["input_ids"][0]] * 3)
    options = {"do_sample": do_sample, "temperature": 3.0} if do_sample else {"do_sample": False}
    options |= {"max_new_tokens": 20, "eos_token_id": 5 if with_end else None}
    long = reference.generate(tokens, **options)
    text = model.tokenizer.decode(long[0, tokens.shape[1] :])
    stops = [text[len(text) // 2 :][:3], "nowhere"]
    torch.manual_seed(1)
    expected = reference.generate(tokens, stop_strings=stops, tokenizer=model.tokenizer, **options)
    torch.manual_seed(1)
    assert torch.equal(model.generate(tokens, stop_strings=stops, **options), expected)
    if not do_sample:
        assert expected.shape[1] < long.shape[1]


def test_one_stop_string_ends_the_text() -> None:
    model = nnzoo.LanguageModel("nnzoo/tiny-gpt2")
    ids = model.generate(PROMPT, max_new_tokens=20, stop_strings="aris")
    assert model.tokenizer.decode(ids[0]) == f"{PROMPT} Paris"


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        nnzoo.LanguageModel(folder("gpt2", "default")).generate(TOKENS, stop_strings="a")


# --- random numbers -----------------------------------------------------------------------------------------------


def test_a_seed_draws_what_torch_draws_after_that_seed_and_leaves_torch_alone() -> None:
    expected = by_transformers("gpt2", "default", seed=7, do_sample=True)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    got = generate(ours("gpt2", "default"), TOKENS, MASK, max_new_tokens=NEW, do_sample=True, seed=7)
    assert torch.equal(got, expected)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_seed_torch_goes_on_as_after_transformers() -> None:
    by_transformers("gpt2", "default", do_sample=True)
    expected = torch.rand(3)
    by_nnzoo("gpt2", "default", do_sample=True)
    assert torch.equal(torch.rand(3), expected)


# --- what a checkpoint says ---------------------------------------------------------------------------------------

SO_MANY = {"max_new_tokens": NEW}
SAYS = {
    "an instruct model": ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [17, 60]}, SO_MANY),
    "greedy all the same": ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"do_sample": False, **SO_MANY}),
    "nothing of top_k": ({"do_sample": True, "top_k": 2}, {"top_k": None, **SO_MANY}),
    "a length": ({"max_length": N_POS + 5}, {}),
    "another length": ({"max_length": N_POS + 5}, SO_MANY),
    "a length that goes before": ({"max_new_tokens": 4}, {"max_length": N_POS + 7}),
    "a length that does not hold": ({"max_new_tokens": 4}, {"max_new_tokens": None, "max_length": N_POS + 7}),
    "null": ({"temperature": None, "do_sample": True, "top_k": None}, SO_MANY),
    "the end": ({"eos_token_id": [17, 60, 81], "pad_token_id": 3, "min_new_tokens": 3}, SO_MANY),
    "no end": ({"eos_token_id": [17, 60, 81]}, {"eos_token_id": None, **SO_MANY}),
    "a penalty": ({"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 0, **SO_MANY}),
    "what nobody knows": ({"chat_format": "chatml", "num_beams": None, "length_penalty": 0.5}, SO_MANY),
}


@pytest.mark.parametrize(("says", "asked"), SAYS.values(), ids=SAYS.keys())
@pytest.mark.filterwarnings("ignore:max_length=.* has no effect")
def test_what_a_checkpoint_says_holds_as_in_transformers(tmp_path, says: dict, asked: dict) -> None:
    path = copied(tmp_path / "model", "llama")
    (path / "generation_config.json").write_text(json.dumps(says))
    model, reference = nnzoo.LanguageModel(path), LlamaForCausalLM.from_pretrained(path, dtype=torch.float64)
    torch.manual_seed(0)
    expected = reference.generate(TOKENS, attention_mask=MASK.long(), **asked)
    torch.manual_seed(0)
    assert torch.equal(model.generate(TOKENS, attention_mask=MASK, **asked), expected)


def test_a_generation_config_goes_before_the_checkpoint() -> None:
    config, model = GenerationConfig(do_sample=True, top_k=4, max_new_tokens=6), theirs("llama", "default")
    in_nnzoo = nnzoo.LanguageModel(folder("llama", "default"))
    torch.manual_seed(0)
    expected = model.generate(TOKENS, attention_mask=MASK.long(), generation_config=config)
    torch.manual_seed(0)
    got = in_nnzoo.generate(TOKENS, attention_mask=MASK, generation_config=config)
    assert torch.equal(got, expected)


# --- streaming ----------------------------------------------------------------------------------------------------


class Notes(BaseStreamer):
    """A streamer that writes down how it was called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")


def test_a_streamer_is_called_as_by_transformers() -> None:
    notes, expected = Notes(), Notes()
    options = {"do_sample": True, "num_return_sequences": 2, "pad_token_id": 5, **EOS}
    by_transformers("gpt2", "default", streamer=expected, **options)
    by_nnzoo("gpt2", "default", streamer=notes, **options)
    assert notes.calls == expected.calls
    assert len(notes.calls) > 3


def test_a_warning_names_the_line_that_called() -> None:
    code = """
import nnzoo, warnings
with warnings.catch_warnings(record=True) as caught:
    nnzoo.LanguageModel("nnzoo/tiny-gpt2").generate([[5, 6]], max_new_tokens=1, max_length=9, top_k=3)
assert [(w.filename, w.lineno) for w in caught] == [("<string>", 4)] * 2, caught
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what plain greedy decoding costs -----------------------------------------------------------------------------


def test_plain_greedy_decoding_imports_no_transformers() -> None:
    code = """
import sys, nnzoo
model = nnzoo.LanguageModel("nnzoo/tiny-gpt2")
ids = model.generate([[5, 6, 7]], max_new_tokens=3, do_sample=False, num_beams=1, repetition_penalty=1.0)
assert "transformers" not in sys.modules and ids.shape == (1, 6)
model.generate([[5, 6, 7]], max_new_tokens=3, do_sample=True, top_k=0, seed=1)
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_generated_may_be_used_in_a_loss() -> None:
    model = load(folder("llama", "default"), dtype=torch.float32)
    ids = generate(model, TOKENS, MASK, max_new_tokens=3)
    model(ids, return_type="loss").backward()
    assert model.embed.weight.grad is not None


def test_hooks_may_keep_what_they_see_for_a_loss() -> None:
    model, kept = load(folder("llama", "default"), dtype=torch.float32), []
    with model.hooks([("blocks.1.hook_resid_post", lambda value, hook: kept.append(value))]):
        generate(model, TOKENS, MASK, max_new_tokens=2)
    model.unembed(kept[0]).sum().backward()
    assert model.unembed.weight.grad is not None
