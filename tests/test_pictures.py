"""Pictures have what they draw, stand alone, and are seen in a browser, in light and in dark."""

import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser

import pytest
import torch

from nnzoo import LanguageModel
from nnzoo.analysis import (
    attention_patterns,
    color_tokens,
    generation_steps,
    logit_lens,
    patch_activations,
    token_losses,
)

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
EVIL = "<script>alert(1)</script>&\"'"
CHROMIUM = shutil.which("chromium")


class Parsed(HTMLParser):
    """A page's tags, attributes and text by tag; everything that is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    @property
    def hovers(self) -> list[str]:
        return [value for name, value in self.attributes if name == "title"] + self.texts.get("title", [])


@pytest.fixture(scope="module")
def model():
    return LanguageModel("nnzoo/tiny-gpt2")


def cache_of(model):
    return model._model.run_with_cache(CLEAN)[1]


PICTURES = {
    "tree": lambda model: model,
    "block": lambda model: model.transformer.h[1],
    "hook table": lambda model: model.hook_table(),
    "cache": cache_of,
    "lens": lambda model: logit_lens(model, CLEAN),
    "losses": lambda model: token_losses(model, CLEAN),
    "attention": lambda model: attention_patterns(model, CLEAN, layers=[1]),
    "patches": lambda model: patch_activations(model, CORRUPTED, CLEAN, (" Mary", " John")).restored,
    "generation": lambda model: generation_steps(model, CLEAN, max_new_tokens=3),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_page_stands_alone_for_light_and_for_dark(name, model):
    drawn = PICTURES[name](model)
    page, shown = drawn.to_html(), drawn._repr_html_()
    tags = set(Parsed(page).tags)
    assert shown in page
    assert Parsed(shown).tags
    assert not tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?:|//|@import|url\(|\son\w+=", page)
    assert "prefers-color-scheme: dark" in page


def test_the_tree_has_every_module_and_every_hook_point_of_a_block(model):
    page = Parsed(model._repr_html_())
    bold, lines = set(page.texts["b"]), "\n".join(page.texts["div"])
    assert {"transformer", "wte", "h", "0-3", "attn", "c_attn", "mlp", "ln_f", "lm_head"} <= bold
    hooks = {name.split(".")[-1] for name in model.skeleton.hook_points}
    assert not [hook for hook in hooks if hook not in lines]
    assert page.tags.count("details") == page.tags.count("summary") > 5


def test_a_module_of_the_users_own_is_in_the_tree_and_blocks_that_differ_are_told_apart():
    model = LanguageModel("nnzoo/tiny-gpt2")
    model.transformer.h[1].mlp.sae = torch.nn.Linear(2, 3)
    page = Parsed(model._repr_html_())
    assert {"0", "1", "2-3", "sae"} <= set(page.texts["b"])
    assert any("in_features=2, out_features=3" in text for text in page.texts["pre"])


def test_the_hook_table_has_a_row_for_every_hook_point(model):
    table = model.hook_table()
    cells = Parsed(table._repr_html_()).texts["td"]
    names = {re.sub(r"^blocks\.\d+", "blocks.i", name) for name in model.skeleton.hook_points}
    assert {row.name for row in table} == names <= set(cells)
    assert any(text.startswith("transformer.h[i].attn.output[1]") for text in cells)
    assert "[batch, 4, query, key]" in cells
    assert repr(table).count("\n") == len(table)
    with pytest.raises(ValueError, match="there is no --layer 9"):
        model.hook_table(layer=9)


def test_the_cache_has_a_row_for_every_value_with_its_shape_and_numbers(model):
    cache = cache_of(model)
    cells = Parsed(cache._repr_html_()).texts["td"]
    assert set(cache) <= set(cells)
    z = cells[cells.index("blocks.1.attn.hook_z") :]
    assert z[1:3] == ["batch=1 pos=14 head=4 d_head=24", "float32"]
    values = cache["z", 1]
    assert [float(one) for one in z[3:6]] == pytest.approx(
        [values.mean().item(), values.std(correction=0).item(), values.abs().max().item()], rel=1e-2
    )
    assert f"{4 * 14 * 13 // 2} -inf" in cells
    assert "pos=14 head=4 d_head=24" in Parsed(cache.remove_batch_dim()._repr_html_()).texts["td"]


def test_values_that_are_no_numbers_are_counted(model):
    cache = cache_of(model)
    cache.cache_dict["blocks.0.hook_attn_out"] = torch.tensor([[[torch.nan, torch.inf, 1.0]]])
    assert "1 nan, 1 inf" in Parsed(cache._repr_html_()).texts["td"]


def test_every_weight_that_can_be_seen_is_drawn_with_both_its_ends(model):
    patterns = attention_patterns(model, CLEAN)
    _, cache = model._model.run_with_cache(CLEAN)
    torch.testing.assert_close(patterns.values, torch.stack([cache["pattern", i][0] for i in range(4)]))
    page = Parsed(patterns._repr_html_())
    assert page.tags.count("svg") == 16
    assert f"' Mary' (1) → 'When' (0): {patterns.values[0, 0, 1, 0]:.3f}" in page.hovers
    assert len(page.hovers) == (patterns.values >= 0.005).sum()
    assert "layer 2, head 3" in page.texts["text"]
    one = patterns.at(layer=2, head=1)
    assert Parsed(one._repr_html_()).tags.count("svg") == 1
    assert Parsed(patterns.at(layer=2)._repr_html_()).tags.count("svg") == 4
    assert patterns.at(layer=2, head=1, query=-1).shape == {"key": 14}
    with pytest.raises(ValueError, match="of one prompt, not 2"):
        attention_patterns(model, model._model.to_tokens([CLEAN, CORRUPTED]))


def test_the_lens_hovers_over_its_likeliest_tokens(model):
    lens = logit_lens(model, CLEAN)
    hover = Parsed(lens._repr_html_()).hovers[-1]
    best = lens.logits[-1, -1].softmax(-1).topk(2)
    second = model.tokenizer.decode(best.indices[1])
    assert hover.startswith("layer 3, pos to: ")
    assert f"' Mary' {best.values[0]:.3f}, {second!r} {best.values[1]:.3f}" in hover


def test_a_text_is_whole_and_each_token_has_its_number(model):
    losses = token_losses(model, [CLEAN, "The capital of France is"])
    page = Parsed(losses._repr_html_())
    words = "".join(page.texts["span"])
    assert CLEAN in words and "The capital of France is" in words
    assert any(hover.startswith(f"' Mary' (1): {losses.values[0, 0].item():.4g}") for hover in page.hovers)
    assert len(page.hovers) == 13 + 4
    assert losses.shape == {"prompt": 2, "pos": 13}


def test_tokens_are_coloured_by_sign_and_size():
    shown = color_tokens([" a", " b", " c\n"], [2.0, -1.0], "t")._repr_html_()
    assert re.findall(r'<span style="background: ([^"]*)" title="[^"]*">([^<]*)', shown) == [
        ("rgba(59, 130, 246, 0.70)", " b"),
        ("rgba(239, 68, 68, 0.35)", " c↵\n"),
    ]
    assert "<span> a</span>" in shown
    with pytest.raises(ValueError, match="2 numbers for 1 tokens"):
        color_tokens(["a"], torch.zeros(2))


def test_steps_are_those_of_the_generation(model):
    steps = generation_steps(model, CLEAN, max_new_tokens=4, k=3)
    ids = model.generate(CLEAN, max_new_tokens=4)
    assert CLEAN + steps.text == model.tokenizer.decode(ids[0])
    assert steps.shape == {"step": ids.shape[1] - 14, "rank": 3}
    with model.generate(CLEAN, max_new_tokens=4) as tracer:
        logits = [model.lm_head.output[0, -1] for _ in tracer.iter[: len(steps.chosen)]]
    torch.testing.assert_close(steps.values, torch.stack(logits).softmax(-1).topk(3).values, atol=1e-5, rtol=1e-4)
    page = Parsed(steps._repr_html_())
    assert steps.prompt == CLEAN in page.texts["span"]
    assert page.texts["b"][1:] == [token.strip() for token, _ in steps.chosen]
    assert sum(value == "guess chosen" for name, value in page.attributes if name == "class") == len(steps.chosen)


def test_steps_that_were_drawn_have_the_models_own_probabilities(model):
    steps = generation_steps(model._model, CLEAN, max_new_tokens=2, do_sample=True, temperature=50.0, seed=1)
    ids = model._model.to_tokens(CLEAN + steps.text)
    logits = model._model(ids)[0, 13:-1].softmax(-1)
    chosen = [p for _, p in steps.chosen]
    assert chosen == pytest.approx([logits[i, ids[0, 14 + i]].item() for i in range(2)], abs=1e-5)
    with pytest.raises(ValueError, match="of one text, and this generation has 2"):
        generation_steps(model, model._model.to_tokens([CLEAN, CORRUPTED]), max_new_tokens=1)


def test_what_prompts_and_tokens_say_is_text():
    shown = color_tokens([EVIL], [1.0], EVIL, EVIL).to_html()
    assert "script" not in Parsed(shown).tags
    assert "alert(1)" in shown


def test_results_of_every_kind_become_a_figure_and_a_data_frame(model):
    pytest.importorskip("pandas")
    assert len(attention_patterns(model, CLEAN, layers=[0]).to_df()) == 4 * 14 * 14
    assert len(generation_steps(model, CLEAN, max_new_tokens=2).to_df()) == 2 * 5
    assert list(token_losses(model, CLEAN).to_df().columns) == ["pos", "pos_label", "value"]


# --- in a browser ----------------------------------------------------------------------------------------------------


def pixels(png: bytes) -> list[bytes]:
    """The rows of an 8-bit RGB(A) image, unfiltered enough to compare colours: zlib's own output, by row."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8
    channels = {2: 3, 6: 4}[kind]
    data, at = b"", 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    raw, stride = zlib.decompress(data), width * channels + 1
    return [raw[row * stride : (row + 1) * stride] for row in range(height)]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", ["attention", "tree"])
def test_a_browser_draws_it_in_light_and_in_dark(name, model, tmp_path):
    (tmp_path / "page.html").write_text(PICTURES[name](model).to_html())
    papers = []
    for scheme in ("1", "0"):  # light, dark
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}",
                   f"--blink-settings=preferredColorScheme={scheme}", "--window-size=600,400",
                   f"--screenshot={tmp_path / 'shot.png'}", str(tmp_path / "page.html")]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=60, check=True)
        rows = pixels((tmp_path / "shot.png").read_bytes())
        assert len(set(rows)) > 20, "something is drawn"
        papers.append(rows[0][1:4])
    assert papers == [bytes.fromhex("fbfbfa"), bytes.fromhex("15171a")]
