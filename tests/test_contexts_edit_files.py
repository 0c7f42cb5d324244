"""Edits in a file are data: they hold where they are loaded as where they were made, and a file runs nobody's code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import load, save
from torch import Tensor, nn

import speaking
from nnzoo import LanguageModel
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.recorder import TraceError
from reference_values import Theirs
from snippets import assert_close

LONG = "The cat sat on the quick brown dog"
WIDTH = 48


def fresh(family: str = "gpt2") -> LanguageModel:
    return LanguageModel(speaking.folder(family, 4))


def saved(model: LanguageModel, path: Path, family: str = "gpt2") -> LanguageModel:
    """Another model with the edits of this one, by way of a file."""
    model.save_edits(path)
    other = fresh(family)
    other.load_edits(path)
    return other


def logits_of_steps(model: LanguageModel) -> Tensor:
    """Of four tokens [step batch d_vocab]."""
    with model.generate(LONG, max_new_tokens=4) as tracer:
        cache = tracer.cache(modules=["lm_head"])
    return torch.stack([logits[:, -1] for logits in cache.lm_head.output])


def steering(model: LanguageModel, tracer: Any) -> None:
    model.transformer.h[1].output[0][:, 1:] += torch.linspace(-4, 4, WIDTH).double()


def steps(model: LanguageModel, tracer: Any) -> None:
    first = model.transformer.h[0].output[0][:, -1:]
    for _ in tracer.iter[1:]:
        model.transformer.h[1].output[0][:] += first
    with tracer.iter[[0, 2]]:
        model.transformer.h[2].output[0][:] *= 0.5
    for _ in tracer.iter[1:3]:
        model.transformer.h[3].mlp.output[:] = 0
    with tracer.iter[1:2]:
        model.transformer.h[2].mlp.output[:] = 0


def lens(model: LanguageModel, tracer: Any) -> None:
    top = model.lm_head(model.transformer.ln_f(model.transformer.h[1].output[0])).softmax(-1)
    model.transformer.h[2].output[0][:] += top.max(-1, keepdim=True).values
    stream = model.transformer.h[2].output[0]
    stream[stream < 0] = 0


def heads(model: LanguageModel, tracer: Any) -> None:
    queries = model.transformer.h[1].attn.c_proj.input
    batch, pos, width = queries.shape
    split = queries.view(batch, pos, 4, width // 4)
    split[:, pos // 2, 1] = 0
    again = rearrange(split.flip(1), "b p h d -> b p (h d)", h=4)
    model.transformer.h[1].attn.c_proj.input = again.clone()
    model.transformer.h[2].mlp.output = model.transformer.h[2].mlp.output.expand(batch * 1, -1, -1)[:, : -1 + pos + 1]


def weights(model: LanguageModel, tracer: Any) -> None:
    with torch.no_grad():
        direction = model.lm_head.weight[5]
        h = model.transformer.h[2].output[0]
        model.transformer.h[2].output[0] = h - (h @ direction)[..., None] * direction / direction.norm() ** 2


BODIES = [steering, steps, lens, heads, weights]


@pytest.mark.parametrize("body", BODIES)
def test_edits_hold_where_they_are_loaded(body: Callable, tmp_path: Path) -> None:
    model = fresh()
    with model.edit(inplace=True) as tracer:
        body(model, tracer)
    other = saved(model, tmp_path / "edits.safetensors")
    for prompt in ("Hello world", LONG):
        assert torch.equal(other(prompt), model(prompt))
    assert torch.equal(logits_of_steps(other), logits_of_steps(model))
    assert not torch.equal(other(LONG), fresh()(LONG)), "the edit makes a difference"
    assert torch.equal(saved(other, tmp_path / "again")(LONG), model(LONG)), "what was loaded can be saved"


def test_heads_are_those_of_any_prompt() -> None:
    """What `heads` computes from sizes is not bound to the tokens for which the edit was recorded."""
    model, theirs = fresh(), Theirs("gpt2", 4)
    with model.edit(inplace=True) as tracer:
        heads(model, tracer)

    def change(x: Tensor) -> Tensor:
        split = x.view(*x.shape[:2], 4, 12).clone()
        split[:, x.shape[1] // 2, 1] = 0
        return split.flip(1).reshape(x.shape)

    for prompt in ("Hello world", "Hello", LONG):
        expected = theirs.forward(prompt, edits={"transformer.h.1.attn.c_proj.input": change}).logits
        assert_close(model(prompt).detach(), expected)


def test_several_edits_and_modules_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = nn.Sequential(nn.Linear(WIDTH, 13), nn.ReLU(), nn.Linear(13, WIDTH)).double()
    model, other = fresh(), fresh()
    model.transformer.h[1].sae = sae
    with model.edit(inplace=True):
        block = model.transformer.h[1]
        block.output[0][:] = block.sae(block.output[0], hook=True)
    with model.edit(inplace=True) as tracer:
        steering(model, tracer)
    model.save_edits(tmp_path / "edits")
    with pytest.raises(GraphError, match=r"attach your module first: model\.transformer\.h\.1\.sae"):
        other.load_edits(tmp_path / "edits")
    other.transformer.h[1].sae = sae
    other.load_edits(tmp_path / "edits")
    assert torch.equal(other(LONG), model(LONG)) and len(other.edits) == 2
    with torch.no_grad(), other.trace(LONG):
        features = other.transformer.h[1].sae[1].output
    assert features.shape == (1, 8, 13) and (features >= 0).all()
    del model.transformer.h[1].sae
    with pytest.raises(GraphError, match="not attached to the model any more"):
        model.save_edits(tmp_path / "edits")


def test_what_is_no_data_is_refused_with_its_line(tmp_path: Path) -> None:
    model = fresh()
    with pytest.raises(ValueError, match="no edits to save"):
        model.save_edits(tmp_path / "edits")
    with model.edit(inplace=True) as tracer:
        tracer.recorder.record(lambda h: h * 2, (model.transformer.h[1].output[0],), {})
    with pytest.raises(GraphError, match=r"recorded at .*test_contexts_edit_files\.py.*lambda.* is not among"):
        model.save_edits(tmp_path / "edits")
    with pytest.raises(TraceError, match="inside a trace"), model.trace(LONG):
        model.load_edits(tmp_path / "edits")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = fresh()
    for body in (heads, steps, weights):
        with model.edit(inplace=True) as tracer:
            body(model, tracer)
    model.save_edits(tmp_path / "edits")
    return tmp_path / "edits"


def rewritten(file: Path, change: Callable[[dict], Any]) -> Path:
    """The file with its JSON changed."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    data = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["edits"])
    data = change(data) or data
    file.write_bytes(save(load(raw), metadata={"edits": json.dumps(data)}))
    return file


def first(data: dict, kind: str, **having: Any) -> dict:
    entries = [e for edit in data["edits"] for part in edit for e in part["entries"]]
    return next(e for e in entries if e["kind"] == kind and all(e.get(k) == v for k, v in having.items()))


WEIGHT = {"parameter": {"name": "unembed.weight", "view": None, "detached": True}}
UNKNOWN = {"parameter": {"name": "x", "view": None, "detached": True}}
CHANGES: list[tuple[Callable[[dict], Any], str]] = [
    (lambda d: d.update(format="nnzoo graph"), '"format" is to be'),
    (lambda d: d.update(version=2), "reads version 1, not 2"),
    (lambda d: d["model"].update(d_model=49), "a model whose d_model is 49, not 48"),
    (lambda d: {k: v for k, v in d.items() if k != "edits"}, "KeyError"),
    (lambda d: [d], '"format" is to be'),
    (lambda d: d.update(edits=[{"entries": 3}]), "a list is expected"),
    (lambda d: first(d, "do").update(fn="os.system"), "'os.system' is not among the functions"),
    (lambda d: first(d, "do").update(fn=["torch.add"]), "tells no size"),
    (lambda d: first(d, "do").update(fn="torch.load"), "'torch.load' is not among the functions"),
    (lambda d: first(d, "do").update(fn="model:_model.__class__"), "no module of this model"),
    (lambda d: first(d, "read").update(hook="blocks.9.hook_resid_post"), "no place"),
    (lambda d: first(d, "read").update(step=-1), "no number from 0 on"),
    (lambda d: first(d, "write").update(value={"node": 10**6}), "no earlier value"),
    (lambda d: first(d, "write").update(value=3), "a place is set to a tensor"),
    (lambda d: first(d, "do").update(args={"tuple": [{"tensor": "t99"}]}), "there is no tensor 't99'"),
    (lambda d: first(d, "do").update(args={"tuple": [UNKNOWN]}), "no weight 'x'"),
    (
        lambda d: first(d, "do").update(fn="torch.Tensor.zero_", args={"tuple": [WEIGHT]}),
        "edits a tensor that is not the trace's own",
    ),
    (lambda d: first(d, "do", fn="size:shape").update(results=first(d, "read")["results"]), "is a size, or none"),
    (lambda d: first(d, "read").update(kind="eval"), "'eval' is nothing that an edit does"),
    (lambda d: first(d, "read").update(line=["x", "y", "z"]), "a line is none"),
    (lambda d: first(d, "do").update(modes={"tuple": [1, 2, 3, 4, 5]}), "modes are none"),
    (lambda d: d["edits"][1][1].update(steps={"from": -1, "to": None, "by": 1}), "no number from 0 on"),
]


class TestHostileFiles:
    @pytest.mark.parametrize(("change", "complaint"), CHANGES)
    def test_is_refused(self, file: Path, change: Callable[[dict], Any], complaint: str) -> None:
        model = fresh()
        with pytest.raises(GraphError, match=complaint):
            model.load_edits(rewritten(file, change))
        assert not model.edits

    def test_the_file_as_it_is_loads(self, file: Path) -> None:
        model = fresh()
        model.load_edits(rewritten(file, lambda data: None))
        assert len(model.edits) == 3

    def test_what_is_no_file_of_edits_is_refused(self, tmp_path: Path) -> None:
        for content in (
            b"",
            b"{}",
            b"\xff" * 100,
            save({"a": torch.zeros(1)}),
            save({}, metadata={"edits": "[" * 9999}),
        ):
            (tmp_path / "edits").write_bytes(content)
            with pytest.raises(GraphError, match="holds no edits"):
                fresh().load_edits(tmp_path / "edits")

    def test_nothing_that_is_loaded_edits_the_models_weights(self, file: Path) -> None:
        """By a view of a weight, which an edit in place then changes."""

        def zero(data: dict) -> None:
            rest = {"line": ["f", 1, "g"], "modes": None, "kwargs": {"dict": []}, "results": [1]}
            read = {
                "kind": "read",
                "hook": "blocks.1.hook_resid_post",
                "step": 0,
                "line": ["f", 1, "g"],
                "results": [0],
            }
            view = {"kind": "do", "fn": "torch.Tensor.t", "args": {"tuple": [WEIGHT]}, **rest}
            edit = {"kind": "do", "fn": "torch.Tensor.zero_", "args": {"tuple": [{"node": 1}]}, **rest}
            add = {"kind": "do", "fn": "torch.Tensor.add_", "args": {"tuple": [{"node": 0}, {"node": 2}]}, **rest}
            mean = {"kind": "do", "fn": "torch.Tensor.mean", "args": {"tuple": [{"node": 1}]}, **rest}
            entries = [read, view, edit, {**mean, "results": [2]}, {**add, "results": [0]}]
            data["edits"] = [[{"steps": None, "at": 0, "entries": entries}]]

        model = fresh()
        before = model.lm_head.weight.clone()
        model.load_edits(rewritten(file, zero))
        model(LONG)
        assert torch.equal(model.lm_head.weight, before)
