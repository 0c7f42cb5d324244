"""Products in a faster way: float32's exactness, and PyTorch's own products where anything looks into them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nnzoo.architectures import products
from nnzoo.architectures.products import BLOCKS, FEW, MANY, SMALL, by_onednn, chosen_by_pytorch, linear, on_intel

D_IN, D_OUT = 512, 640
TIMES = 2.5 if products.faster_way() is by_onednn else 4  # MKL's errors; it is more exact where it is taken
WAYS = {"by oneDNN": (by_onednn, 1), "on Intel": (on_intel, products.WIDE), "on Intel, wide": (on_intel, 1)}
Way = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, two_threads: None) -> list[tuple]:
    """The calls that a way was asked for, which is the faster one now."""
    (way, wide), calls = request.param, []
    if wide == 1 and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no such operator")
    monkeypatch.setattr(products, "WIDE", wide)
    monkeypatch.setattr(products, "faster_way", lambda: lambda *args: calls.append(args) or way(*args))
    return calls


def values(*shape: int) -> Tensor:
    return torch.empty(shape).uniform_(-1, 1)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "one row": lambda: values(FEW, D_IN),
    "batch pos": lambda: values(2, 33, D_IN),
    "four axes": lambda: values(2, 3, 5, D_IN),
    "last positions": lambda: values(16, 9, D_IN)[:, -1:],
    "every other number": lambda: values(4, 9, 2 * D_IN)[..., ::2],
    "turned": lambda: values(D_IN, 64).t(),
    "one row for all": lambda: values(1, D_IN).expand(12, D_IN),
}


@pytest.mark.parametrize("x", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("stored", ["out in", "in out"])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_is_nearly_as_exact_as_pytorchs(asked: list, x: Callable[[], Tensor], stored: str, biased: bool):
    torch.manual_seed(0)
    weight = values(D_OUT, D_IN) if stored == "out in" else values(D_IN, D_OUT).t()
    given, bias = x(), values(D_OUT) if biased else None
    exact = F.linear(given.double(), weight.double(), None if bias is None else bias.double())
    ours, theirs = linear(given, weight, bias), F.linear(given, weight, bias)
    assert len(asked) == 1 and ours.shape == theirs.shape and ours.stride() == theirs.stride()
    assert (ours - exact).abs().mean() <= TIMES * (theirs - exact).abs().mean()
    assert (ours - exact).abs().max() <= 2e-6 * exact.abs().max()


class Noticing(Tensor):
    pass


NOT_ASKED: dict[str, tuple[Callable[[], AbstractContextManager], Callable[[Tensor], Tensor]]] = {
    "gradients": (torch.enable_grad, lambda x: x),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), lambda x: x),
    "few vectors": (nullcontext, lambda x: x[: FEW - 1]),
    "float64": (nullcontext, lambda x: x.double()),
    "a class of one's own": (nullcontext, lambda x: x.as_subclass(Noticing)),
    "a mode that counts": (lambda: FlopCounterMode(display=False), lambda x: x),
    "oneDNN off": (lambda: torch.backends.mkldnn.flags(enabled=False), lambda x: x),
    "chosen by PyTorch": (chosen_by_pytorch, lambda x: x),
}


@pytest.mark.parametrize(("context", "of"), NOT_ASKED.values(), ids=NOT_ASKED)
def test_pytorchs_own_product(asked: list, context: Callable, of: Callable[[Tensor], Tensor]):
    torch.manual_seed(0)
    x, weight = of(values(16, D_IN)), values(D_OUT, D_IN)
    weight = weight.to(x.dtype)
    with context():
        ours, theirs = linear(x, weight, None), F.linear(x, weight)
    assert not asked and ours.dtype == theirs.dtype and torch.equal(ours, theirs)


BIASES: dict[str, Callable[[], Tensor]] = {
    "every other number": lambda: values(2 * D_OUT)[::2],
    "one number for all": lambda: values(1).expand(D_OUT),
    "one number": lambda: values(1),
    "a row": lambda: values(1, D_OUT),
    "a row for each": lambda: values(16, D_OUT),
}


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_a_bias_that_a_library_would_misread_is_pytorchs(asked: list, bias: Callable[[], Tensor]):
    x, weight, added = values(16, D_IN), values(D_OUT, D_IN), bias()
    assert torch.equal(linear(x, weight, added), F.linear(x, weight, added)) and not asked


@pytest.mark.parametrize(
    ("x", "bias"), [((16, D_IN - 1), None), ((), None), ((16, D_IN), (D_OUT - 1,))], ids=["d_in", "a number", "bias"]
)
def test_what_does_not_fit_has_pytorchs_error(asked: list, x: tuple[int, ...], bias: tuple[int, ...] | None):
    weight, added = values(D_OUT, D_IN), None if bias is None else values(*bias)
    with pytest.raises(RuntimeError) as theirs:
        F.linear(values(*x), weight, added)
    with pytest.raises(RuntimeError) as ours:
        linear(values(*x), weight, added)
    assert str(ours.value) == str(theirs.value) and not asked


def test_a_bias_elsewhere_is_not_read(asked: list):
    with suppress(RuntimeError, NotImplementedError):
        linear(values(16, D_IN), values(D_OUT, D_IN), torch.empty(D_OUT, device="meta"))
    assert not asked


def test_a_vector_or_a_sparse_matrix_of_weights_is_pytorchs(asked: list):
    x, vector, weight = values(FEW, SMALL), values(SMALL), values(D_OUT, D_IN)
    assert torch.equal(linear(x, vector, None), F.linear(x, vector))
    torch.testing.assert_close(linear(x[:, :D_IN], weight.to_sparse(), None), F.linear(x[:, :D_IN], weight))
    assert not asked


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_what_is_no_finite_number_goes_where_it_goes_in_pytorchs(asked: list, number: float):
    torch.manual_seed(0)
    x, weight = values(16, D_IN), values(D_OUT, D_IN)
    x[2], x[3, 5], weight[7, 5] = 0, number, number
    ours, theirs = linear(x, weight, None), F.linear(x, weight)
    assert asked and not theirs.isfinite().all() and torch.equal(ours.isnan(), theirs.isnan())
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_threads_at_once_and_tensors_of_inference_mode(asked: list):
    with torch.inference_mode():
        x, weight = values(16, D_IN), values(D_OUT, D_IN)
        expected = F.linear(x, weight)

    def product(_: int) -> Tensor:
        with torch.no_grad():
            return linear(x, weight, None)

    with ThreadPoolExecutor(4) as pool:
        for ours in pool.map(product, range(40)):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert len(asked) == 40


def test_transforms_see_pytorchs_own_product(asked: list):
    torch.manual_seed(0)
    x, weight = values(3, 16, D_IN), values(D_OUT, D_IN)
    torch.testing.assert_close(vmap(lambda row: linear(row, weight, None))(x), F.linear(x, weight))
    torch.func.jvp(lambda one: linear(one, weight, None), (x,), (x,))
    assert not asked


class Following(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_one_mode_that_takes_operations_as_they_come_may_look(asked: list):
    x, weight = values(16, D_IN), values(D_OUT, D_IN)
    with Following():
        linear(x, weight, None)
        assert not asked
        with products.followed():
            linear(x, weight, None)
            assert len(asked) == 1
            with Following():
                linear(x, weight, None)
    assert len(asked) == 1


def test_a_weight_that_is_small_or_of_a_class_of_its_own_is_pytorchs(asked: list):
    linear(values(16, 100), values(100, 100), None)
    linear(values(16, D_IN), values(D_OUT, D_IN).as_subclass(Noticing), None)
    assert not asked
    linear(values(16, D_IN), nn.Parameter(values(D_OUT, D_IN)), None)
    assert asked


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is multiplied block by block."""
    shapes: list[tuple[int, ...]] = []
    real = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: shapes.append((*a.shape, b.shape[-1])) or real(a, b))
    return shapes


@pytest.mark.parametrize("threads", [2, BLOCKS])
def test_blocks_of_d_in(blocks: list, two_threads: None, threads: int):
    torch.set_num_threads(threads)
    on_intel(values(2, MANY // 2, D_IN), values(D_IN, D_OUT).t(), None)
    assert blocks == [(BLOCKS, MANY, D_IN // BLOCKS, D_OUT)]


def test_a_bias_stays_what_it_was(two_threads: None):
    weight, bias = values(D_IN, D_OUT).t(), values(D_OUT)
    before = bias.clone()
    on_intel(values(FEW, D_IN), weight, bias)
    assert torch.equal(bias, before)


NO_BLOCKS: dict[str, tuple[int, Tensor, int]] = {
    "many vectors": (MANY + 1, torch.rand(D_IN, D_OUT).t(), 2),
    "weights as nn.Linear has them": (FEW, torch.rand(D_OUT, D_IN), 2),
    "weights with gaps": (FEW, torch.rand(D_IN, 2 * D_OUT)[:, :D_OUT].t(), 2),
    "no four parts": (FEW, torch.rand(D_IN + 1, D_OUT).t(), 2),
    "one thread": (FEW, torch.rand(D_IN, D_OUT).t(), 1),
    "three threads": (FEW, torch.rand(D_IN, D_OUT).t(), 3),
}


@pytest.mark.parametrize(("rows", "weight", "threads"), NO_BLOCKS.values(), ids=NO_BLOCKS)
def test_pytorchs_own_product_where_blocks_gain_nothing(
    blocks: list, two_threads: None, rows: int, weight: Tensor, threads: int
):
    torch.set_num_threads(threads)
    x = values(rows, weight.shape[1])
    assert torch.equal(on_intel(x, weight, None), F.linear(x, weight)) and not blocks


@pytest.mark.parametrize("rows", [MANY, MANY + 1])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_wide_weight_goes_to_onednn(monkeypatch: pytest.MonkeyPatch, rows: int, missing: int):
    calls = []
    monkeypatch.setattr(products, "WIDE", D_IN * D_OUT + missing)
    monkeypatch.setattr(products, "by_onednn", lambda *args: calls.append(args) or F.linear(*args))
    on_intel(values(rows, D_IN), values(D_OUT, D_IN), None)
    on_intel(values(rows, D_IN), values(D_IN, D_OUT).t(), None)
    on_intel(values(rows, D_IN), values(D_OUT, 2 * D_IN)[:, :D_IN], None)
    assert len(calls) == (rows == MANY and not missing)
