"""A graph as JSON and tensors: exact for every kind of argument, and nothing but what is allowed in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from families import folder, prompt
from nnzoo import LanguageModel
from nnzoo.tracing.functions import GraphError, allowed, decode_function, encode_function
from nnzoo.tracing.graph_object import Graph
from nnzoo.tracing.values import decode_value, encode_value

HERE = Path(__file__).name


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


def of_hidden(change: Callable[[Tensor], Any]) -> Callable[[LanguageModel], Any]:
    """A body that keeps what a function makes of the residual stream."""
    return lambda model: change(model.transformer.h[1].output[0])


def random_in_a_row(model: LanguageModel) -> list[Tensor]:
    hidden = model.transformer.h[1].output[0]
    return [
        F.dropout(hidden, 0.5),
        torch.bernoulli(hidden.sigmoid()),
        hidden.clone().uniform_(),
        torch.rand(3) + hidden[0, 0, 0],
    ]


def under_modes(model: LanguageModel) -> list[Tensor]:
    hidden = model.transformer.h[1].output[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = hidden @ hidden.mT
    with torch.no_grad():
        plain = hidden * 2
    torch.set_default_dtype(torch.float32)
    try:
        default = (hidden > 0) * 0.5
    finally:
        torch.set_default_dtype(torch.get_default_dtype())
    return [halved, plain, default]


def gradients(model: LanguageModel) -> list[Tensor]:
    hidden = model.transformer.h[1].output[0]
    early = hidden.grad
    (given,) = torch.autograd.grad(hidden.pow(2).sum(), hidden)
    with (model.output[:, -1] ** 2).sum().backward():
        model.transformer.h[2].output[0].grad[:, 0] = 0
        z = model.transformer.h[0].attn.c_proj.input.grad
        model.transformer.h[0].output[0].grad = model.transformer.h[0].output[0].grad * 2
    return [early, given, z, hidden]


BODIES: dict[str, Callable[[LanguageModel], Any]] = {
    "slices and Ellipsis": of_hidden(
        lambda h: [h[..., 1:7:2], h[:, None, -1], h[0, [1, 2]], h[:, torch.tensor([0, 2])]]
    ),
    "a mask, None, strings": of_hidden(lambda h: [h[:, torch.arange(9) % 2 == 0], torch.einsum("bpd,bqd->bpq", h, h)]),
    "dtypes": of_hidden(lambda h: [h.to(torch.float16), h.type(torch.float32), h.long(), h.to(float), h.double()]),
    "devices": of_hidden(lambda h: [h.to("cpu"), h.to(torch.device("cpu"), torch.bfloat16), h.cpu()]),
    "memory formats": of_hidden(
        lambda h: [
            h.mT.contiguous(memory_format=torch.contiguous_format),
            h.mT.clone(memory_format=torch.preserve_format),
        ]
    ),
    "sizes": of_hidden(
        lambda h: [h.view(torch.Size([2, 9, 4, 12])), h.reshape(*h.shape[:2], -1, 6), h.expand(3, *h.shape)]
    ),
    "several results": of_hidden(
        lambda h: [*h.topk(3), *h.max(dim=-1), *torch.linalg.svd(h), *h.split(4, dim=-1), *h.sort()]
    ),
    "lists": of_hidden(lambda h: [torch.cat([h, h * 2]), torch.stack((h, h)), *torch.broadcast_tensors(h, h[:, :1])]),
    "odd numbers": of_hidden(
        lambda h: [h.clamp(max=float("inf")), h.nan_to_num(nan=float("nan")), h * (1 + 2j), h * 1e-300]
    ),
    "attributes": of_hidden(lambda h: [h.mT, h[0].T, h.real, h.data]),
    "edits": of_hidden(lambda h: [h.add_(1), h.clone().masked_fill_(h > 0, 2.0), h[h > 0].sum() if False else h]),
    "a lazy mask": of_hidden(lambda h: h.__setitem__(h > 0, 3.0)),
    "strided constants": of_hidden(
        lambda h: [h @ torch.arange(96.0).double().view(2, 48).T, h + torch.ones(1).double().expand(48)]
    ),
    "dtypes of constants": of_hidden(
        lambda h: [h * torch.tensor([True]), h * torch.tensor([2], dtype=torch.uint16), h * torch.tensor([1j])]
    ),
    "normalised": of_hidden(
        lambda h: [F.layer_norm(h, h.shape[-1:]), F.softmax(h, dim=-1, dtype=torch.float32), h.norm(dim=-1)]
    ),
    "a lens": of_hidden(lambda h: h),
    "random": random_in_a_row,
    "modes": under_modes,
    "gradients": gradients,
}


def leaves(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [one for one in value or () if isinstance(one, Tensor)]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_is_read_gives_the_same_bits(
    model: LanguageModel, body: Callable[[LanguageModel], Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with model.trace(prompt(2, 9)) as tracer:
        kept = {one._node.index: one for one in leaves(body(model))}
        kept |= {(logits := model.output)._node.index: logits}
        for one in kept.values():
            one.save()
        tracer.graph.save(tmp_path / "graph.safetensors")
    torch.manual_seed(1)
    again = Graph.load(tmp_path / "graph.safetensors").run(model)
    assert again.keys() == kept.keys()
    for number, value in kept.items():
        assert (again[number].dtype, again[number].shape) == (value.dtype, value.shape)
        assert torch.equal(as_bytes(again[number]), as_bytes(value)), number
        assert (again[number].grad is None) == (value.grad is None)
        assert value.grad is None or torch.equal(again[number].grad, value.grad)


def as_bytes(value: Tensor) -> Tensor:
    return value.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)


def test_every_function_is_known_by_its_name() -> None:
    assert len(allowed()) > 900
    for name, fn in allowed().items():
        assert decode_function(encode_function(fn)) == fn, name


def twice(x: Tensor) -> Tensor:
    return 2 * x


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda x: x, "<lambda>"),
        (twice, "twice"),
        (nn.Linear(2, 2), "Linear"),
        (torch.load, "load"),
        (torch.Tensor.as_strided, "as_strided"),
        (torch.Tensor.set_, "set_"),
        (torch.Tensor.register_hook, "register_hook"),
        (torch.from_file, "from_file"),
        (eval, "eval"),
        (getattr, "getattr"),
    ],
)
def test_other_functions_are_refused_by_name(fn: Any, said: str) -> None:
    with pytest.raises(GraphError, match=said):
        encode_function(fn)


def test_the_line_of_a_refused_function_is_said(model: LanguageModel) -> None:
    with model.trace(prompt(1, 4)) as tracer:
        hidden = model.transformer.h[0].output[0]
        made = hidden._recorder.record(twice, (hidden,), {})  # as torch.fx's wrapped functions come
        graph = tracer.graph
        with pytest.raises(GraphError, match=rf"%1, recorded at .*{HERE}:\d+.*twice") as error:
            graph.to_json()
    assert made.shape == (1, 4, 48)
    assert "lambda" not in str(error.value)


def test_a_value_that_is_no_data_is_refused() -> None:
    for value in (object(), {1, 2}, twice, nn.Linear(1, 1), range(3)):
        with pytest.raises(GraphError, match="cannot be written"):
            encode_value(value, lambda one: None, str)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -(2**70), 0.1, -0.0, "text", Ellipsis, torch.float16, torch.device("cuda:1"), torch.strided,
        torch.channels_last, torch.Size([1, 2]), (1, (2, [3])), {"a": (1,)}, slice(1, None, -1), 1 + 2j, float,
        (), [], torch.Size([]),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_comes_back(value: Any) -> None:
    written = json.loads(json.dumps(encode_value(value, lambda one: None, str), allow_nan=False))
    read = decode_value(written, lambda one: one, lambda one, kind: one)
    assert type(read) is type(value)
    assert repr(read) == repr(value)


@pytest.mark.parametrize("name", ["topk", "max", "svd", "sort"])
def test_named_results_come_back(name: str) -> None:
    value = getattr(torch.ones(2, 2), name)(*((1,) if name in ("topk", "max") else ()))
    written = encode_value(value, lambda one: None, lambda t: {"tensor": "t"})
    read = decode_value(written, lambda one: one, lambda one, kind: one)
    assert type(read) is type(value)


def test_a_generator_comes_back_with_its_state() -> None:
    generator = torch.Generator().manual_seed(5)
    kept: list[Tensor] = []
    written = encode_value(generator, lambda one: None, lambda t: kept.append(t) or {"tensor": "t"})
    read = decode_value(written, lambda one: one, lambda one, kind: kept[0])
    assert torch.equal(torch.rand(3, generator=read), torch.rand(3, generator=generator))


def test_weights_are_named_and_not_sent(model: LanguageModel) -> None:
    with model.trace(prompt(1, 4)) as tracer:
        lens = (model.transformer.h[1].output[0] @ model._model.unembed.weight.T).save()
        row = (model.transformer.h[1].output[0] * model._model.unembed.weight[3]).save()
        graph = tracer.graph
    assert set(graph.tensors) == {"t0"}, "the tokens alone"
    again = Graph.from_json(graph.to_json(), graph.tensors).run(model)
    assert [torch.equal(one, kept) for one, kept in zip(again.values(), (lens, row), strict=True)] == [True, True]


def test_a_module_of_ones_own_goes_along_as_its_operations(model: LanguageModel) -> None:
    own = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 48)).double()
    with model.trace(prompt(1, 4)) as tracer:
        out = own(model.transformer.h[1].output[0])
        out.pow(2).sum().backward()
        out.save()
        graph = tracer.graph
    again = Graph.from_json(graph.to_json(), graph.tensors).run(model)
    (value,) = again.values()
    assert torch.equal(value, out.detach())
    assert sorted(g.abs().sum() for g in again.gradients.values()) == sorted(
        p.grad.abs().sum() for p in own.parameters()
    )


def test_a_tensor_with_a_history_is_refused_where_gradients_are_taken(model: LanguageModel) -> None:
    made = torch.ones(48, dtype=torch.float64, requires_grad=True) * 2
    with model.trace(prompt(1, 4)) as tracer:
        (model.transformer.h[1].output[0] * made).sum().backward()
        with pytest.raises(GraphError, match="detach"):
            tracer.graph.to_json()


def test_after_the_trace_tensors_have_gone(model: LanguageModel) -> None:
    with model.trace(prompt(1, 4)) as tracer:
        (model.transformer.h[1].output[0] * torch.ones(48, dtype=torch.float64)).save()
    assert "* <float64[48]>" in str(tracer.graph)
    with pytest.raises(GraphError, match="inside the body"):
        tracer.graph.to_json()


def test_a_tensor_that_was_changed_since_is_said(model: LanguageModel) -> None:
    steer = torch.ones(48, dtype=torch.float64)
    with model.trace(prompt(1, 4)) as tracer:
        (model.transformer.h[1].output[0] * steer).save()
        graph = tracer.graph
    steer.zero_()
    with pytest.raises(GraphError, match="changed since"):
        graph.to_json()


def test_another_model_is_refused(model: LanguageModel) -> None:
    with model.trace(prompt(1, 4)) as tracer:
        model.output.save()
        graph = tracer.graph
    with pytest.raises(GraphError, match="kind is 'GPT2', not 'Llama'"):
        Graph.from_json(graph.to_json(), graph.tensors).run(LanguageModel(folder("llama", "default")))


def test_nothing_saved_is_said(model: LanguageModel) -> None:
    with model.trace(prompt(1, 4)) as tracer:
        held = model.output
        graph = tracer.graph
    assert held.shape
    with pytest.raises(GraphError, match="saved"):
        graph.run(model)


def test_sampled_text_is_the_same_text(model: LanguageModel) -> None:
    torch.manual_seed(3)
    with model.generate(prompt(2, 4), max_new_tokens=4, do_sample=True, num_return_sequences=2) as tracer:
        model.transformer.h[1].output[0][:, -1] += 1
        with tracer.iter[1:3]:
            hidden = model.transformer.h[2].output[0][:, -1].save()
        ids = tracer.result.save()
        stored = tracer.graph.to_bytes()
    torch.manual_seed(4)
    again = [*Graph.from_bytes(stored).run(model).values()]
    assert torch.equal(again[1] if len(again) == 3 else again[0], hidden[0]) or torch.equal(again[0], hidden[0])
    assert any(one.shape == ids.shape and torch.equal(one, ids) for one in again)
    assert len(again) == 1 + len(hidden)
