"""Unusual bodies: each gives what the same lines give in a plain hook on transformers' model, or the same error."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from families import error, folder, in_full, prompt, theirs
from nnzoo import LanguageModel

TOKENS = prompt(2, 9)
ALL = slice(None)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


def hooked(body: Callable[[Tensor], Any]) -> tuple[Any, Tensor]:
    """What a body gives in a hook on the second block, and the logits that come of it."""
    plain, given = theirs("gpt2", "default"), []

    def hook(module: object, args: object, output: Tensor) -> Tensor:
        stream = output.clone()
        given.append(body(stream))
        return stream

    handle = plain.transformer.h[1].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return given, plain(TOKENS).logits
    finally:
        handle.remove()


def halved_until_small(h: Tensor) -> Tensor:
    while h.norm() > 1:
        h.mul_(0.5)
    return h.norm()


def generator_that_waits(h: Tensor) -> list[Tensor]:
    rows = (h[:, i] * i for i in range(3))
    first = next(rows)
    h.zero_()
    return [first, *rows]


def caught(h: Tensor) -> Tensor:
    try:
        return h @ torch.zeros(3)
    except RuntimeError:
        return h * 2


def caught_in_a_look(h: Tensor) -> Tensor:
    try:
        torch.linalg.cholesky(-torch.eye(3) * h[0, :3, :3].square().float()).sum().item()
    except torch.linalg.LinAlgError:
        return h * 2
    return h


async def awaited(h: Tensor) -> Tensor:
    await asyncio.sleep(0)
    return h * 2


def in_threads(h: Tensor) -> list[float]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda i: h[0, i, i].item(), range(8)))


BODIES: dict[str, Callable[[Tensor], Any]] = {
    "a slice of nothing": lambda h: [h[:, 3:3].sum(), h[:, 3:3].mean(), torch.cat([h[:, :0], h], 1)],
    "nothing is set": lambda h: h.__setitem__((ALL, slice(3, 3)), 7.0),
    "an overlap": lambda h: h.__setitem__((ALL, slice(1, None)), h[:, :-1]),
    "a swap": lambda h: h.__setitem__((ALL, [0, 1]), h[:, [1, 0]]),
    "masks": lambda h: [h[..., torch.arange(48) % 2 == 0, None], h[None, torch.ones(2, 9).bool()], h[True], h[False]],
    "a mask without axes": lambda h: h[torch.tensor(True)],
    "a mask of nothing": lambda h: h.__setitem__(h > 1e9, torch.zeros(0).double()),
    "complex numbers": lambda h: torch.view_as_complex(h.view(2, 9, 24, 2)).mul_(2j).abs(),
    "too large integers": lambda h: [(h * 50).to(torch.int8) + torch.tensor(100).to(torch.int8), h.abs().byte() - 5],
    "other dtypes": lambda h: [h.__setitem__(ALL, h.bfloat16()), h.half() @ h.half().mT, torch.ones(3) * h.norm()],
    "infinities": lambda h: [h.__setitem__((0, -1), float("inf")), h.div_(0)],
    "a traced index": lambda h: [h[:, h[0, :, 0].argmax()], h.__setitem__((ALL, h[0, :, 0].argmax()), 0.0)],
    "odd views": lambda h: [h.unfold(1, 2, 2).mul_(2), h.diagonal(dim1=1, dim2=2).zero_(), h.as_strided((2, 3), (1, 2))],  # noqa: E501
    "a copy by chance": lambda h: [h.mT.reshape(-1).zero_(), h.flatten().add_(1), h.float().zero_(), h.double().mul_(2)],  # noqa: E501
    "rows": lambda h: [row.mul_(i) for i, row in enumerate(h[0])],
    "added up at one place": lambda h: h.index_put_((torch.tensor([0, 0]),), torch.ones(9, 48).double(), True),
    "real tensors": lambda h: torch.zeros(4, 48).double().index_copy_(0, torch.tensor([1]), h[0, :1]),
    "a comprehension": lambda h: [max(h.norm(), h.mean()), sorted([h.norm(), h.mean()]), h in [h], len({h, h})],
    "formats": lambda h: [f"{h.norm():.3f} {h.dtype} {h.type()}", format(h.norm(), ".2f"), h == None],  # noqa: E711
    "numpy": lambda h: [torch.tensor(np.exp(np.asarray(h))), torch.from_numpy(np.from_dlpack(h)), h[:, np.array([0])]],
    "dlpack": torch.from_dlpack,
    "until": halved_until_small,
    "a generator": generator_that_waits,
    "caught": caught,
    "caught in a look": caught_in_a_look,
    "async": lambda h: asyncio.run(awaited(h)),
    "threads": in_threads,
}  # fmt: skip


def same(ours: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        assert (ours.shape, ours.dtype) == (expected.shape, expected.dtype)
        return torch.allclose(ours, expected, atol=1e-9, equal_nan=True)
    if isinstance(expected, (list, tuple)):
        return len(ours) == len(expected) and all(same(a, b) for a, b in zip(ours, expected, strict=True))
    return ours == pytest.approx(expected) if isinstance(expected, float) else ours == expected


LOCAL = {
    "odd views": pytest.mark.local("a graph that is sent holds no as_strided, which reads any memory"),
    "numpy": pytest.mark.local("a graph that is sent holds tensors, and no arrays"),
    "caught in a look": pytest.mark.local("all that is held is sent, and the value that failed is held by its error"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(one, marks=LOCAL.get(one, ())) for one in BODIES])
def test_a_body_gives_what_it_gives_in_a_hook(model: LanguageModel, name: str) -> None:
    (expected,), changed = hooked(BODIES[name])
    with model.trace(TOKENS):
        given = BODIES[name](model.transformer.h[1].output[0])
        logits = model.output
    assert same(given, expected)
    assert torch.allclose(logits, changed, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(
    "body",
    [
        lambda h: h[torch.ones(2, 8).bool()],
        lambda h: h[0, ..., torch.ones(47).bool()],
        lambda h: h[5],
        lambda h: h.__setitem__((0, 0), "x"),
        lambda h: h + None,
        lambda h: h.sum(5),
        lambda h: [1][h],
    ],
)
def test_a_mistake_is_the_same_kind_of_error_as_in_a_hook(model: LanguageModel, body: Callable) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011  # which one, PyTorch decides
        hooked(body)
    with pytest.raises(expected.type) as raised, model.trace(TOKENS):
        body(model.transformer.h[1].output[0])
    assert raised.traceback[-1].name == "<lambda>"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_body_leaves_the_model_as_it_was(model: LanguageModel, stop: type[BaseException]) -> None:
    with pytest.raises(stop), model.trace(TOKENS):
        model.transformer.h[1].output[0][:] = 0
        raise stop
    with model.trace(TOKENS):
        logits = model.output
    assert error(logits, hooked(lambda h: None)[1]) < 1e-9


def test_a_look_that_fails_speaks_of_nothing_else(model: LanguageModel) -> None:
    with pytest.raises(IndexError) as raised, model.trace(TOKENS):
        picked = model.transformer.h[1].output[0][torch.tensor([7])]
        bool(picked.sum() > 0)
    assert raised.value.__context__ is None


@pytest.mark.filterwarnings("ignore")
def test_what_goes_through_the_compiler_says_so(model: LanguageModel) -> None:
    with pytest.raises(Exception) as raised, model.trace(TOKENS):  # noqa: PT011  # the compiler has many
        h = model.transformer.h[1].output[0]
        torch.cond(h.norm() > 3, lambda x: x * 2, lambda x: x + 1, (h,))
    assert "PyTorch's compiler" in in_full(raised.value)
