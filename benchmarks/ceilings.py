"""What the machine gives at most, and what a model's matrix products cost with nothing between them."""

import torch
from torch import Tensor, nn

from benchmarks.measure import Effort, alternate, timed
from benchmarks.report import Row
from nnzoo.architectures.gpt2 import Conv1D
from nnzoo.architectures.hooked_model import HookedModel, Unembed

SUBJECT = "The machine"


def rows(*, effort: Effort, copied: int = 2**28, width: int = 2048) -> list[Row]:
    """Bandwidth of a copy of so many bytes, and the rate of a product of two square matrices."""
    source, target = (torch.ones(copied // 4) for _ in range(2))
    square = torch.rand(width, width)
    turns = alternate(
        {"copy": timed(lambda: target.copy_(source)), "product": timed(lambda: square @ square)}, effort=effort
    )
    bandwidth = 2 * copied / turns.median("copy") / 1e9
    rate = 2 * width**3 / turns.median("product") / 1e9
    return [
        Row(SUBJECT, f"memory copy of {copied / 2**20:.0f} MiB, read and write", "", f"{bandwidth:.1f} GB/s"),
        Row(SUBJECT, f"product of {width} x {width} matrices", "", f"{rate:.0f} GFLOP/s"),
    ]


class Products:
    """A model's matrix products with its own weights, on random inputs, one after the other."""

    def __init__(self, model: HookedModel, n_tokens: int) -> None:
        weights = [_inward(module) for module in model.modules() if isinstance(module, (Conv1D, nn.Linear, Unembed))]
        inputs = {d_in: torch.randn(n_tokens, d_in) for d_in in {len(weight) for weight in weights}}
        self.pairs = [(inputs[len(weight)], weight) for weight in weights]

    def __call__(self) -> None:
        for x, weight in self.pairs:
            torch.mm(x, weight)


def _inward(module: nn.Module) -> Tensor:
    """A weight as [d_in, d_out]."""
    return module.weight if isinstance(module, Conv1D) else module.weight.t()
