"""What is read may come from anybody: whatever is wrong in it is a GraphError, and none of it runs."""

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import folder, prompt
from nnzoo import LanguageModel
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph_object import Graph


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(scope="module")
def stored(model: LanguageModel) -> tuple[dict, dict[str, Tensor]]:
    """A program with every kind of node and of argument."""
    with model.generate(max_new_tokens=3, do_sample=True) as tracer:
        with tracer.invoke(prompt(1, 5)):
            hidden = model.transformer.h[1].output[0]
            hidden[:, -1] += torch.ones(48, dtype=torch.float64).view(4, 12).T.reshape(48)
            model.transformer.h[2].mlp.output = torch.nn.functional.dropout(hidden.clone(), 0.5) * 0
            top, _ = hidden.topk(3, dim=-1)
            top.save()
            lens = model.lm_head(
                model.transformer.ln_f(hidden[..., None, 0:2].flatten(2).sum(-1, keepdim=True) + hidden)
            )
            (lens @ model._model.unembed.weight).sum().backward(retain_graph=True)
            hidden.grad.save()
            with (lens**2).mean().backward():
                hidden.grad = hidden.grad * 2
            ids = tracer.result.save()
        with tracer.invoke(prompt(2, 3)):
            with tracer.iter[1]:
                model.transformer.h[2].output[0].to(torch.float32).save()
            torch.autograd.grad(model.transformer.h[1].output[0].sum(), hidden, allow_unused=True)
        with tracer.invoke():
            tracer.result.save()
        graph = tracer.graph
        text, tensors = graph.to_json(), graph.tensors
    assert ids.shape[1] <= 8
    return json.loads(text), tensors


def read(model: LanguageModel, data: Any, tensors: dict[str, Tensor]) -> None:
    Graph.from_json(data if isinstance(data, str) else json.dumps(data), tensors).on(model)


def test_it_is_read_as_it_is(model: LanguageModel, stored: tuple) -> None:
    read(model, *stored)
    kinds = {node["kind"] for node in stored[0]["nodes"]}
    assert kinds >= {"arrive", "put", "call", "pick", "backward", "gradient", "flowing", "put_gradient", "result"}


def test_the_ids_of_a_batch_have_the_lengths_of_its_prompts(model: LanguageModel, stored: tuple) -> None:
    structure = copy.deepcopy(stored[0])
    (call,) = [node for node in structure["nodes"] if node.get("fn") == "nnzoo.stack_ids"]
    call["args"][0] = json.loads(json.dumps(call["args"][0]).replace("5", "50000000"))
    with pytest.raises(GraphError, match="the ids of a batch"):
        read(model, structure, stored[1])


WEIGHT = {"parameter": {"name": "unembed.weight", "view": None, "detached": True}}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**63), 10**400]),
    st.floats(allow_nan=False),
    st.text(max_size=6),
    st.sampled_from(
        "torch.load os.system eval torch.Tensor.copy_ torch.Tensor.detach torch.Tensor.unsafe model:lm_head model: "
        "model:transformer.h.0.attn torch.nn.functional.embedding call put arrive t0 float32 cuda:9 unembed.hook_out "
        "torch.Tensor.add_ torch.Tensor.__setitem__ torch.broadcast_tensors torch.cat".split()
    ),
    st.sampled_from(
        [{"node": 0}, {"node": -1}, {"tensor": "t0"}, WEIGHT,
         {"slice": [1, {"node": 2}, None]}, {"size": [2**40, 2**40]}, {"generator": ["cpu", {"tensor": "t0"}]},
         {"dtype": "complex32"}, {"device": "meta"}, {"return_type": ["topk", [1]]}, {"dict": [[1]]}, {"tuple": []}]
    ),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=4), one, max_size=2), max_leaves=4
)


def spots(data: Any, path: tuple = ()) -> list[tuple]:
    """The ways to every value in a nesting."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(spot for key, part in inside for spot in spots(part, (*path, key)))]


@settings(max_examples=60)
@given(choices=st.data())
def test_any_change_is_read_or_refused(model: LanguageModel, stored: tuple, choices: st.DataObject) -> None:
    data, tensors = copy.deepcopy(stored[0]), stored[1]
    every = spots(data)[1:]
    for _ in range(choices.draw(st.integers(1, 2))):
        *way, last = choices.draw(st.sampled_from(every))
        holder = data
        try:
            for key in way:
                holder = holder[key]
            old = holder[last]
            how = choices.draw(st.sampled_from(["replace", "drop", "double", "other"]))
            if how == "replace":
                holder[last] = choices.draw(VALUES)
            elif how == "drop":
                del holder[last]
            elif how == "double" and isinstance(holder, list):
                holder.insert(last, copy.deepcopy(old))
            else:
                *others, name = choices.draw(st.sampled_from(every))
                other = stored[0]
                for key in (*others, name):
                    other = other[key]
                holder[last] = copy.deepcopy(other)
        except (KeyError, IndexError, TypeError):
            pass  # the first change took the second's place away
    weights = [p.clone() for p in model._model.parameters()]
    with suppress(GraphError):
        read(model, data, tensors)
    assert all(torch.equal(p, before) for p, before in zip(model._model.parameters(), weights, strict=True))


@settings(max_examples=60)
@given(text=st.text(max_size=40) | st.binary(max_size=60).map(lambda one: one.decode("latin1")))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(GraphError):
        Graph.from_json(text, {})
    with pytest.raises(GraphError):
        Graph.from_bytes(text.encode())


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(["float64", "int64", "uint8", "bool"]),
    which=st.integers(0, 5),
)
def test_other_tensors_are_read_or_refused(
    model: LanguageModel, stored: tuple, shape: list, dtype: str, which: int
) -> None:
    data, tensors = stored
    name = sorted(tensors)[which % len(tensors)]
    with pytest.raises(GraphError, match=name):
        read(model, data, {**tensors, name: torch.zeros(shape, dtype=getattr(torch, dtype))})


def changed(data: dict, change: Callable[[dict], None]) -> dict:
    data = copy.deepcopy(data)
    change(data)
    return data


def first(data: dict, kind: str, fn: str | None = None) -> dict:
    return next(n for n in data["nodes"] if n["kind"] == kind and (fn is None or n["fn"] == fn))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d.update(format="pickle"), "no graph"),
        (lambda d: d.update(more=1), "more"),
        (lambda d: first(d, "call").update(fn="os.system"), r"%\d+, recorded at .*: 'os.system' is not among"),
        (lambda d: first(d, "call").update(fn="torch.load"), "torch.load"),
        (lambda d: first(d, "call").update(fn="model:tokenizer.__class__"), "no module"),
        (lambda d: first(d, "call").update(fn="model:transformer.h.0.attn"), "cannot be called|can be called"),
        (lambda d: first(d, "call").update(args=[{"node": 70}, 1]), "no earlier one"),
        (lambda d: first(d, "pick").update(of=99), "earlier"),
        (lambda d: first(d, "pick").update(which=5), "gives 2 tensors"),
        (lambda d: first(d, "arrive").update(hook="__class__"), "no hook point"),
        (lambda d: first(d, "arrive").update(invoke=9), "no invoke 9"),
        (lambda d: first(d, "arrive").update(step=9), "step 9"),
        (lambda d: first(d, "arrive").update(kind="exec"), "'exec' is no kind"),
        (lambda d: first(d, "arrive").update(meta=["float63", [1]]), "float63"),
        (lambda d: first(d, "arrive").update(meta=["float64", [1, 2, 3]]), "it is float64"),
        (lambda d: first(d, "backward").update(args=[]), "of a loss"),
        (lambda d: first(d, "flowing").update(by=0), "backward pass"),
        (lambda d: d["saved"].append(10_000), "saved"),
        (lambda d: d["prompts"][0].update(tokens=None), "prompt 0"),
        (lambda d: d["prompts"][0]["options"].update(max_new_tokens=10**9), "prompt 0"),
        (lambda d: d["prompts"][0]["options"].update(temperature="hot"), "prompt 0"),
        (lambda d: d["prompts"][0]["options"].update(num_return_sequences=2**31), "65536 sequences"),
        (lambda d: d["nodes"].append(call("torch.Tensor.expand", [{"node": 0}, 2**40, -1, -1, -1])), "no memory holds"),
        (lambda d: d["nodes"].append(call("torch.Tensor.expand", [{"node": 0}, 2**62, 2**62, -1, -1])), r"%\d+"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_node(model: LanguageModel, stored: tuple, change: Any, said: str) -> None:
    with pytest.raises(GraphError, match=said):
        read(model, changed(stored[0], change), stored[1])


def call(fn: str, args: list, edits: int | None = None, **kwargs: Any) -> dict:
    fields = {"random": None, "modes": None, "hook": None, "view": None, "line": ["evil.py", 1, "evil"]}
    return {"kind": "call", "fn": fn, "args": args, "kwargs": kwargs, "edits": edits, "meta": None, **fields}


PART = {"parameter": {"name": "unembed.weight", "view": [[1, 4, 48], [192, 48, 1], 0], "detached": True}}
HIDDEN, TOKENS = {"node": 0}, {"node": 1}  # float64 [1, 4, 48], int64 [1, 4]


@pytest.mark.parametrize(
    ("evil", "said"),
    [
        (call("torch.Tensor.zero_", [PART]), "no value of the trace"),
        (call("torch.Tensor.view", [PART, -1]), "no value of the trace"),
        (call("torch.Tensor.copy_", [PART, HIDDEN]), "edits another tensor"),
        (call("torch.Tensor.copy_", [PART, HIDDEN], edits=0), "edits another tensor"),
        (call("torch.Tensor.__setitem__", [PART, 0, HIDDEN], edits=0), "edits another tensor"),
        (call("torch.Tensor.__setitem__", [HIDDEN, 0, 1.0]), "edits another tensor"),
        (call("torch.add", [HIDDEN, 1], out=PART), "edits another tensor"),
        (call("torch.Tensor.detach_", [PART]), "no value of the trace"),
        (call("torch.Tensor.detach_", [HIDDEN]), "edits another tensor"),
        (call("torch.Tensor.detach_", [TOKENS], edits=0), "does not use"),
        (call("torch.tensor_split", [HIDDEN, 2**33]), "more than 1000000 parts"),
        (call("torch.nn.functional.embedding", [TOKENS, WEIGHT, None, 0.1]), "needs numbers|edits another"),
        (call("torch.broadcast_tensors", [HIDDEN, PART]), "memory of a weight"),
        (call("torch.where", [HIDDEN]), "needs numbers"),
        (call("torch.Tensor.item", [HIDDEN]), "not among the functions"),
    ],
    ids=lambda one: one["fn"] if isinstance(one, dict) else "",
)
def test_no_call_touches_the_weights(model: LanguageModel, evil: dict, said: str) -> None:
    with model.trace(prompt(1, 4)) as tracer:
        model.transformer.h[0].output[0].save()
        model.transformer.wte.input.save()
        graph = tracer.graph
    data = json.loads(graph.to_json())
    data["nodes"].append(evil)
    before = model._model.unembed.weight.clone()
    with pytest.raises(GraphError, match=f"%2.*({said})"):
        read(model, data, graph.tensors)
    assert torch.equal(model._model.unembed.weight, before)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "NaN", '{"format": 1, "format": 2}', "1" * 5000, "\ud800"]
)
def test_hostile_json(text: str) -> None:
    with pytest.raises(GraphError):
        Graph.from_json(text, {})
