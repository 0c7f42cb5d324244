"""`nnzoo lens`, `attention`, `patch`, `trace`: what they show is what the library finds; errors say what to do."""

import re
from html.parser import HTMLParser

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nnzoo import LanguageModel
from nnzoo.analysis import logit_lens, patch_activations
from nnzoo.cli import main

MODEL, PROMPT = "nnzoo/tiny-gpt2", "The capital of France is"
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
COMMANDS = {
    "lens": ["lens", MODEL, PROMPT],
    "attention": ["attention", MODEL, PROMPT],
    "patch": ["patch", MODEL, CLEAN, CORRUPTED, "--answer", "Mary", "--wrong", "John"],
    "trace": ["trace", MODEL, PROMPT, "transformer.h[1].output[0]"],
}


@pytest.fixture
def shown(capsys):
    def run(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def complaint(capsys):
    def run(*arguments: str) -> str:
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert not out
        assert re.fullmatch(r"nnzoo: .+\n", err)
        return err

    return run


class Page(HTMLParser):
    """What a page is made of; it may ask the network for nothing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.titles: list[str] = []
        self.feed(text)
        assert not {"script", "link", "img", "iframe"} & set(self.tags)
        assert "http" not in text
        assert "prefers-color-scheme: dark" in text

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_writes_one_page_that_needs_nothing(command, shown, tmp_path):
    file = tmp_path / "page.html"
    assert shown(*COMMANDS[command], "--html", str(file)) == f"written: {file}\n"
    page = Page(file.read_text())
    assert {"lens": 1, "attention": 1 + 16, "patch": 1, "trace": 2}[command] == page.tags.count("table")


# --- lens ------------------------------------------------------------------------------------------------------------


def test_lens_shows_the_guesses_of_every_layer(shown):
    lens = logit_lens(LanguageModel(MODEL), PROMPT)
    out = shown("lens", MODEL, PROMPT)
    assert all(lens.cell((layer, pos)) in out for layer in range(4) for pos in range(5))
    assert "The prediction at the end: ' Paris'" in out


def test_lens_follows_a_target(shown):
    rows = shown("lens", MODEL, PROMPT, "--target", "Paris", "--at", "resid_mid")
    lens = logit_lens(LanguageModel(MODEL), PROMPT, " Paris", at="resid_mid")
    assert all(lens.cell((layer, 4)) in rows for layer in range(4))


def test_a_target_of_several_tokens_is_refused_with_its_pieces(complaint):
    assert "'Donau' is 5 tokens, ['D', 'o', 'n', 'a', 'u']" in complaint("lens", MODEL, PROMPT, "--target", "Donau")


# --- attention -------------------------------------------------------------------------------------------------------


def test_attention_says_where_each_head_looks_from_the_last_token(shown):
    model = LanguageModel(MODEL)
    _, cache = model._model.run_with_cache(PROMPT)
    out = shown("attention", MODEL, PROMPT)
    tokens = [model.tokenizer.decode([i]).strip() for i in model.tokenizer.encode(PROMPT)]
    for layer in range(4):
        share, key = cache["pattern", layer][0, :, -1].max(dim=-1)
        assert all(f"{tokens[k]} {s:.2f}" in out for s, k in zip(share.tolist(), key.tolist(), strict=True))


@pytest.mark.parametrize(
    ("chosen", "n"), [(["--layer", "1"], 4), (["--head", "0"], 4), (["--layer", "1", "--head", "0"], 1)]
)
def test_attention_draws_the_patterns_that_are_asked_for(chosen, n, shown):
    out = shown("attention", MODEL, PROMPT, *chosen)
    assert len(re.findall(r"^block \d, head \d$", out, re.MULTILINE)) == n
    assert out.count("→") == 5 * n


def test_cells_of_a_page_say_what_they_are(shown, tmp_path):
    shown("attention", MODEL, PROMPT, "--layer", "1", "--head", "2", "--html", str(tmp_path / "a.html"))
    pattern = LanguageModel(MODEL)._model.run_with_cache(PROMPT)[1]["pattern", 1][0, 2]
    titles = Page((tmp_path / "a.html").read_text()).titles
    assert len(titles) == 25
    assert f"is → France: {pattern[4, 3].item():.3f}" in titles


def test_a_head_that_is_not_there_is_refused(complaint):
    assert "no --head 9: the model has 4" in complaint("attention", MODEL, PROMPT, "--head", "9")


# --- patch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("site", "by"), [("resid_pre", None), ("z", None), ("attn_out", "pos")])
def test_patch_shows_what_patching_restores(site, by, shown):
    restored = patch_activations(LanguageModel(MODEL), CORRUPTED, CLEAN, (" Mary", " John"), at=site, by=by).restored
    out = shown(*COMMANDS["patch"], "--site", site, *(["--by", by] if by else []))
    numbers = [
        float(number)
        for number in re.findall(r"-?\d\.\d\d(?= |$)", out.split(")\n")[-1].split("It restores")[0], re.MULTILINE)
    ]
    assert sorted(numbers) == sorted(float(restored.cell(entry.index)) for entry in restored.entries())
    assert f"It restores most at layer {restored.top(1)[0].place['layer']}" in out


def test_prompts_of_different_lengths_are_refused_with_their_tokens(complaint):
    error = complaint("patch", MODEL, PROMPT, "The capital is", "--answer", "Paris", "--wrong", "Rome")
    assert "CLEAN has 5 tokens (The capital of France is) and CORRUPTED 3 (The capital is)" in error


def test_an_unknown_site_brings_up_those_that_are_there(complaint):
    assert "here it can be resid_pre" in complaint(*COMMANDS["patch"], "--site", "resid")


# --- trace -----------------------------------------------------------------------------------------------------------


def test_trace_writes_the_values_by_their_paths(shown, tmp_path):
    file = tmp_path / "values.safetensors"
    paths = ["transformer.h[1].output[0]", "blocks.*.attn.hook_pattern", "transformer.h.2.attn", "hook_tokens"]
    out = shown("trace", MODEL, PROMPT, *paths, "--out", str(file))
    values, (_, cache) = load_file(file), LanguageModel(MODEL)._model.run_with_cache(PROMPT)
    assert all(name in out for name in values) and f"{file} has them, one tensor a path" in " ".join(out.split())
    wanted = {"transformer.h[1].output[0]": cache["resid_post", 1], "hook_tokens": cache["hook_tokens"]}
    wanted |= {f"blocks.{i}.attn.hook_pattern": cache["pattern", i] for i in range(4)}
    wanted |= {"transformer.h.2.attn[0]": cache["attn_out", 2], "transformer.h.2.attn[1]": cache["pattern", 2]}
    assert values.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(values[name], value)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {
            "model": MODEL,
            "prompt": PROMPT,
            "tokens": '["The", " capital", " of", " France", " is"]',
        }


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("transformer.h.9", r"4 blocks \(0 to 3\), not 9"),
        ("transformer.h.1.foo", "it has ln_1, attn, ln_2, mlp"),
        ("blocks.1.attn.hook_patern", "did you mean hook_pattern"),
        ("transformer.h.1.mlp.c_fc.weight", "is a parameter, and no value of a pass"),
        ("generate", "is a method, and no value of a pass"),
        ("transformer.h", "ask transformer.h"),
        ("", "no module ''"),
    ],
)
def test_a_path_that_is_no_value_is_refused(path, message, complaint):
    assert re.search(message, complaint("trace", MODEL, PROMPT, path))


def test_a_folder_that_is_not_there_is_named(capsys, tmp_path):
    out = str(tmp_path / "no" / "values.safetensors")
    assert main([*COMMANDS["trace"], "--out", out]) == 2
    assert out in capsys.readouterr().err
