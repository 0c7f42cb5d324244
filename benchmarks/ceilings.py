"""What the machine gives at most, and what a model's matrix products cost with nothing between them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import alternate, timed
from benchmarks.report import Row
from benchmarks.setup import Setup
from nnzoo.architectures.gpt2 import Conv1D
from nnzoo.architectures.hooked_model import HookedModel, Unembed

SUBJECT = "The machine"


def rows(setup: Setup, copied: int = 2**28, width: int = 2048) -> list[Row]:
    """Bandwidth of a copy of so many bytes, and the rate of a product of two square matrices."""
    source, target = (torch.ones(copied // 4, device=setup.device) for _ in range(2))
    square = torch.rand(width, width).to(setup.device, setup.dtype)
    turns = alternate(
        {"copy": timed(lambda: target.copy_(source)), "product": timed(lambda: square @ square)}, setup.effort
    )
    bandwidth = 2 * copied / turns.median("copy") / 1e9
    rate = 2 * width**3 / turns.median("product") / 1e9
    return [
        Row(SUBJECT, f"memory copy of {copied / 2**20:.0f} MiB, read and write", "", f"{bandwidth:.1f} GB/s"),
        Row(SUBJECT, f"product of {width} x {width} matrices", "", f"{rate:.0f} GFLOP/s"),
    ]


class Products:
    """A model's matrix products with its own weights, on random inputs, one after the other.

    `unembedded` says of how many tokens the logits are made; by default of all.
    """

    def __init__(self, model: HookedModel, n_tokens: int, unembedded: int | None = None) -> None:
        self.pairs = [(x[: unembedded if last else n_tokens], w) for x, w, last in _inputs(model, n_tokens)]

    def __call__(self) -> None:
        for x, weight in self.pairs:
            torch.mm(x, weight)


def _inputs(model: HookedModel, n_tokens: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Random inputs and the weight [d_in, d_out] of every product, and whether it is the unembedding."""
    inputs: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, (Conv1D, nn.Linear, Unembed)):
            weight = module.weight if isinstance(module, Conv1D) else module.weight.t()
            if len(weight) not in inputs:
                inputs[len(weight)] = torch.randn(n_tokens, len(weight)).to(weight)
            yield inputs[len(weight)], weight, isinstance(module, Unembed)
