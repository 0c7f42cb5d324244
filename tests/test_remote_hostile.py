"""Whatever a request asks, the answer is an error that says why; no weight is changed, nothing crashes or hangs."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import folder, prompt
from nnzoo import LanguageModel
from nnzoo.remote.limits import LimitError, Limits
from nnzoo.remote.protocol import pack
from nnzoo.remote.watching import Watch
from nnzoo.tracing.functions import GraphError, allowed
from nnzoo.tracing.graph_object import Graph
from test_graph_hostile import VALUES, WEIGHT, call, spots
from wire import answers, packed, refusal, values


@cache
def tiny() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """No request changes a weight, a gradient, a mode or who listens."""
    model = tiny()._model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    yield
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(point.hooks for point in model.hook_points.values())
    assert torch.get_default_dtype() == torch.float32


@cache
def base() -> tuple[str, dict[str, Tensor]]:
    with tiny().trace(prompt(2, 6)) as tracer:
        tiny().transformer.h[0].output[0].save()
        tiny().transformer.wte.input.save()
        graph = tracer.graph
        return graph.to_json(), graph.tensors


def graph_of(*calls: dict) -> bytes:
    """A request of %0, a hidden state float64 [2, 6, 48], %1, ids int64 [2, 6], and some calls; the last is saved."""
    data, tensors = json.loads(base()[0]), base()[1]
    for one in calls:
        data["nodes"].append(one)
        settle(data, tensors)
    data["saved"] = [len(data["nodes"]) - 1]
    return pack("request", {"model": "tiny", "graph": json.dumps(data)}, tensors)


def settle(data: dict, tensors: dict[str, Tensor]) -> None:
    """Say of the last node what it will be, as somebody does who wants it to be run."""
    try:
        Graph.from_json(json.dumps(data), tensors).on(tiny())
    except GraphError as error:
        found = str(error).partition(": it is ")[2].partition(" here, and")[0]
        if "[" in found:
            dtype, _, sizes = found.rstrip("]").partition("[")
            data["nodes"][-1]["meta"] = [dtype, [int(n) for n in sizes.split(",") if n.strip()]]


HIDDEN, IDS = {"node": 0}, {"node": 1}
LAST = {"node": 2}


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(request_bytes=100), "request_bytes"),
        (Limits(graph_bytes=100), "graph_bytes"),
        (Limits(nesting=2), "nesting"),
        (Limits(nodes=1), "nodes: 3 are asked for, and the limit is 1"),
        (Limits(rows=1), "rows: 2 are asked for by prompts 0 to 0"),
        (Limits(prompt_tokens=11), "prompt_tokens: 12"),
        (Limits(tensor_bytes=4607), "tensor_bytes: 4608 are asked for by %0, recorded at"),
        (Limits(alive_bytes=4608), "alive_bytes"),
        (Limits(result_bytes=4607), "result_bytes: 4608"),
    ],
    ids=lambda one: one.partition(":")[0] if isinstance(one, str) else "",
)
def test_each_limit_is_kept_and_says_who_sets_it(limits: Limits, said: str) -> None:
    request = graph_of(call("torch.Tensor.sin", [HIDDEN]))
    fields = refusal(tiny(), request, limits)
    assert (fields["code"], fields["type"]) == ("limit", "LimitError")
    assert said in fields["message"]
    assert "whoever hosts the model sets it" in fields["message"]


def test_generated_tokens_are_limited() -> None:
    with tiny().generate(prompt(2, 4), max_new_tokens=5) as tracer:
        tracer.result.save()
        request = packed(tracer.graph)
    assert "new_tokens: 5 are asked for by prompt 0" in refusal(tiny(), request, Limits(new_tokens=4))["message"]
    (message,) = answers(tiny(), [request], Limits(new_tokens=5))
    assert message.kind == "result"


@pytest.mark.parametrize(
    "fn_and_args",
    [
        ("torch.Tensor.repeat", [HIDDEN, 2**18, 1, 1000]),
        ("torch.Tensor.expand", [HIDDEN, 2**37, 2, 6, 48]),
        ("torch.kron", [{"node": 2}, {"node": 2}]),
        ("torch.nn.functional.pad", [HIDDEN, {"tuple": [2**30, 2**30]}]),
        ("torch.nn.functional.one_hot", [IDS, 2**40]),
    ],
    ids=lambda one: one[0],
)
def test_a_terabyte_is_refused_by_its_shape(fn_and_args: tuple[str, list]) -> None:
    fn, args = fn_and_args
    flat = call("torch.Tensor.repeat", [HIDDEN, 100, 1, 10])
    fields = refusal(tiny(), graph_of(flat, call(fn, args)))
    assert fields["code"] in ("limit", "graph")
    assert fields["line"] == ["evil.py", 1, "evil"]


def test_many_values_of_a_lawful_size_are_too_much_together() -> None:
    big = [call("torch.Tensor.repeat", [HIDDEN, 100, 1, 1]) for _ in range(8)]  # 0.46 MB each
    together = call("torch.cat", [{"list": [{"node": 2 + n} for n in range(8)]}])
    assert refusal(tiny(), graph_of(*big, together), Limits(alive_bytes=6_000_000))["code"] == "limit"
    (message,) = answers(tiny(), [graph_of(*big, together)], Limits(alive_bytes=8_000_000))
    assert message.kind == "result"


def test_limits_are_said_in_units_people_read() -> None:
    with pytest.raises(LimitError, match=r"result_bytes: 3 TB are asked for, and the limit is 1 GB"):
        Limits().check("result_bytes", 3 * 2**40)


# --- memory of others, and the end of the process --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([call("torch.nn.functional.pad", [HIDDEN, {"tuple": [5, -5]}, "circular"])], "never written"),
        ([call("torch.nn.functional.pad", [HIDDEN, {"tuple": [-5, 5]}], mode="circular")], "never written"),
        ([call("torch.nn.functional.embedding", [IDS, WEIGHT, None, None, 2.0, True])], "scale_grad_by_freq"),
        ([call("torch.nn.functional.embedding", [IDS, WEIGHT], scale_grad_by_freq=True)], "scale_grad_by_freq"),
        ([call("torch.nn.functional.embedding", [IDS, WEIGHT], sparse=True)], "sparse"),
        (
            [
                call("torch.Tensor.narrow", [HIDDEN, 1, 0, 3]),
                call("torch.nn.functional.scaled_dot_product_attention", [HIDDEN, HIDDEN, LAST]),
            ],
            "do not belong together",
        ),
        (
            [
                call("torch.Tensor.narrow", [HIDDEN, 0, 0, 0]),
                call("torch.nn.functional.scaled_dot_product_attention", [HIDDEN, LAST, LAST], enable_gqa=True),
            ],
            "do not belong together",
        ),
        (
            [
                call("torch.Tensor.narrow", [HIDDEN, 2, 0, 6]),
                call("torch.linalg.matrix_power", [LAST, -(2**63)]),
            ],
            r"2\*\*20|integer",
        ),
        ([call("torch.Tensor.lcm", [IDS, IDS])], "not among"),
        ([call("torch.Tensor.t_", [HIDDEN], edits=0)], "not among"),
        ([call("torch.Tensor.as_strided", [HIDDEN, {"size": [9]}, {"size": [1]}])], "not among"),
        ([call("torch.Tensor.to", [HIDDEN, {"device": "meta"}])], "cannot be sent|meta"),
        ([call("torch.Tensor.copy_", [WEIGHT, HIDDEN], edits=0)], "edits another|size|shape"),
        ([call("torch.Tensor.type_as", [WEIGHT, HIDDEN])], "memory of a weight"),
        ([call("torch.Tensor.to", [WEIGHT, HIDDEN])], "memory of a weight"),
        ([call("torch.Tensor.put_", [HIDDEN, HIDDEN, HIDDEN], edits=0)], "index|long|Long"),
    ],
    ids=lambda one: one[-1]["fn"].rpartition(".")[2] if isinstance(one, list) else "",
)
def test_a_call_that_does_harm_is_refused(calls: list[dict], said: str) -> None:
    fields = refusal(tiny(), graph_of(*calls))
    assert any(word in fields["message"] for word in said.replace("\\", "").split("|")), fields
    assert fields["line"] in (["evil.py", 1, "evil"], None)


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (
            [
                call("torch.Tensor.narrow", [HIDDEN, 2, 0, 6]),
                call("torch.Tensor.__truediv__", [LAST, 0]),
                call("torch.linalg.eigvals", [{"node": 3}]),
            ],
            "infinities or NaNs",
        ),
        (
            [
                call("torch.Tensor.__mul__", [IDS, 0]),
                call("torch.Tensor.__add__", [LAST, -(2**62)]),
                call("torch.Tensor.__mul__", [{"node": 3}, 2]),
                call("torch.div", [{"node": 4}, -1], rounding_mode="trunc"),
            ],
            "least integer",
        ),
        (
            [
                call("torch.Tensor.__mul__", [IDS, 10**9]),
                call("torch.Tensor.__getitem__", [HIDDEN, {"tuple": [{"slice": [None, None, None]}, {"node": 2}]}]),
            ],
            "out of bounds",
        ),
        (
            [
                call("torch.Tensor.__sub__", [IDS, 10**9]),
                call("torch.nn.functional.embedding", [{"node": 2}, WEIGHT]),
            ],
            "out of range",
        ),
        (
            [
                call("torch.Tensor.narrow", [HIDDEN, 2, 0, 6]),
                call("torch.Tensor.__add__", [IDS, 10**6]),
                call("torch.Tensor.to", [{"node": 3}, {"dtype": "int32"}]),
                call("torch.linalg.lu_solve", [LAST, {"node": 4}, LAST]),
            ],
            "rows of their matrix",
        ),
    ],
    ids=["eigvals", "div", "getitem", "embedding", "lu_solve"],
)
def test_numbers_that_do_harm_are_refused(calls: list[dict], said: str) -> None:
    fields = refusal(tiny(), graph_of(*calls))
    assert said in fields["message"]
    assert (fields["code"], fields["line"]) == ("run", ["evil.py", 1, "evil"])


def test_what_autograd_has_kept_is_not_changed_behind_its_back() -> None:
    with tiny().trace(prompt(2, 6)) as tracer:
        hidden = tiny().transformer.h[0].output[0]
        index = (hidden[0, :, 0] * 0).long().save()
        loss = hidden.index_select(1, index).sum()
        index.data[:] = 10**9
        loss.backward()
        number = hidden.grad.save()._node.index
        request = packed(tracer.graph)
        tracer.recorder.effects.clear()
        tracer.recorder.alive.clear()
    (message,) = answers(tiny(), [request])
    gradient = values(message)[number]
    assert gradient[:, 0].unique().tolist() == [6.0]  # each of the six read the first row
    assert gradient[:, 1:].abs().max() == 0


def test_the_memory_of_a_weight_is_not_edited_however_it_came_there() -> None:
    model = tiny()._model
    watch = Watch(model, Limits(), lambda layer, token: None)
    with tiny().trace(prompt(1, 3)) as tracer:
        hidden = tiny().transformer.h[0].output[0]
        hidden[:] = 0
        node = tracer.recorder.nodes[-1]
        del hidden
    watch.check_edit(node, torch.zeros(3))
    with pytest.raises(GraphError, match="edits a weight"):
        watch.check_edit(node, model.unembed.weight.detach()[1:, 2:].T)


def test_no_module_hands_out_a_weight() -> None:
    """Every module of the model, applied to whatever it takes, and its result overwritten."""
    for path in ("transformer.wte", "transformer.ln_f", "transformer.h.1.mlp", "lm_head"):
        arg = IDS if path.endswith("wte") else HIDDEN
        request = graph_of(call(f"model:{path}", [arg]), call("torch.Tensor.zero_", [LAST], edits=2))
        (message,) = answers(tiny(), [request])
        assert message.kind == "result", message.fields


def test_every_function_of_the_list_is_run_or_refused() -> None:
    """On a hidden state and on ids, which few of them take; none changes a weight or ends the process."""
    kinds = set()
    for name in sorted(allowed())[::20]:
        for args in ([HIDDEN], [HIDDEN, IDS], [IDS, HIDDEN, WEIGHT]):
            (message,) = answers(tiny(), [graph_of(call(name, args))])
            kinds.add(message.kind)
    assert kinds == {"result", "error"}


# --- anything --------------------------------------------------------------------------------------------------------


@cache
def stored() -> tuple[dict, dict[str, Tensor]]:
    with tiny().generate(max_new_tokens=3, do_sample=True) as tracer:
        with tracer.invoke(prompt(1, 5)):
            hidden = tiny().transformer.h[1].output[0]
            hidden[:, -1] += 1
            tiny().transformer.h[2].mlp.output = torch.nn.functional.dropout(hidden.clone(), 0.5)
            top, _ = hidden.topk(3, dim=-1)
            top.sum().backward()
            hidden.grad.save()
            tracer.result.save()
        with tracer.invoke(prompt(2, 3)):
            with tracer.iter[1]:
                tiny().transformer.h[2].output[0][..., 0:2].save()
        graph = tracer.graph
        found = json.loads(graph.to_json()), graph.tensors
        tracer.recorder.effects.clear()
    return found


@settings(max_examples=40)
@given(choices=st.data())
def test_any_change_of_a_graph_is_answered(choices: st.DataObject) -> None:
    requests = []
    for _ in range(choices.draw(st.integers(1, 2))):
        data, tensors = copy.deepcopy(stored()[0]), stored()[1]
        for _ in range(choices.draw(st.integers(0, 2))):
            *way, last = choices.draw(st.sampled_from(spots(data)[1:]))
            holder: Any = data
            for key in way:
                holder = holder[key]
            if choices.draw(st.booleans()):
                holder[last] = choices.draw(VALUES)
            else:
                del holder[last]
        requests.append(pack("request", {"model": "tiny", "graph": json.dumps(data)}, tensors))
    for message in answers(tiny(), requests, Limits(seconds=10)):
        assert message.kind in ("result", "error")


@settings(max_examples=60)
@given(data=st.binary(max_size=50), text=st.text(max_size=30))
def test_any_bytes_are_answered(data: bytes, text: str) -> None:
    requests = [data, b"nnzoo\0\1\0" + data]
    if not any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        requests.append(pack("request", {"model": text, "graph": text}))
    assert [one.kind for one in answers(tiny(), requests)] == ["error"] * len(requests)


def test_a_tensor_of_which_the_graph_says_nothing_is_refused() -> None:
    data, tensors = stored()
    request = pack("request", {"model": "tiny", "graph": json.dumps(data)}, {**tensors, "more": torch.zeros(3)})
    assert "'more', which comes with it" in refusal(tiny(), request)["message"]
    request = pack("request", {"model": "tiny", "graph": json.dumps(data)}, {**tensors, "t0": torch.zeros(3)})
    assert "'t0'" in refusal(tiny(), request)["message"]


def test_what_is_lawful_is_answered_with_values() -> None:
    (message,) = answers(tiny(), [pack("request", {"model": "tiny", "graph": json.dumps(stored()[0])}, stored()[1])])
    assert len(values(message)) == 3
