"""Looking without changing: lens, attribution, heads, losses; and how results show themselves."""

from html.parser import HTMLParser

import pytest
import torch

from families import PLAIN, ids, theirs
from families import ours as hf_ours
from nnzoo import LanguageModel, load
from nnzoo.analysis import (
    Axis,
    Result,
    attribute_logits,
    detect_heads,
    induction_scores,
    logit_lens,
    patch_activations,
    repeated_tokens,
    token_losses,
    train_tuned_lens,
)
from small_models import FAMILIES, difference, prompts, small

PROMPT = "The capital of France is"
# statistics of an RMSNorm are float32 here, float64 in a float64 model of TransformerLens
TOLERANCE = {"gpt2": 1e-10, "llama": 1e-5, "mistral": 1e-5}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


# --- the logit lens -------------------------------------------------------------------------------------


@ids(PLAIN)
def test_the_lens_is_the_hidden_states_of_transformers_unembedded(family, setting):
    model, other, tokens = hf_ours(family, setting), theirs(family, setting), torch.randint(0, 97, (1, 9))
    with torch.no_grad():
        out = other(tokens, output_hidden_states=True)
        norm = other.transformer.ln_f if family == "gpt2" else other.model.norm
        early = torch.stack([other.lm_head(norm(state))[0] for state in out.hidden_states[:-1]])
    assert difference(logit_lens(model, tokens, at="resid_pre").logits, early) < 1e-6
    last = logit_lens(model, tokens)
    assert difference(last.logits[-1], out.logits[0]) < 1e-6
    assert torch.equal(last.guesses[-1], out.logits[0].argmax(dim=-1))
    assert difference(last.values[-1], out.logits[0].softmax(dim=-1).max(dim=-1).values) < 1e-6


def test_the_rank_of_a_target_is_how_many_tokens_are_likelier():
    model, tokens = small("llama"), prompts(1)
    lens = logit_lens(model, tokens, 3, at="mlp_out", positions=[-1, 2])
    expected = lens.logits.argsort(dim=-1, descending=True)
    assert torch.equal((expected == 3).nonzero()[:, -1].view(2, 2), lens.ranks)
    assert difference(lens.values, lens.logits.softmax(dim=-1)[..., 3]) < 1e-10
    each = logit_lens(model, tokens, tokens[0, 1:].tolist(), positions=range(6))
    assert difference(each.values[-1], model(tokens)[0, :-1].softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]) < 1e-6


@ids(PLAIN)
def test_a_tuned_lens_is_a_map_before_the_norm_of_transformers(family, setting):
    model, other, tokens = hf_ours(family, setting), theirs(family, setting), torch.randint(0, 97, (2, 9))
    before = [parameter.grad for parameter in model.parameters()]
    tuned = train_tuned_lens(model, tokens, at="resid_pre", layers=[0, 2], steps=3, learning_rate=0.1)
    with torch.no_grad():
        out = other(tokens[:1], output_hidden_states=True)
        norm = other.transformer.ln_f if family == "gpt2" else other.model.norm
        for row, layer in enumerate((0, 2)):
            x = out.hidden_states[layer][0]
            expected = other.lm_head(norm(x + x @ tuned.weight[row] + tuned.bias[row]))
            assert difference(logit_lens(model, tokens[:1], at="resid_pre", tuned=tuned).logits[row], expected) < 1e-6
    assert tuned.weight.std() > 1e-2 and tuned.bias.std() > 1e-2
    assert all(one.grad is old for one, old in zip(model.parameters(), before, strict=True))


def test_a_tuned_lens_foresees_the_end_better_than_the_logit_lens():
    model = LanguageModel("nnzoo/tiny-gpt2")
    names = ["France", "Italy", "Spain", "Japan", "Norway"]
    texts = [f"{start} capital of {name} is" for start in ("The", "Everyone knows that the") for name in names]
    seen, unseen = texts[1:5] + texts[6:], texts[0]
    raw, tuned = (train_tuned_lens(model, seen, steps=steps) for steps in (0, 60))
    assert (tuned.divergence.values < 0.7 * raw.divergence.values)[:-1].all()
    last = model(unseen)[0].log_softmax(dim=-1)

    def missed(lens):
        said = logit_lens(model, unseen, tuned=lens).logits.log_softmax(dim=-1)
        return (last.exp() * (last - said)).sum(dim=-1).mean(dim=-1)

    assert (missed(tuned) < missed(raw))[:-1].all()
    assert difference(missed(raw), missed(None)) == 0
    assert difference(train_tuned_lens(model, unseen, steps=0).divergence.values, missed(None)) < 1e-4
    with pytest.raises(ValueError, match=r"tuned at resid_post of layers \[0, 1, 2, 3\], not at resid_pre of"):
        logit_lens(model, unseen, at="resid_pre", tuned=tuned)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tuned_lens_is_trained_in_full_precision(dtype):
    model, text = LanguageModel("nnzoo/tiny-gpt2").to(dtype), "Everyone knows that the capital of Italy is Rome"
    raw, tuned = (train_tuned_lens(model, text, steps=steps) for steps in (0, 20))
    assert tuned.weight.dtype == torch.float32
    assert (tuned.divergence.values < 0.9 * raw.divergence.values)[:-1].all()
    assert logit_lens(model, text, tuned=tuned).logits.dtype == dtype


def test_what_a_lens_cannot_show_is_refused():
    model = small("gpt2")
    for show in (logit_lens, train_tuned_lens):
        with pytest.raises(ValueError, match="post has the axes batch pos d_mlp, and batch pos d_model are needed"):
            show(model, prompts(1), at="post")
        with pytest.raises(ValueError, match="the list is empty"):
            show(model, prompts(1), layers=[])
    with pytest.raises(ValueError, match="a lens shows one prompt, not 3"):
        logit_lens(model, prompts())
    with pytest.raises(ValueError, match="2 targets for 7 positions"):
        logit_lens(model, prompts(1), [1, 2])


@pytest.mark.parametrize(
    "look", [logit_lens, lambda model, prompt, at: patch_activations(model, prompt, prompt, 1, at=at)]
)
def test_a_place_that_there_is_not_names_places_that_are_taken(family, look):
    model = small(family)
    with pytest.raises(KeyError, match="no block has 'residual'") as refused:
        look(model, prompts(1), at="residual")
    offered = str(refused.value).strip("'\"").partition("can be ")[2].split(", ")
    assert "resid_pre" in offered
    for at in offered:
        look(model, prompts(1), at=at)


# --- direct logit attribution -------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [-1, 2])
def test_components_sum_to_the_logits(family, position):
    model, tokens = small(family), prompts()
    right, wrong = torch.tensor([1, 2, 3]), 4
    logits = model(tokens)[:, position].detach()
    found = attribute_logits(model, tokens, right, wrong, position=position)
    expected = (logits[torch.arange(3), right] - logits[:, wrong]).mean()
    assert difference(found.values.sum(), expected) < TOLERANCE[family]
    alone = attribute_logits(model, tokens, right, position=position)
    assert difference(alone.values.sum(), logits[torch.arange(3), right].mean()) < TOLERANCE[family]


def test_heads_and_neurons_sum_to_what_their_layer_writes_but_for_biases(family):
    model, tokens = small(family), prompts()
    with torch.no_grad():
        for block in model.blocks:
            if family == "gpt2":
                block.attn.b_O.zero_()
                block.mlp.b_out.zero_()
    parts = {
        by: attribute_logits(model, tokens, [1, 2, 3], 4, by=by) for by in ("component", "head", "neuron", "source")
    }
    layers = dict(zip(parts["component"].axes[0].labels, parts["component"].values, strict=True))
    for i in range(2):
        assert difference(parts["head"].values[i].sum(), layers[f"{i}_attn_out"]) < 1e-9
        assert difference(parts["neuron"].values[i].sum(), layers[f"{i}_mlp_out"]) < 1e-9
    assert difference(parts["source"].values.sum(dim=-1), parts["head"].values) < 1e-9
    assert parts["head"].values.std() > 1e-3


def test_an_attribution_by_something_else_is_refused():
    with pytest.raises(ValueError, match="by is one of component, head, neuron, source, not 'layer'"):
        attribute_logits(small("gpt2"), prompts(), 1, by="layer")
    with pytest.raises(ValueError, match="position 7 is none of the prompt's 7"):
        attribute_logits(small("gpt2"), prompts(), 1, position=7)
    with pytest.raises(ValueError, match="2 tokens for 3 prompts"):
        attribute_logits(small("gpt2"), prompts(), [1, 2])


# --- heads -------------------------------------------------------------------------------------


def test_a_score_is_the_share_of_attention_that_goes_where_the_kind_looks(family):
    model, tokens = small(family), prompts()
    tokens[:, 2] = tokens[:, 1]  # a token that follows itself
    tokens[:, 4:] = tokens[:, :3]
    _, cache = model.run_with_cache(tokens)
    for kind, is_one in {
        "previous_token": lambda row, q, k: k == q - 1,
        "duplicate_token": lambda row, q, k: k < q and row[q] == row[k],
        "induction": lambda row, q, k: 0 < k <= q and row[q] == row[k - 1] and k - 1 < q,
    }.items():
        table = torch.tensor([[[is_one(row, q, k) for k in range(7)] for q in range(7)] for row in tokens.tolist()])
        for first, own in [(False, False), (True, True)]:
            patterns = torch.stack([cache["pattern", i] for i in range(2)]).clone()
            if first:
                patterns[..., 0] = 0
            if own:
                patterns.diagonal(dim1=-2, dim2=-1).zero_()
            expected = (patterns * table[:, None]).sum((-1, -2)) / patterns.sum((-1, -2))
            found = detect_heads(model, tokens, kind, exclude_first=first, exclude_self=own)
            assert difference(found.values, expected.mean(dim=1)) < 1e-10, kind


def test_padding_does_not_count_for_a_head():
    model = load("nnzoo/tiny-gpt2").double()
    texts = [" river cake Oslo green river cake", " river cake river"]
    for kind in ("previous_token", "induction"):
        together = detect_heads(model, texts, kind, exclude_first=True)
        alone = torch.stack([detect_heads(model, text, kind, exclude_first=True).values for text in texts])
        assert difference(together.values, alone.mean(dim=0)) < 1e-10


def test_a_kind_of_head_may_be_a_table():
    model, tokens = small("gpt2"), prompts()
    found = detect_heads(model, tokens, torch.ones(7, 7).tril())
    assert difference(found.values, torch.ones(2, 4, dtype=torch.float64)) < 1e-10
    with pytest.raises(ValueError, match=r"the table is \[3, 3\], but prompts have 7"):
        detect_heads(model, tokens, torch.ones(3, 3))
    with pytest.raises(ValueError, match="no kind of head is called 'inductive'; there are previous_token"):
        detect_heads(model, tokens, "inductive")


def test_induction_scores_are_the_attention_to_what_came_next(family):
    model = small(family, n_ctx=64)
    tokens = repeated_tokens(model, n=2, period=5, seed=1)
    _, cache = model.run_with_cache(tokens)
    expected = torch.stack([
        torch.stack([cache["pattern", i][:, :, q, q - 4] for q in range(5, 10)]).mean(dim=(0, 1)) for i in range(2)
    ])  # fmt: skip
    assert difference(induction_scores(model, tokens).values, expected) < 1e-10
    with pytest.raises(ValueError, match="do not come twice"):
        induction_scores(model, tokens[:, 1:])


def test_repeated_tokens_are_drawn_from_what_is_asked_and_follow_their_seed():
    model = small("gpt2")
    tokens = repeated_tokens(model, vocabulary=[3, 5, 8], seed=2)
    assert set(tokens.unique().tolist()) == {3, 5, 8}
    assert torch.equal(tokens, repeated_tokens(model, vocabulary=[3, 5, 8], seed=2))
    assert not torch.equal(tokens, repeated_tokens(model, vocabulary=[3, 5, 8], seed=3))


# --- losses -------------------------------------------------------------------------------------


@ids(PLAIN)
def test_the_mean_of_the_losses_is_the_loss_of_transformers(family, setting):
    tokens = torch.randint(0, 97, (1, 9))
    with torch.no_grad():
        expected = theirs(family, setting)(tokens, labels=tokens).loss
    assert difference(token_losses(hf_ours(family, setting), tokens).values.mean(), expected.double()) < 1e-6


def test_losses_of_several_prompts_are_those_of_each():
    model = load("nnzoo/tiny-llama")
    texts = [PROMPT, "Today the keys to the cabinet are"]
    together = token_losses(model, texts)
    assert together.shape == {"prompt": 2, "pos": 6}
    alone = token_losses(model, texts[0]).values
    torch.testing.assert_close(together.values[0, -len(alone) :], alone, atol=1e-5, rtol=0)
    assert not together.values[0, : -len(alone)].any()


# --- results -------------------------------------------------------------------------------------


class Cells(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.cells = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        assert tag not in ("script", "link", "style", "img")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def result(*shape, names="layer head pos"):
    axes = tuple(Axis(n, tuple(f"{n}<{i}>" for i in range(s))) for n, s in zip(names.split(), shape, strict=False))
    return Result("a <title>", "score", torch.arange(float(torch.tensor(shape).prod())).view(shape), axes)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3, 4)])
def test_html_has_every_number_once_and_no_script(shape):
    one = result(*shape)
    cells = Cells(one._repr_html_())
    assert not cells.open
    assert sorted(cells.cells) == sorted(f"{value:.2f}" for value in one.values.flatten().tolist())
    assert "&lt;title&gt;" in one._repr_html_()


def test_text_has_every_number_of_a_table_that_fits_and_marks_what_it_leaves_out():
    words = str(result(4, 5)).split()
    assert all(f"{value:.2f}" in words for value in range(20))
    assert "…" not in words
    for long in (result(200, 2), result(2, 200)):
        assert "…" in str(long)
        assert max(map(len, str(long).splitlines())) <= 100
    assert "199.00" in str(result(2, 100))


def test_a_number_that_is_none_is_shown_and_is_never_the_largest():
    one = Result("", "", torch.tensor([1.0, torch.nan]), (Axis("layer", ("0", "1")),))
    assert "nan" in str(one)
    assert "nan" in one._repr_html_()
    assert [entry.value for entry in one.top(1)] == [1.0]
    assert [entry.value for entry in one.top(1, smallest=True)] == [1.0]


def test_parts_of_a_result():
    one = result(2, 3, 4)
    assert one.shape == {"layer": 2, "head": 3, "pos": 4}
    part = one.at(head=-1, layer=0)
    assert torch.equal(part.values, one.values[0, -1])
    assert part.title == "a <title>, layer layer<0>, head head<2>"
    with pytest.raises(KeyError, match="no axis token; the axes are layer, head, pos"):
        one.at(token=1)
    assert [entry.value for entry in one.top(2)] == [23.0, 22.0]
    assert [entry.index for entry in one.top(1, smallest=True)] == [(0, 0, 0)]
    assert len([*one.entries()]) == 24
    with pytest.raises(ValueError, match=r"values are \[2\], but the axes have \[1\]"):
        Result("", "", torch.zeros(2), (Axis("layer", ("0",)),))


def test_a_data_frame_has_a_row_for_each_number():
    pytest.importorskip("pandas")
    one = induction_scores(LanguageModel("nnzoo/tiny-gpt2"))
    frame = one.to_df()
    assert list(frame.columns) == ["layer", "head", "value"]
    assert frame.set_index(["layer", "head"]).value[2, 1] == pytest.approx(one.values[2, 1].item())
    frame = logit_lens(LanguageModel("nnzoo/tiny-gpt2"), PROMPT).to_df()
    assert list(frame.columns) == ["layer", "pos", "pos_label", "value"]
    assert list(frame.pos_label[:5]) == ["The", " capital", " of", " France", " is"]
    assert len(result(2, 3, 4).to_df()) == 24
    assert len(result(3).to_df()) == 3


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3, 4)])
def test_a_figure_has_every_number(shape):
    pytest.importorskip("plotly")
    [trace] = result(*shape).plot().data
    drawn = torch.tensor(trace.y if len(shape) == 1 else trace.z)
    assert sorted(drawn.flatten().tolist()) == sorted(result(*shape).values.flatten().tolist())


def test_a_library_that_is_missing_is_asked_for_by_name(monkeypatch):
    def missing(name, *rest):
        raise ImportError(name)

    monkeypatch.setattr("nnzoo.analysis.drawing.import_module", missing)
    with pytest.raises(ImportError, match=r"to_df\(\) needs pandas: pip install 'nnzoo\[viz\]'"):
        result(2).to_df()
    with pytest.raises(ImportError, match=r"plot\(\) needs plotly"):
        result(2).plot()
