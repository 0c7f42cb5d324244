"""`nnzoo demo`: what it says is what the immediate API finds, and the page stands on its own."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch

from families import folder
from layout import ROOT
from nnzoo import LanguageModel, load
from nnzoo.cli import demo, findings, main
from nnzoo.cli.page import page
from nnzoo.cli.terminal import show

FAMILIES = ["gpt2", "llama", "mistral"]


@pytest.fixture(scope="module", params=FAMILIES)
def found(request) -> findings.Findings:
    name = f"nnzoo/tiny-{request.param}"
    return demo.explore(LanguageModel(name), name)


@pytest.fixture(scope="module")
def native(found):
    return load(found.model)


# --- what it finds ---------------------------------------------------------------------------------------------------


def test_the_model_gets_its_prompt_right(found):
    assert found.predictions.likely[0][0] == found.prompt.answer


def test_predictions_are_the_models(found, native):
    logits = native(found.prompt.text)[0, -1]
    likely = logits.softmax(dim=-1).topk(5)
    assert [token for token, _ in found.predictions.likely] == [native.to_string(i) for i in likely.indices]
    torch.testing.assert_close(torch.tensor([p for _, p in found.predictions.likely]), likely.values)


def test_the_lens_is_the_residual_stream_unembedded(found, native):
    _, cache = native.run_with_cache(found.prompt.text)
    for layer in range(found.n_layers):
        best = native.unembed(native.ln_final(cache["resid_post", layer]))[0].softmax(dim=-1).max(dim=-1)
        torch.testing.assert_close(found.lens.probabilities[:, layer], best.values)
        assert [row[layer] for row in found.lens.guesses] == [native.to_string(i) for i in best.indices]


def test_the_lens_ends_with_the_prediction(found):
    assert found.lens.guesses[-1][-1] == found.prompt.answer
    assert found.lens.first_layer(found.prompt.answer) is not None


def test_the_induction_head_attends_to_what_followed_last_time(found, native):
    induction = found.induction
    tokens = demo.repeated_sequences(LanguageModel(found.model), 8, 16)
    _, cache = native.run_with_cache(tokens)
    pattern = cache["pattern", induction.layer][:, induction.head]
    scores = [pattern[:, query, query - 15] for query in range(16, 32)]
    assert torch.stack(scores).mean().item() == pytest.approx(induction.scores.max().item(), abs=1e-5)
    torch.testing.assert_close(induction.pattern, pattern[0])
    assert native.to_str_tokens(tokens[0]) == induction.tokens


def test_the_tiny_models_have_an_induction_head(found):
    assert found.induction.scores.max() > 0.5
    assert found.induction.n_right >= 0.9 * found.induction.n_predictable


def test_a_patch_is_what_a_hook_at_one_place_does(found, native):
    clean, corrupted = (native.to_tokens(text) for text in (found.prompt.text, found.prompt.corrupted))
    right, wrong = (native.to_single_token(name) for name in (found.prompt.answer, found.prompt.wrong_answer))
    logits, cache = native.run_with_cache(clean)

    def preference(logits):
        return (logits[0, -1, right] - logits[0, -1, wrong]).item()

    low, high = preference(native(corrupted)), preference(logits)
    for layer, pos in [(0, found.patch.changed), (2, found.patch.changed), (3, -1), (found.n_layers - 1, -1)]:

        def put(value, hook):
            value[:, pos] = cache[hook.name][:, pos]  # noqa: B023 (run at once)
            return value

        patched = preference(native.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", put)]))
        assert found.patch.moved[pos, layer].item() == pytest.approx((patched - low) / (high - low), abs=1e-3)


def test_before_block_0_the_changed_word_decides_alone(found):
    assert found.patch.moved[found.patch.changed, 0].item() == pytest.approx(1, abs=1e-3)
    assert found.patch.moved[: found.patch.changed].abs().max() < 1e-3
    changed = found.patch.tokens[found.patch.changed].strip()
    assert f"at {changed!r} (token {found.patch.changed}) before block" in found.patch.summary


def test_sentences_differ_where_nothing_clear_is_found():
    scores = torch.tensor([[0.1, 0.2], [0.05, 0.0]])
    induction = findings.Induction(scores, 0, 1, ["a", "b"] * 2, torch.eye(4), n_right=0, n_predictable=1)
    assert induction.summary.startswith("No head clearly does; head 1 of block 0 comes nearest, with 20%")
    patch = findings.Patch([" a", " b"], [" a", " c"], torch.zeros(2, 2))
    assert patch.summary == "No single place moves the answer fully."
    lens = findings.Lens([" a"], [[" x", " y"]], torch.zeros(1, 2))
    assert lens.first_layer(" x") is None


# --- the terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(found, columns, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", str(columns))
    show(found, tmp_path)
    *lines, last = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert str(tmp_path) in last


def test_no_color_means_no_escape_sequence_for_color(found, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    show(found, tmp_path)
    assert re.search(r"\x1b\[[\d;]*36m", capsys.readouterr().out)
    show(found, tmp_path, color=False)
    assert not re.search(r"\x1b\[[\d;]*3\dm", capsys.readouterr().out)


# --- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Counts elements, and checks that what is opened is closed."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.titles: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.titles += [value for name, value in attrs if name == "title"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_draws_every_cell_with_its_value(found):
    drawn = Page(page(found))
    cells = found.lens.probabilities, found.induction.scores, found.induction.pattern, found.patch.moved
    expected = len(found.predictions.likely) + sum(each.numel() for each in cells)
    assert not drawn.open
    assert drawn.count["td"] == len(drawn.titles) == expected
    assert drawn.count["section"] == 4
    place = f"{found.prompt.text.split()[0]!r} (token 0), before block 0: "
    assert any(title.startswith(place) for title in drawn.titles)


def test_the_page_asks_nobody_for_anything(found):
    text = page(found)
    assert not re.search(r"https?:|//|<script|<link|<img|@import|url\(|\son\w+=", text)


def test_the_page_is_for_light_and_for_dark(found):
    assert "prefers-color-scheme: dark" in page(found)


def test_tokens_are_text_on_the_page(found):
    nasty = findings.Predictions(["<b>", "&amp;"], [('"<script>', 0.5)])
    text = page(findings.Findings(**{**vars(found), "predictions": nasty, "model": "<model>"}))
    assert not Page(text).open
    assert "<script" not in text
    assert "&lt;model&gt;" in text


# --- the command -----------------------------------------------------------------------------------------------------


def test_demo_prints_its_findings_and_writes_the_page(capsys, tmp_path):
    file = tmp_path / "page.html"
    assert main(["demo", "nnzoo/tiny-llama", "--html", str(file)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    text = file.read_text()
    assert all(words in out for words in ("logit lens", "induction", "activation patching", "page.html"))
    assert "Inside nnzoo/tiny-llama" in text


def test_demo_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "nnzoo", "demo", "--html", str(tmp_path / "page.html")]
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stderr
    assert "nnzoo/tiny-gpt2, GPT2 with" in run.stdout
    assert "\x1b" not in run.stdout
    assert not run.stderr


def test_a_page_that_cannot_be_written_is_named(capsys, tmp_path):
    assert main(["demo", "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "page.html" in capsys.readouterr().err


def test_a_model_without_tokenizer_has_no_demo(capsys, tmp_path):
    assert main(["demo", str(folder("gpt2", "default")), "--html", str(tmp_path / "page.html")]) == 2
    assert "no tokenizer" in capsys.readouterr().err
