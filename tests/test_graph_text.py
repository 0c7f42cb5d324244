"""What a graph prints and draws."""

import gc
import re
import weakref
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from families import folder, in_full, prompt
from nnzoo import LanguageModel
from nnzoo.tracing.graph import Node
from nnzoo.tracing.graph_object import Graph

HERE = Path(__file__).name


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


def lines(graph: Graph) -> list[str]:
    return [re.sub(r"\s+", " ", line).strip() for line in str(graph).splitlines()]


@pytest.fixture(scope="module")
def patched(model: LanguageModel) -> Graph:
    with model.trace() as tracer:
        with tracer.invoke(prompt(1, 6)):
            hidden = model.transformer.h[1].output[0]
            _ = hidden * 3
        with tracer.invoke(prompt(2, 4)):
            model.transformer.h[0].output[0][:, -1] = hidden[:, -1]
            logits = model.output[:, -1].save()
            del _
        graph = tracer.graph
    assert logits.shape == (2, 97)
    return graph


def test_every_node_has_a_line_with_its_shape_and_place(patched: Graph) -> None:
    assert re.fullmatch(
        r"%0 float64\[1, 6, 48\] transformer\.h\[1\]\.output\[0\] \(blocks\.1\.hook_resid_post\) of invoke 0 "
        rf"{HERE}:\d+",
        lines(patched)[3],
    )
    assert [line.split()[0] for line in lines(patched) if line.startswith("%")] == [
        f"%{n}" for n in range(len(patched))
    ]


def test_operations_are_written_as_the_body_wrote_them(patched: Graph) -> None:
    text = "\n".join(lines(patched))
    for part in ("%0 * 3 not computed", "%0[:, -1]", "%3[:, -1] = %2", "%5[:, -1] saved"):
        assert part in text


def test_the_passes_say_what_runs_and_what_does_not(patched: Graph) -> None:
    text = str(patched).partition("passes:\n")[2].splitlines()
    place = "transformer.h[1].output[0] (blocks.1.hook_resid_post)"
    assert text == [
        f"  1. invoke 0 [1 row, 6 tokens]: blocks 0 to 1 of 0 to 2; stops at {place}",
        "     not run, because nobody asks for more: block 2",
        "  2. invoke 1 [2 rows, 4 tokens]: blocks 0 to 2 of 0 to 2, the logits; stops at lm_head.output "
        "(unembed.hook_out)",
        "     only the last position is unembedded",
        "  not computed, because nobody holds them: %1",
    ]


def test_invokes_that_share_a_pass_are_named_together(model: LanguageModel) -> None:
    with model.trace() as tracer:
        held = []
        for n in (3, 5):
            with tracer.invoke(prompt(1, n)):
                held.append(model.transformer.h[0].output[0])
    assert "1. invokes 0 and 1 in one batch [2 rows, 5 tokens]" in str(tracer.graph)
    assert [one.shape[1] for one in held] == [3, 5]


def test_blocks_that_are_replaced_are_named(model: LanguageModel) -> None:
    with model.trace(prompt(1, 4)) as tracer:
        model.transformer.h[1].skip(model.transformer.h[0].output[0])
        logits = model.output.save()
    assert "skipped, because what they give is replaced: block 1" in str(tracer.graph)
    assert "only the last position" not in str(tracer.graph)
    assert logits.shape == (1, 4, 97)


def test_gradients_and_steps_are_printed(model: LanguageModel) -> None:
    with model.generate(prompt(1, 4), max_new_tokens=3, eos_token_id=None) as tracer:
        hidden = model.transformer.h[1].output[0]
        with tracer.iter[2]:
            later = model.transformer.h[0].mlp.output.save()
        with hidden.sum().backward():
            flowing = hidden.grad.save()
        ids = tracer.result.save()
    text = "\n".join(lines(tracer.graph))
    for part in ("invoke 0: 1 prompt of 4 tokens, generates 3 tokens at most", "(blocks.0.hook_mlp_out), step 2",
                 "%2.backward()", "%0.grad as it flows in %3", "generated ids", "then 1 backward pass"):  # fmt: skip
        assert part in text
    assert (later.shape[1], flowing.shape[1], ids.shape[1]) == (1, 4, 7)


def test_what_is_done_again_at_a_later_step_is_of_its_own_line(model: LanguageModel) -> None:
    with model.generate(prompt(1, 1), max_new_tokens=3, eos_token_id=None) as tracer:
        with tracer.iter[:]:
            model.transformer.h[0].output[0][:, -1] *= 2
            norm = model.output.norm().save()
        graph = tracer.graph
    first, again, last = (lines(graph)[2:][n : n + 6] for n in (0, 6, 12))
    places = [[line.split()[-1] for line in one] for one in (first, again, last)]
    assert places[0] == places[1] == places[2] and len(set(places[0])) == 2 and len(norm) == 3
    with pytest.raises(IndexError) as raised, model.generate(prompt(1, 4), max_new_tokens=2) as tracer:
        with tracer.iter[:]:
            model.transformer.h[0].output[0][:, 3].norm().save()
    assert re.search(rf"at step 1 of the generation, recorded at .*{HERE}", in_full(raised.value))
    assert "[1 row, 1 token]" in str(graph)
    assert re.findall(r"tokens (\[.*?\])<", graph.to_html()) == ["[1, 1]"] * 3


def test_a_step_reads_the_token_that_was_chosen(model: LanguageModel) -> None:
    with model.generate(prompt(2, 5), max_new_tokens=2, eos_token_id=None) as tracer:
        for _ in tracer.iter[:]:
            model.transformer.h[0].output[0].norm().save()
        graph = tracer.graph
    assert re.findall(r"tokens (\[.*?\])<", graph.to_html()) == ["[2, 5]", "[2, 1]"]


def test_a_generator_of_random_numbers_has_no_address(model: LanguageModel) -> None:
    with model.trace(prompt(1, 4)) as tracer:
        probabilities = model.output[0, -1].softmax(-1)
        torch.multinomial(probabilities, 2, generator=torch.Generator().manual_seed(1)).save()
        graph = tracer.graph
    assert "multinomial(%2, 2, generator=<generator>)" in str(graph)


def test_a_graph_grows_with_its_body(model: LanguageModel) -> None:
    with model.trace(prompt(1, 4)) as tracer:
        graph = tracer.graph
        assert len(graph) == 0
        hidden = model.transformer.h[0].output[0]
        assert len(graph) == 1
    assert len(graph) == 1
    assert hidden.shape == (1, 4, 48)


def test_a_stored_graph_prints_without_a_model(patched: Graph) -> None:
    read = Graph.from_json(patched.to_json(), patched.tensors)
    assert "blocks.1.hook_resid_post of invoke 0" in str(read)
    assert str(read).endswith("passes: graph.on(model) shows them")


def test_a_trace_whose_graph_nobody_asked_for_keeps_no_tensor(model: LanguageModel) -> None:
    steer = torch.ones(48, dtype=torch.float64)
    gone = weakref.ref(steer)
    with model.trace(prompt(1, 4)) as tracer:
        steered = model.transformer.h[0].output[0] + steer
        value = steered.sum().save()
    del steer, steered
    assert gone() is None
    assert "+ <float64[48]>" in str(tracer.graph)
    assert value.ndim == 0


def test_nodes_go_with_their_trace_at_once(model: LanguageModel) -> None:
    gc.collect()
    gc.disable()
    try:
        with model.trace(prompt(1, 4)) as tracer:
            model.transformer.h[0].output[0][:] += 1
            logits = model.output.save()
        nodes: list[weakref.ref[Node]] = [weakref.ref(node) for node in tracer.recorder.nodes]
        assert len(nodes) > 3
        del tracer
        assert logits.shape
        assert [ref() for ref in nodes] == [None] * len(nodes)
    finally:
        gc.enable()


class Tags(HTMLParser):
    """The tags of a page, and its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert not tags.open, "every tag is closed"
    return tags


def test_the_picture_has_every_node_and_needs_nothing_else(patched: Graph) -> None:
    page = patched.to_html()
    tags = parsed(page)
    assert page.count('<g class="node') == len(patched)
    assert not {"script", "link", "img", "iframe"}.intersection(tags.tags)
    names = {name for name, _ in tags.attributes}
    assert not {"src", "href", "onload", "onclick"} & names
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_picture_marks_edits_what_is_saved_and_what_is_left_out(patched: Graph) -> None:
    page = patched._repr_html_()
    parsed(page)
    boxes = dict(re.findall(r'<g class="node ([^"]*)"><title>(%\d+)', page))
    classes = {number: kind for kind, number in re.findall(r'<g class="node ([^"]*)"><title>(%\d+)', page)}
    assert boxes
    assert classes["%0"] == "read"
    assert classes["%1"] == "call left-out"
    assert classes["%4"] == "edit"
    assert classes["%6"] == "call saved"
    assert "invoke 1, pass 2" in page
    assert page.count('class="cell runs"') == 3 + 6  # embedding and blocks 0, 1 of invoke 0; all of invoke 1


def test_what_users_name_is_escaped(model: LanguageModel) -> None:
    evil = "<script>alert(1)</script>&\"'"
    code = compile("def evil(x):\n    return x + 1", f"{evil}.py", "exec")
    names: dict = {}
    exec(code, names)
    with model.trace(prompt(1, 4)) as tracer:
        hidden = model.transformer.h[0].output[0]
        kept = names["evil"](hidden).save()
        named = type("T", (), {"__call__": lambda self, x: x * 2, "__name__": evil})()
        other = hidden._recorder.record(named, (hidden,), {})
        graph = tracer.graph
        page = graph.to_html()
    assert "script" not in parsed(page).tags
    assert "&lt;script&gt;alert(1)" in page
    assert kept.shape == other.shape
