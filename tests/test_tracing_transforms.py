"""torch.func's transforms of traced values, and what compiled code says."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from families import error, folder, ours, prompt
from nnzoo import LanguageModel

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
    "hessian": lambda x: torch.func.hessian(lambda row: row.pow(3).sum())(x[0, 0, :4]),
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.mark.local("transforms leave operators inside PyTorch in a graph, which may hold none")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_gives_what_it_gives_of_the_tensor(model: LanguageModel, name: str) -> None:
    with torch.no_grad():
        plain = ours("gpt2", "default").run_with_cache(TOKENS)[1][RESID]
        expected = TRANSFORMS[name](plain)
    with model.trace(TOKENS) as tracer:
        given = TRANSFORMS[name](tracer.read(RESID))
    assert error(given, expected) < 1e-9


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_a_copy_below_python_says_what_to_do(model: LanguageModel) -> None:
    with pytest.raises(RuntimeError, match="clone"), model.trace(TOKENS) as tracer:
        torch.tensor(tracer.read(RESID))
