"""torch.func's transforms of traced values, and what compiled code says."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from families import error, folder, ours, prompt
from nnzoo import Graph, GraphError, LanguageModel
from nnzoo.tracing.recorder import TraceError

TOKENS = prompt(2, 5)
RESID = "blocks.1.hook_resid_post"
WEIGHT = torch.linspace(-1, 1, 48 * 3, dtype=torch.float64).reshape(48, 3)

TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "vmap": torch.vmap(lambda row: (row @ WEIGHT).softmax(-1)),
    "vmap of two": lambda x: torch.vmap(torch.dot)(x[0], x[1]),
    "vmap with a value from outside": lambda x: torch.vmap(lambda row: row + x[0, 0])(x[1]),
    "vmap of a vmap": torch.vmap(torch.vmap(torch.linalg.norm)),
    "vmap over another axis": lambda x: torch.vmap(lambda row: row * 2, in_dims=1, out_dims=2)(x),
    "grad": torch.func.grad(lambda x: x.sin().sum()),
    "vmap of a grad": lambda x: torch.vmap(torch.func.grad(lambda row: (row @ WEIGHT).logsumexp(-1)))(x[0]),
    "jacrev": lambda x: torch.func.jacrev(lambda row: row.square() @ WEIGHT)(x[0, 0]),
    "jacfwd": lambda x: torch.func.jacfwd(lambda row: row.square())(x[0, 0, :4]),
    "jvp": lambda x: torch.func.jvp(lambda y: (y.softmax(-1) @ WEIGHT).logsumexp(-1), (x,), (x * 2,))[1],
    "jvp of a real tensor": lambda x: torch.func.jvp(lambda y: (y * x).sin(), (WEIGHT.mT[0],), (WEIGHT.mT[1],))[1],
    "vjp": lambda x: torch.func.vjp(lambda y: F.gelu(y).tanh(), x)[1](x)[0],
    "grad of a loss": lambda x: torch.func.grad(lambda y: F.cross_entropy(y @ WEIGHT, torch.ones(5).long()))(x[0]),
    "grad of a layer norm": torch.func.grad(lambda x: F.layer_norm(x, (48,)).pow(3).sum()),
    "grad of an attention": torch.func.grad(lambda x: (x @ x.mT).softmax(-1).matmul(x).square().sum()),
    "grad of where and indices": torch.func.grad(lambda x: torch.where(x > 0, x[..., 1:2], x.cumsum(-1)).sum()),
    "grad of an embedding": lambda x: torch.func.grad(lambda w: F.embedding(torch.tensor([0, 2]), w).exp().sum())(x[0]),
    "grad of activations": torch.func.grad(lambda x: sum((one(x).square().sum() for one in ACTIVATIONS), x.sum())),
    "vmap of what picks": torch.vmap(lambda row: row.topk(3).values + row.gather(0, torch.zeros(5, 3).long())),
    "vmap of edits": torch.vmap(lambda row: row.clone().mul_(2).index_fill(0, torch.tensor([1]), 0.0)),
    "hessian": lambda x: torch.func.hessian(lambda row: row.pow(3).sum())(x[0, 0, :4]),
}


ACTIVATIONS = (F.silu, F.elu, F.hardtanh, F.logsigmoid)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_gives_what_it_gives_of_the_tensor(model: LanguageModel, name: str) -> None:
    with torch.no_grad():
        plain = ours("gpt2", "default").run_with_cache(TOKENS)[1][RESID]
        expected = TRANSFORMS[name](plain)
    with model.trace(TOKENS) as tracer:
        given = TRANSFORMS[name](tracer.read(RESID)).save()
        graph = tracer.graph
    assert error(given, expected) < 1e-9
    *_, stored = Graph.from_json(graph.to_json(), graph.tensors).run(model).values()  # the last that was saved
    assert torch.equal(stored, given)


@pytest.mark.local("what cannot be stored cannot be sent")
@pytest.mark.parametrize(
    "transform",
    [
        torch.vmap(torch.linalg.svdvals),
        torch.func.grad(lambda x: x[:, torch.tensor([0, 2])].square().sum()),
        torch.vmap(lambda row: F.conv1d(row[None], torch.ones(1, 5, 2, dtype=torch.float64))),
    ],
)
def test_one_that_cannot_be_stored_says_so(model: LanguageModel, transform: Callable) -> None:
    with torch.no_grad():
        expected = transform(ours("gpt2", "default").run_with_cache(TOKENS)[1][RESID])
    with model.trace(TOKENS) as tracer:
        given = transform(tracer.read(RESID))
        with pytest.raises(GraphError, match=r"torch\.vmap and torch\.func are made of, .* write the transform out"):
            tracer.graph.to_json()
    assert error(given, expected) < 1e-9


def forward_level(x: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.make_dual(x, x).sin()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("transform", "instead"),
    [
        (forward_level, "torch.func.jvp"),
        (lambda x: torch.func.linearize(torch.tanh, x)[1](x), "torch.func.jvp"),
        (lambda x: torch.autograd.functional.jacobian(torch.sin, x[0, 0], vectorize=True), "torch.func.jacrev"),
    ],
)
def test_a_transform_that_cannot_be_recorded_says_what_can(
    model: LanguageModel, transform: Callable, instead: str
) -> None:
    with pytest.raises(TraceError, match=instead), model.trace(TOKENS) as tracer:
        transform(tracer.read(RESID))


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_a_copy_below_python_says_what_to_do(model: LanguageModel) -> None:
    with pytest.raises(RuntimeError, match="clone"), model.trace(TOKENS) as tracer:
        torch.tensor(tracer.read(RESID))
