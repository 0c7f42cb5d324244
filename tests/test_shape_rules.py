"""Rules of shape and dtype answer exactly as PyTorch's own meta kernels do, and spare their import."""

import inspect
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import einops
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnzoo.tracing.effects import watched
from nnzoo.tracing.infer import infer, map_tensors
from nnzoo.tracing.shape_rules import RULES

# x is any tensor, y one that mostly broadcasts with it, s a number, d a dimension; each is drawn many times.
ELEMENTWISE = """
-x | abs(x) | x.exp() | torch.log(x) | x.sqrt() | x.rsqrt() | x.tanh() | x.sigmoid() | x.relu() | F.relu(x) | F.gelu(x)
F.gelu(x, approximate="tanh") | F.silu(x) | F.softplus(x) | F.leaky_relu(x, 0.1) | F.elu(x) | x.square() | x.round()
x.floor() | x.sign() | x.isnan() | x.isfinite() | x.isinf() | ~x | x.logical_not() | x.reciprocal() | x.sin() | x.cos()
x + y | x + s | s + x | x - y | x - s | s - x | x * y | x * s | s * x | x / y | x / s | s / x | x ** y | x ** s | s ** x
x // y | x // s | x % y | x % s | torch.add(x, y, alpha=s) | torch.sub(x, y, alpha=2) | torch.rsub(x, s)
torch.div(x, y, rounding_mode="floor") | torch.div(x, s, rounding_mode=None) | torch.true_divide(x, y) | x.float() * y
x > y | x >= s | s < x | x <= y | x == y | x != s | torch.eq(x, s) | x & y | x.bitwise_or(y) | x ^ y | x.logical_and(y)
torch.logical_or(x, y) | torch.maximum(x, y) | torch.minimum(x, y) | torch.max(x, y) | torch.atan2(x, y)
x.clamp(min=s) | x.clamp(0, 1) | torch.clamp(x, y, y) | x.clamp_min(s) | x.clamp_max(y) | F.hardtanh(x)
torch.where(m, x, y) | torch.where(m, x, s) | torch.where(m, s, x) | torch.where(x > s, x, y) | x.where(m, y)
x.masked_fill(m, s) | x.masked_fill(m, float("-inf")) | torch.lerp(x, y, s) | x.lerp(y, y) | torch.addcmul(x, y, y)
torch.addcdiv(x, x, y, value=s) | F.mse_loss(x, y) | F.mse_loss(x, y, reduction="none") | F.smooth_l1_loss(x, y)
F.kl_div(x, y, reduction="sum") | F.kl_div(x, y, log_target=True) | F.binary_cross_entropy_with_logits(x, y)
torch.zeros_like(x) | torch.ones_like(x, dtype=torch.float16) | torch.empty_like(x) | torch.full_like(x, 2.0)
torch.xlogy(x, y) | torch.hypot(x, y) | torch.fmod(x, s) | x.add_(y) | x.mul_(s) | x.sub_(y) | x.div_(s)
x.clamp_(0, 1) | x.__iadd__(y) | x.__setitem__(..., y) | x.relu_() | x.masked_fill_(m, s)
x.add_(x) | x.add_(x[..., :1])
"""
ALONG_DIMENSIONS = """
x.sum() | x.sum(d) | x.sum(d, keepdim=True) | x.sum((0, d)) | x.sum(d, dtype=torch.float64) | x.mean() | x.mean(d)
x.mean(d, True) | x.mean((0, -1), keepdim=True) | torch.mean(x, dim=d, dtype=torch.float32) | x.std() | x.std(d)
x.std(d, unbiased=False) | x.var(d, keepdim=True) | x.var(d, correction=0) | torch.var_mean(x, d) | torch.std_mean(x)
x.norm() | x.norm(dim=d) | x.norm(2, d, True) | x.norm(1, -1) | torch.norm(x, dim=d, p=float("inf")) | x.norm("fro")
torch.linalg.norm(x, dim=d) | torch.linalg.vector_norm(x, dim=d, keepdim=True) | torch.linalg.vector_norm(x, 0)
x.logsumexp(d) | x.logsumexp(d, keepdim=True) | x.amax(d) | x.amin((0, d), True) | x.amax() | x.max() | x.max(d)
x.max(d, keepdim=True).values | x.argmax() | x.argmax(d) | x.argmin(d, keepdim=True) | x.any() | x.any(d) | x.all()
(x > 0).all(d, keepdim=True) | x.any((0, d)) | x.softmax(d) | F.softmax(x, dim=d) | torch.softmax(x, d)
F.softmax(x, d, dtype=torch.float32) | x.log_softmax(d) | F.log_softmax(x, -1) | x.cumsum(d) | x.cumprod(d)
x.cumsum(d, dtype=torch.float32) | x.sort(d) | x.sort(dim=d, descending=True, stable=True) | x.argsort(d) | x.topk(1, d)
x.topk(2).indices | x.topk(k=1, largest=False) | x.median(d) | x.prod(d) | F.normalize(x, dim=d)
F.layer_norm(x, x.shape[-1:]) | F.layer_norm(x, x.shape[-1:], w, w) | F.layer_norm(x, (3,))
F.rms_norm(x, x.shape[-1:], w)
F.layer_norm(x, x.shape[-2:]) | F.cosine_similarity(x, y, dim=d) | F.cosine_similarity(x, y) | x.diff(dim=d)
x.count_nonzero(d) | torch.nn.LayerNorm(3, device="meta")(x) | x.nanmean(d)
"""
PRODUCTS = """
a @ b | torch.matmul(a, b) | b.T @ a | a.mm(b) | torch.bmm(a, b) | F.linear(a, b) | F.linear(a, b, w) | a @ w | w @ b
torch.einsum("...pd,...dk->...pk", a, b) | torch.einsum("bpd,bqd->bpq", a, a) | torch.einsum("bpd,dk->kbp", a, b)
einops.einsum(a, a, "b p d, b q d -> b p q") | einops.einsum(a, b, "b p d, d k -> b p k") | torch.einsum("ij->ji", a)
torch.addmm(b, a, b) | torch.baddbmm(a, a, b) | torch.dot(w, w) | torch.outer(w, w) | torch.mv(a, w) | a.mv(w)
torch.addmm(w, a, b) | a @ a.mT | a.transpose(0, -1) @ b | F.cross_entropy(a, t) | F.nll_loss(a, t)
F.cross_entropy(a, t, reduction="none") | F.cross_entropy(a, a) | F.cross_entropy(a, t, label_smoothing=0.1)
F.scaled_dot_product_attention(a, a, a) | F.scaled_dot_product_attention(a, b, b, is_causal=True)
torch.tensordot(a, b, 1)
torch.nn.Linear(3, 4, device="meta", dtype=a.dtype)(a) | torch.kron(a, b) | torch.inner(a, w) | torch.vdot(w, w)
"""
PARTS = """
torch.cat([x, x], d) | torch.cat([x, y], d) | torch.cat((x,)) | torch.stack([x, x], d) | torch.stack([x, y])
torch.stack([x[..., 0], x[..., 1]], d) | x.gather(d, i) | x.index_select(d, j) | F.embedding(i, x) | x[j] | x[:, j]
x[[0, 1]] | x[..., j] | x[j, j] | x[:, [0], j] | x[j, :, j] | x[j[:, None], j] | x[0, j] | x[:, 0] | x[None, j]
x[j.int()] | x[j.to(torch.int8)] | x[m] | x[j.to(torch.uint8)]
x.repeat(2, 1, 1) | x.repeat(2) | x.repeat_interleave(2, d) | x.tile((2, 2))
x.flip(d) | x.flip((0, d)) | x.roll(1, d) | x.roll((1, 2), (0, d)) | x.roll(1) | x.tril() | x.triu(1) | torch.tril(x, s)
einops.rearrange(x, "... d -> d ...") * 2 | x.transpose(0, d).softmax(-1) | (x.mT * 2).view(-1)
(x[..., 0] + 1).view(-1) | (x + y).flatten() | x.exp().T.contiguous().view(-1) | x.view(-1) | x.reshape(-1)
F.pad(x, (1, 1))
x.unsqueeze(d) + y | x.take_along_dim(i, d) | x.scatter(d, i, 1.0) | x.scatter_add(d, i, x) | x.index_fill(d, j, 0)
x.__setitem__(j, s) | x.__setitem__((slice(None), j), y) | x.to(torch.float64) + x | x.type_as(y) | x.diagonal()
"""
KINDS = {"elementwise": ELEMENTWISE, "along dimensions": ALONG_DIMENSIONS, "products": PRODUCTS, "parts": PARTS}
CALLS = [one.strip() for kind in KINDS.values() for line in kind.strip().splitlines() for one in line.split(" | ")]
NEED_VALUES = {"x[j.to(torch.int8)]", "x[m]", "x[j.to(torch.uint8)]"}
NAMES = {"torch": torch, "F": F, "einops": einops}
FLOATS = [torch.float32] * 4 + [torch.float64, torch.float16, torch.bfloat16]
USED = [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool]


class Case:
    """Tensors of the meta device and numbers that are drawn at random, most of which fit."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        choice = self._random.choice
        n = choice([0, 1, 2, 2, 3, 3, 3, 4])
        shape = [choice([1, 2, 3, 3, 4]) if self._random.random() > 0.03 else 0 for _ in range(n)]
        dtype = torch.complex64 if self._random.random() < 0.03 else choice(USED)
        floats, rows, p, k = choice(FLOATS), choice([[], [], [1], [2]]), choice([1, 2, 3]), choice([2, 3])
        other = dtype if self._random.random() < 0.1 else floats
        self.values: dict[str, Any] = {
            "x": self.tensor(shape, dtype),
            "y": self.tensor(self.fitting(choice([*[shape] * 30, [5, *shape]])), choice([dtype, dtype, choice(USED)])),
            "m": self.tensor(self.fitting(shape), torch.bool),
            "i": self.tensor([choice([1, size]) for size in shape], torch.int64),
            "j": self.tensor([2], torch.int64),
            "s": choice([2, 2, 0.5, 0.5, True, -1, 0, 1, 300, 2**40, float("inf")]),
            "d": self._random.randint(-max(n, 1), max(n, 1) - 1) if self._random.random() < 0.95 else n + 1,
            "w": self.tensor(choice([shape[-1:], [k]]), choice([dtype, dtype, floats])),
            "a": self.tensor([*rows, p, k], floats),
            "b": self.tensor([*choice([rows, []]), k, choice([k, p])], other),
            "t": self.tensor([p], torch.int64),
        }

    def fitting(self, shape: list[int]) -> list[int]:
        return [self._random.choice([size, size, size, 1]) for size in shape][self._random.choice([0, 0, 0, 1]) :]

    def tensor(self, shape: list[int], dtype: torch.dtype) -> Tensor:
        arrangement = self._random.choice(["packed", "packed", "packed", "permuted", "part", "expanded"])
        if arrangement == "permuted":
            order = self._random.sample(range(len(shape)), len(shape))
            packed = torch.empty([shape[dim] for dim in order], dtype=dtype, device="meta")
            return packed.permute([order.index(dim) for dim in range(len(shape))])
        if arrangement == "part":
            whole = torch.empty([size + self._random.choice([0, 1]) for size in shape], dtype=dtype, device="meta")
            return whole[tuple(slice(0, size) for size in shape)]
        if arrangement == "expanded":
            return torch.empty(self.fitting(shape)[-len(shape) :], dtype=dtype, device="meta").expand(shape)
        return torch.empty(shape, dtype=dtype, device="meta")

    def __str__(self) -> str:
        return ", ".join(f"{name} {_told(value)}" for name, value in self.values.items())


def _told(value: Any) -> Any:
    return (tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value


def outcome(ask: Callable[[], Any], case: Case) -> Any:
    """What an expression gives: the structure, and of each tensor all that is known of it; or the error it raises."""
    given = [value.untyped_storage()._cdata for value in case.values.values() if isinstance(value, Tensor)]

    def known(t: Tensor) -> Any:
        storage = t.untyped_storage()._cdata
        return (tuple(t.shape), t.stride(), t.dtype, given.index(storage) if storage in given else None)

    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            result = ask()
    except Exception as error:
        return type(error), str(error)
    return type(result), map_tensors(lambda t: known(t), result)


@pytest.mark.parametrize("call", CALLS)
def test_an_operation_is_answered_as_by_pytorchs_own_kernel(call: str) -> None:
    expression = compile(call, call, "eval")
    answered = 0
    for number in range(60):
        case = Case(f"{call} {number}")
        compute = lambda case=case: eval(expression, NAMES | case.values)  # noqa: E731
        theirs = outcome(compute, case)
        ours = outcome(lambda compute=compute: watched(compute, (), {})[0], case)
        assert ours == theirs, f"{call} of {case}"
        answered += not isinstance(theirs[1], str)
    assert answered >= 3 or call in NEED_VALUES, "most of the cases are wrong calls"


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "matmul"])
def test_an_operator_that_is_not_even_dispatched_is_answered_alike(name: str) -> None:
    method = getattr(Tensor, name)
    for number in range(400):
        case = Case(f"at once {number}")
        for pair in (("x", "y"), ("x", "s"), ("a", "b"), ("y", "x")):
            operands = [case.values[one] for one in pair]
            theirs = outcome(lambda operands=operands: method(*operands), case)
            ours = outcome(lambda operands=operands: infer(method, tuple(operands), {}, operands[:1]).result, case)
            assert ours == theirs, f"{name} of {operands}"


@pytest.mark.parametrize("other", [None, "a", 2**70, 1j, [1], torch.ones(()), torch.ones(5)])
def test_an_operand_that_is_none_gets_pytorchs_error(other: Any) -> None:
    x = torch.empty(2, 3, device="meta")
    case = Case("")
    theirs = outcome(lambda: x.add(other), case)
    assert outcome(lambda: infer(Tensor.add, (x, other), {}, [x]).result, case) == theirs


@pytest.mark.parametrize("name", RULES)
def test_a_rule_takes_the_arguments_of_its_operator(name: str) -> None:
    packet, overload = name.split(".")
    arguments = getattr(getattr(torch.ops.aten, packet), overload)._schema.arguments
    positional = [one.name for one in arguments if not one.kwarg_only]
    inspect.signature(RULES[name]).bind(*positional, **{one.name: None for one in arguments if one.kwarg_only})


def test_a_function_that_was_once_not_for_rules_still_is_the_next_time() -> None:
    """A compiled function of which nothing is to be seen is called without ado, but not one that rules may answer."""
    x = torch.empty(2, 3, device="meta", dtype=torch.complex64)
    for _ in range(2):
        watched(Tensor.exp, (x,), {})
    _, watch = watched(Tensor.exp, (x.real.contiguous(),), {})
    assert watch.ruled


def test_nothing_is_drawn_or_written_that_was_not() -> None:
    x = torch.empty(2, 3, device="meta")
    _, drawn = watched(F.dropout, (x, 0.5, True), {})
    _, idle = watched(F.dropout, (x, 0.5, False), {})
    _, written = watched(Tensor.add_, (x, 1), {})
    assert (drawn.draws, idle.draws, written.draws) == (True, False, False)
    assert (drawn.changed([x]), idle.changed([x]), written.changed([x])) == ((), (), (0,))


FIRST_TRACES = """
import sys, torch, einops
from torch.nn import functional as F
from nnzoo import LanguageModel

def check(what, graph=None):
    found = {"sympy", "torch._dynamo"} & set(sys.modules)
    assert not found, f"{what} imports {found}"
    if graph is not None:
        type(graph).from_bytes(graph.to_bytes()).run(model)
        check(f"{what}, run again as a stored graph,")

prompt = torch.tensor([[5, 9, 2]])
for name in ("nnzoo/tiny-gpt2", "nnzoo/tiny-llama"):
    model = LanguageModel(name)
    is_llama = "llama" in name
    layers = model.model.layers if is_llama else model.transformer.h
    norm = model.model.norm if is_llama else model.transformer.ln_f
    with model.trace(prompt) as tracer:
        lens = [model.lm_head(norm(layer.output[0]))[:, -1].softmax(-1).topk(3).values.save() for layer in layers]
        graph = tracer.graph
    check("a logit lens", graph)
    with model.trace(prompt) as tracer:
        h = layers[1].output[0]
        h[:] = h * 2
        h[:, -1] += 3 * F.normalize(h[:, 0], dim=-1)
        h[:, [0, 1]] = h[:, [0, 1]] / 2 - h.mean((0, 1))
        loss = F.cross_entropy(model.lm_head.output[0], torch.zeros(h.shape[1], dtype=torch.long)).save()
        graph = tracer.graph
    check("steering", graph)
    with model.trace() as tracer:
        with tracer.invoke(prompt):
            clean = layers[0].output[0][:, -1]
        with tracer.invoke(prompt + 1):
            layers[0].output[0][:, -1] = clean
            logits = model.lm_head.output.log_softmax(-1)
            kl = F.kl_div(logits[0], logits[0], log_target=True, reduction="batchmean").save()
        graph = tracer.graph
    check("patching", graph)
    with model.trace(prompt) as tracer:
        h = layers[1].output[0]
        h.requires_grad_(True)
        with (model.lm_head.output[:, -1, 3] - model.lm_head.output[:, -1, 5]).sum().backward():
            attribution = (h.grad * h).sum(-1).save()
        graph = tracer.graph
    check("gradients", graph)
    with model.trace(prompt) as tracer:
        h = layers[1].output[0]
        heads = einops.rearrange(h, "b p (n d) -> b n p d", n=2)
        scores = einops.einsum(heads, heads, "b n q d, b n k d -> b n q k") / heads.shape[-1] ** 0.5
        weights = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf")).softmax(-1)
        kept = [
            (weights @ heads).transpose(1, 2).flatten(2), -(weights * weights.log()).sum(-1), weights.argmax(-1),
            F.cosine_similarity(h, h, dim=-1), h.norm(dim=-1), h.norm(), h.std(-1), h.var(-1, keepdim=True), h.amax(-1),
            h - h.mean(), F.layer_norm(h, h.shape[-1:]), F.mse_loss(h, h), torch.cat([h, h], 1), torch.stack([h, h]),
            torch.where(h > 0, h, 0.0), h.clamp(min=0), F.gelu(h), F.silu(h), F.relu(h), h.tanh(), 1 - h, h ** 2,
            h.sort(-1).values, h.gather(-1, h.argmax(-1, keepdim=True)), h.cumsum(1), h.tril(), h.flip(1), h.abs(),
            h.repeat(2, 1, 1), torch.outer(h[0, 0], h[0, 0]), torch.einsum("bpd,bqd->bpq", h, h), (h > 0).any(-1),
            h[0, torch.tensor([0, 1])], h.index_select(1, torch.tensor([0])), torch.linalg.norm(h, dim=-1), h == h,
            torch.addmm(h[0], h[0] @ h[0].T, h[0]), F.scaled_dot_product_attention(heads, heads, heads), h.isnan(),
            F.embedding(torch.tensor([0, 1]), h[0]), h.double() + h, torch.maximum(h, -h), h.square().mean(-1).rsqrt(),
            h.exp().log1p(), h.logsumexp(-1), h.roll(1, 1),
        ]
        kept = [one.save() for one in kept]
        graph = tracer.graph
    check("one of the many operations", graph)
"""


def test_first_traces_and_replays_do_not_wait_for_pytorchs_compiler() -> None:
    ran = subprocess.run([sys.executable, "-c", FIRST_TRACES], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
