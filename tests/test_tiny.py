"""The embedded checkpoints, by transformers' own classes: what they know, what they never saw, what their cards say."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import chain, combinations, islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from nnzoo.weights.tiny import corpus, train
from nnzoo.weights.tiny.card import MEASURED
from nnzoo.weights.tiny.corpus import TASKS, held_out, sentences
from nnzoo.weights.tiny.evaluate import accuracy, induction_scores, measure
from nnzoo.weights.tiny.models import build_model
from nnzoo.weights.tiny.tokenizer import END_OF_TEXT, build_tokenizer
from nnzoo.weights.tiny.words import COUNTRIES, LANDMARKS, NAMES, NOUNS

FAMILIES = tuple(train.RECIPES)
GOALS = {
    "ioi": 0.95,
    "facts": 0.95,
    "agreement": 0.95,
    "induction": 0.95,
    "second_half": 0.9,
    "greater_than": 0.95,
    "later_years": 0.85,
}


def folder(family: str) -> Path:
    return Path(train.__file__).parent / family


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    model = AutoModelForCausalLM.from_pretrained(folder(family), attn_implementation="eager")
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(folder("gpt2"))


@pytest.fixture(scope="module")
def encode(tokenizer) -> Callable[[str], list[int]]:
    return cache(tokenizer.encode)  # answers are often the same


@pytest.fixture(scope="module")
def figures(model, encode):
    return measure(lambda tokens: model(tokens).logits, encode, n=500)


@pytest.fixture(scope="module")
def trained_on():
    return list(islice(sentences(seed=0), 40_000))


# The checkpoints


def test_transformers_loads_a_tiny_folder_with_every_key_accounted_for(family):
    _, info = AutoModelForCausalLM.from_pretrained(folder(family), output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_tiny_folder_is_at_most_three_megabytes(family):
    assert sum(file.stat().st_size for file in folder(family).iterdir()) <= 3_000_000


@pytest.mark.parametrize("figure", GOALS)
def test_a_tiny_model_reaches_the_goal_on_what_was_held_out(figures, figure):
    assert figures[figure] >= GOALS[figure]


def test_the_card_gives_the_figures_that_are_measured(family, figures):
    card = (folder(family) / "README.md").read_text()
    for figure, value in figures.items():
        [written] = re.findall(rf"^\| {re.escape(MEASURED[figure][0])} \| ([\d.]+) \|", card, re.MULTILINE)
        assert float(written) == pytest.approx(value, abs=0.006)  # three prompts of 500 may fall otherwise elsewhere


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_may_begin_with_the_end_of_a_text(model, encode, task):
    prompts = held_out(task, 200)
    (end,) = encode(END_OF_TEXT)
    assert encode(END_OF_TEXT + prompts[0].text) == [end, *encode(prompts[0].text)]
    after_end = lambda tokens: model(torch.nn.functional.pad(tokens, (1, 0), value=end)).logits  # noqa: E731
    assert accuracy(after_end, encode, prompts) >= 0.93


def test_a_tiny_model_has_an_induction_head(model, tokenizer):
    patterns = lambda tokens: model(tokens, output_attentions=True).attentions  # noqa: E731
    assert induction_scores(patterns, tokenizer.encode).max() > 0.5


def test_the_accuracy_of_a_model_that_knows_nothing_is_zero(tokenizer):
    blank = lambda tokens: torch.zeros(*tokens.shape, len(tokenizer))  # noqa: E731
    assert accuracy(blank, tokenizer.encode, held_out("ioi", 20)) == 0


def test_a_corrupted_indirect_object_prompt_gets_the_wrong_answer(model, tokenizer):
    prompts = held_out("ioi", 100)
    ids = [tokenizer(prompt.corrupted, return_tensors="pt").input_ids for prompt in prompts]
    answers = [tokenizer.decode(model(tokens).logits[0, -1].argmax()) for tokens in ids]
    hits = [answer == prompt.wrong_answer for answer, prompt in zip(answers, prompts, strict=True)]
    assert sum(hits) / len(hits) >= 0.95


# The tokenizer


def test_the_three_checkpoints_share_one_tokenizer(family, tokenizer):
    loaded = AutoTokenizer.from_pretrained(folder(family))
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.bos_token == loaded.eos_token == loaded.pad_token == END_OF_TEXT


def test_the_tokenizer_is_the_one_that_is_built(tokenizer):
    assert tokenizer.backend_tokenizer.to_str() == build_tokenizer().backend_tokenizer.to_str()


@given(text=st.text())
def test_every_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_corpus_survives_the_round_trip(tokenizer, trained_on):
    texts = trained_on[:2000]
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"]) == texts


@pytest.mark.parametrize("word", [*NAMES, *NOUNS, *NOUNS.values(), *COUNTRIES, *LANDMARKS.values()])
def test_a_word_of_the_corpus_is_one_token_with_its_space(tokenizer, word):
    assert tokenizer.tokenize(f" {word}") == [f"Ġ{word}"]


def test_a_year_is_a_century_and_a_number_below_a_hundred(tokenizer):
    assert tokenizer.tokenize("from 1732 to 17") == [*tokenizer.tokenize("from"), "Ġ17", "32", "Ġto", "Ġ17"]


# The corpus


def test_a_seed_decides_the_corpus():
    first, again, other = (list(islice(sentences(seed), 200)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_decides_the_held_out_prompts(task):
    assert held_out(task, 20, seed=3) == held_out(task, 20, seed=3) != held_out(task, 20, seed=4)


def test_no_two_names_of_a_held_out_prompt_share_a_sentence(trained_on):
    together = {pair for text in trained_on for pair in pairs_in(text, NAMES)}
    assert len(together) > 1000
    assert together.isdisjoint(pair for prompt in held_out("ioi", 500) for pair in pairs_in(prompt.text, NAMES))


def test_no_two_nouns_of_a_held_out_prompt_share_a_sentence(trained_on):
    singular = {plural: noun for noun, plural in NOUNS.items()} | {noun: noun for noun in NOUNS}
    head_and_distractor = re.compile(rf"the (\w+) (?:{'|'.join(corpus.PREPOSITIONS)}) the (\w+)", re.IGNORECASE)

    def nouns(texts):
        found = (match.groups() for text in texts if (match := head_and_distractor.search(text)))
        return {frozenset(map(singular.get, pair)) for pair in found}

    trained = nouns(trained_on)
    assert len(trained) > 300
    assert trained.isdisjoint(nouns(prompt.text for prompt in held_out("agreement", 500)))


def test_no_fact_is_held_out_in_the_words_that_it_was_trained_in(trained_on):
    templates = (*corpus.LANDMARK_TEMPLATES, *chain.from_iterable(corpus.COUNTRY_TEMPLATES))
    every = {template.format(subject).lower() for template in templates for subject in (*COUNTRIES, *LANDMARKS)}
    prompts = [prompt.text.lower() for prompt in held_out("facts", 500)]
    asked = {words for words in every if any(prompt.endswith(words) for prompt in prompts)}
    text = "\n".join(trained_on).lower()
    assert len(asked) > 40
    assert not [words for words in asked if words in text]


def test_no_first_year_of_a_held_out_prompt_was_a_first_year(trained_on):
    first = re.compile(r"(?:from|from the year|in|of) (\d{4})")
    trained = {match.group(1) for text in trained_on if (match := first.search(text))}
    assert len(trained) > 500
    assert trained.isdisjoint(first.search(prompt.text).group(1) for prompt in held_out("greater_than", 500))


@pytest.mark.parametrize("task", TASKS)
def test_a_corrupted_prompt_has_its_tokens_in_the_same_places(tokenizer, task):
    for prompt in held_out(task, 100):
        clean, corrupted = tokenizer.encode(prompt.text), tokenizer.encode(prompt.corrupted)
        assert len(clean) == len(corrupted)
        assert 1 <= sum(a != b for a, b in zip(clean, corrupted, strict=True)) <= 3


@pytest.mark.parametrize("task", TASKS)
def test_right_and_wrong_answers_are_different_single_tokens(tokenizer, task):
    for prompt in held_out(task, 100):
        assert not set(prompt.answers) & set(prompt.wrong_answers)
        assert all(len(tokenizer.encode(answer)) == 1 for answer in (*prompt.answers, *prompt.wrong_answers))


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(KeyError, match="no task 'colour'; it knows ioi, facts"):
        held_out("colour", 1)


# The training


def test_training_twice_gives_the_same_weights(family, tokenizer):
    first, second = (trained_for_two_steps(family, tokenizer) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_written_folder_gives_the_trained_model_back(family, tokenizer, tmp_path):
    trained = trained_for_two_steps(family, tokenizer)
    train.write(tmp_path, trained, tokenizer, card="# A card")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([AutoTokenizer.from_pretrained(tmp_path).encode("The keys to the cabinet")])
    assert torch.equal(loaded(tokens).logits, trained(tokens).logits)


def pairs_in(text: str, names: tuple[str, ...]) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in combinations(sorted(set(re.findall(r"\w+", text)) & set(names)), 2)}


def trained_for_two_steps(family: str, tokenizer: PreTrainedTokenizerFast) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(family, tokenizer)
    train.train(replace(train.RECIPES[family], steps=2, tokens_per_step=256), model, tokenizer)
    return model.eval()
