"""What generation refuses, and a decoder by itself: stopped half-way, copied, run again."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

import nnzoo
from families import N_CTX, folder, ours, prompt
from nnzoo.architectures.attention import ContextLengthError
from nnzoo.generation import Decoder, OptionError, Options, adopt, fork, generate
from nnzoo.generation.refusals import REFUSED, REFUSED_IF_ASKED, WITHOUT_EFFECT

D_VOCAB, N_POS = 20, 6
TOKENS = torch.arange(2 * N_POS).reshape(2, N_POS)


def options(checkpoint: dict | None = None, **asked: Any) -> Options:
    return Options.of(asked, checkpoint or {}, prompt_length=N_POS, n_ctx=N_CTX, d_vocab=D_VOCAB)


# --- refusals -----------------------------------------------------------------------------------------------------

REFUSALS = {
    "max_new_tokens=0": "max_new_tokens=0 is no number of tokens: it is a whole number, 1 or more",
    "max_new_tokens=2.5": "max_new_tokens=2.5 is no number of tokens",
    "max_new_tokens=True": "max_new_tokens=True is no number of tokens",
    "min_new_tokens=-1": "min_new_tokens=-1 is no number of tokens",
    "max_length=6": "max_length=6 counts the prompt, which has 6 tokens: .* Pass max_new_tokens",
    "max_length=0": "max_length=0 is no number of tokens",
    "do_sample='yes'": "do_sample='yes' will not do: it is True or False",
    "do_sample=True, temperature=0": "temperature=0 will not do: .* pass do_sample=False",
    "do_sample=True, temperature=-1.0": "temperature=-1.0 will not do: it is a number above 0",
    "do_sample=True, temperature=float('nan')": "temperature=nan will not do",
    "do_sample=True, temperature='hot'": "temperature='hot' will not do",
    "do_sample=True, top_k=-1": "top_k=-1 will not do: it is a whole number, 0",
    "do_sample=True, top_k=2.0": "top_k=2.0 will not do",
    "do_sample=True, top_p=1.1": "top_p=1.1 will not do: it is a number from 0 to 1",
    "do_sample=True, min_p=-0.1": "min_p=-0.1 will not do",
    "do_sample=True, typical_p=0": "typical_p=0 will not do",
    "do_sample=True, epsilon_cutoff=2": "epsilon_cutoff=2 will not do",
    "repetition_penalty=0": "repetition_penalty=0 will not do: it is a number above 0; 1.0 changes nothing",
    "no_repeat_ngram_size=-2": "no_repeat_ngram_size=-2 will not do",
    "num_return_sequences=0": "num_return_sequences=0 will not do",
    "num_return_sequences=2": "num_return_sequences=2 without do_sample=True gives 2 times the same text",
    "eos_token_id=20": "eos_token_id=.20,.: 20 is no token id, which run from 0 to 19; eos_token_id=None does without",
    "eos_token_id=[3, -1]": "-1 is no token id",
    "eos_token_id='</s>'": "'</s>' is no token id",
    "pad_token_id=-1": "pad_token_id=-1: -1 is no token id",
    "pad_token_id=[1]": "pad_token_id=.1.: .1. is no token id",
    "suppress_tokens=[99]": "99 is no token id",
    "suppress_tokens=9": "suppress_tokens=9 will not do: it is a list",
    "bad_words_ids=[]": "bad_words_ids=.* will not do: it is lists of token ids, none empty",
    "bad_words_ids=[[]]": "none empty",
    "bad_words_ids=[3]": "it is a list of lists",
    "stop_strings=['']": "stop_strings=.* will not do: it is a text, or several, none empty",
    "stop_strings=3": "stop_strings=3 will not do",
    "seed='x'": "seed='x' will not do",
    "exponential_decay_length_penalty=(3, 1.5)": "there is no eos_token_id",
    "num_beams=4": "num_beams=4 is not implemented: there is no beam search",
    "output_scores=True": "output_scores=True is not implemented: generate.. gives the ids",
    "return_dict_in_generate=True": "return_dict_in_generate=True is not implemented",
    "logits_processor=[print]": "logits_processor=.* is not implemented",
    "max_tokens=3": "no option 'max_tokens'; did you mean max_new_tokens",
    "zzz=3": "no option 'zzz'; it has bad_words_ids, ",
}


@pytest.mark.parametrize(("asked", "complaint"), REFUSALS.items(), ids=REFUSALS.keys())
def test_what_cannot_be_followed_is_refused_with_what_to_do(asked: str, complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        options(**eval(f"dict({asked})"))


def test_a_prompt_and_new_tokens_beyond_the_context_are_refused_before_anything_runs() -> None:
    model, ran = ours("llama", "default"), []
    with model.hooks([("hook_embed", lambda value, hook: ran.append(hook))]):
        with pytest.raises(
            ContextLengthError, match=r"60 tokens of prompt and 6 new ones.* 64 positions.* for 5: pass"
        ):
            generate(model, prompt(1, 60), max_new_tokens=6)
        with pytest.raises(ContextLengthError, match="70 tokens of prompt, but the model has 64 positions: shorten it"):
            generate(model, prompt(1, 70), max_new_tokens=6)
    assert not ran


def test_padding_of_every_row_takes_no_room_in_the_context() -> None:
    tokens = prompt(2, 70)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, :8] = False
    mask[1, :20] = False
    assert generate(ours("llama", "default"), tokens, mask, max_new_tokens=3).shape == (2, 73)
    with pytest.raises(ContextLengthError, match="62 tokens of prompt and 4 new ones"):
        generate(ours("llama", "default"), tokens, mask, max_new_tokens=4)


def test_a_stretched_rotary_embedding_is_room_for_more() -> None:
    assert generate(ours("llama", "rope=linear"), prompt(1, 100), max_new_tokens=2).shape == (1, 102)


def test_nothing_is_asked_by_what_asks_for_nothing() -> None:
    nothing = {name: neutral[0] for name, (neutral, _) in (REFUSED | REFUSED_IF_ASKED).items() if neutral}
    assert options(**nothing) == options(**dict.fromkeys(nothing)) == options()
    assert options(use_cache=False, cache_implementation="static") == options()


def test_every_name_that_transformers_knows_is_an_option_or_refused_or_without_effect() -> None:
    notes = {"transformers_version", "_from_model_config", "_original_object_hash", "_commit_hash"}
    for_helpers = {  # they say nothing unless a helper is asked for, which is refused
        *"is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold".split(),
        *"max_matching_ngram_size assistant_lookbehind target_lookbehind assistant_ensemble_weight".split(),
        *"speculation_type continuous_batching_config".split(),
    }
    known = options().__dict__.keys() | {"max_length", "min_length"} | REFUSED.keys() | REFUSED_IF_ASKED.keys()
    assert vars(GenerationConfig()).keys() - known - WITHOUT_EFFECT - notes <= for_helpers


@pytest.mark.parametrize("says", [{"num_beams": 4}, {"guidance_scale": 2.0}, {"return_dict_in_generate": True}])
def test_what_a_checkpoint_asks_for_and_is_not_there_is_refused_until_asked_otherwise(says: dict) -> None:
    (name,) = says
    with pytest.raises(OptionError, match=rf"generation_config.json asks for {name}=.*; pass {name}="):
        options(says)
    assert options(says, **{name: REFUSED[name][0][0]}) == options()


def test_what_a_checkpoint_says_of_sampling_is_not_looked_at_where_nothing_is_sampled() -> None:
    assert options({"temperature": 0.0, "top_p": None}).do_sample is False
    with pytest.raises(OptionError, match="temperature"):
        options({"temperature": 0.0}, do_sample=True)


@pytest.mark.parametrize("says", [{"eos_token_id": [3, 900], "pad_token_id": -1}, {"eos_token_id": [3]}])
def test_ends_of_a_checkpoint_that_are_no_tokens_count_as_not_there(says: dict) -> None:
    assert (options(says).eos_token_id, options(says).padding) == ((3,), 3)


def test_max_new_tokens_goes_before_max_length_and_says_so() -> None:
    model = nnzoo.LanguageModel(folder("gpt2", "default"))
    with pytest.warns(UserWarning, match="max_length=12 has no effect: max_new_tokens=3"):
        ids = model.generate(prompt(1, 8), max_new_tokens=3, max_length=12)
    assert ids.shape == (1, 11)


def test_options_of_sampling_without_sampling_say_so() -> None:
    model = nnzoo.LanguageModel(folder("gpt2", "default"))
    with pytest.warns(UserWarning, match=r"temperature=0.5, top_k=3 without effect: .* do_sample=True"):
        model.generate(prompt(1, 8), max_new_tokens=1, temperature=0.5, top_k=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options({"temperature": 0.5}, top_p=1.0, temperature=None)


# --- a decoder by itself ------------------------------------------------------------------------------------------

SAMPLED = {"do_sample": True, "top_k": 0, "max_new_tokens": 8}


def logits(step: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, D_VOCAB, generator=torch.Generator().manual_seed(step))


def run(decoder: Decoder, until: int = 100) -> Tensor:
    while not decoder.done and decoder.steps < until:
        decoder.choose(logits(decoder.steps, len(decoder.tokens)))
    return decoder.ids


COPIED = {
    "greedy": {"max_new_tokens": 8, "eos_token_id": [4, 9, 11]},
    "a seed": {**SAMPLED, "seed": 3},
    "ends": {**SAMPLED, "seed": 3, "eos_token_id": [4, 9, 11, 12], "pad_token_id": 0},
    "penalties": {**SAMPLED, "seed": 3, "repetition_penalty": 1.5, "no_repeat_ngram_size": 1, "min_new_tokens": 5},
    "several": {**SAMPLED, "seed": 3, "num_return_sequences": 3},
}


@pytest.mark.parametrize("asked", COPIED.values(), ids=COPIED.keys())
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_copy_goes_on_as_the_decoder_itself(asked: dict, at: int) -> None:
    expected = run(Decoder(options(**asked), TOKENS))
    decoder = Decoder(options(**asked), TOKENS)
    run(decoder, until=at)
    steps = decoder.steps
    first, second = decoder.copy(), decoder.copy()
    assert torch.equal(run(first), expected)
    assert decoder.steps == steps  # the copies went on by themselves
    assert torch.equal(run(decoder), expected)
    assert torch.equal(run(second), expected)


def test_a_decoder_with_stop_strings_is_copied_too() -> None:
    tokenizer = nnzoo.LanguageModel("nnzoo/tiny-gpt2").tokenizer
    decoder = Decoder(Options(max_new_tokens=8, stop_strings=("aris",)), TOKENS, tokenizer=tokenizer)
    copy, paris = decoder.copy(), tokenizer.encode(" Paris")[-1]
    wanted = torch.nn.functional.one_hot(torch.tensor([paris, paris]), len(tokenizer)).float()
    copy.choose(wanted)
    assert (copy.done, decoder.done) == (True, False)


def test_a_forked_decoder_draws_what_torch_would_draw_and_torch_can_go_on_from_there() -> None:
    torch.manual_seed(5)
    expected, after = run(Decoder(options(**SAMPLED), TOKENS)), torch.rand(2)
    torch.manual_seed(5)
    decoder = Decoder(options(**SAMPLED), TOKENS, generator=(generator := fork()))
    copy = decoder.copy()
    assert torch.equal(run(decoder), expected)
    assert torch.equal(run(copy), expected)
    assert not torch.equal(torch.random.get_rng_state(), generator.get_state())
    adopt(generator)
    assert torch.equal(torch.rand(2), after)


def test_a_decoder_that_draws_from_the_global_generator_is_not_copied() -> None:
    with pytest.raises(ValueError, match=r"global generator.* generator=fork\(device\)"):
        Decoder(options(**SAMPLED), TOKENS).copy()


def test_when_all_is_done_padding_comes_and_the_ids_stay() -> None:
    decoder = Decoder(options(max_new_tokens=2, pad_token_id=7), TOKENS)
    ids = run(decoder).clone()
    assert decoder.choose(logits(9)).tolist() == [7, 7]
    assert torch.equal(decoder.ids, ids)
    assert decoder.steps == 2


def test_logits_are_left_as_they_are_and_keep_no_graph() -> None:
    given = logits(0).requires_grad_()
    before = given.detach().clone()
    asked = {**SAMPLED, "temperature": 0.5, "repetition_penalty": 2.0, "bad_words_ids": [[3]], "top_p": 0.5}
    new = Decoder(options(**asked), TOKENS).choose(given)
    assert torch.equal(given.detach(), before)
    assert not new.requires_grad


def test_logits_that_are_equal_in_float32_are_a_tie_as_in_transformers() -> None:
    given = torch.zeros(2, D_VOCAB, dtype=torch.float64)
    given[0, 5] = given[0, 9] = 1
    given[0, 9] += 1e-12
    assert Decoder(options(), TOKENS).choose(given)[0] == 5


def test_rows_and_mask_are_repeated_side_by_side() -> None:
    mask = torch.tensor([[False] * 2 + [True] * 4, [True] * 6])
    decoder = Decoder(options(**SAMPLED, num_return_sequences=2), TOKENS, mask)
    assert torch.equal(decoder.tokens, TOKENS[[0, 0, 1, 1]])
    assert decoder.attention_mask is not None
    assert torch.equal(decoder.attention_mask, mask[[0, 0, 1, 1]])
