"""What the machine gives at most, and what a model's matrix products cost with nothing between them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Comparison, Job, alternate, timed
from benchmarks.report import Row
from benchmarks.setup import Setup
from nnzoo.architectures.gpt2 import Conv1D
from nnzoo.architectures.hooked_model import HookedModel, Unembed

SUBJECT = "The machine"
COPIED = 2**28  # bytes


def rows(setup: Setup) -> list[Row]:
    """Bandwidth of a copy of memory, and the rate of a product of two square matrices."""
    width = 2048 if setup.device == "cpu" else 8192  # a graphics card is done with less before it is asked for more
    square = torch.rand(width, width).to(setup.device, setup.dtype)
    turns = alternate({"copy": copying(setup), "product": timed(lambda: square @ square)}, setup.effort)
    bandwidth = bandwidth_of(turns) / 1e9
    rate = 2 * width**3 / turns.median("product") / 1e9
    return [
        Row(SUBJECT, f"memory copy of {COPIED / 2**20:.0f} MiB, read and write", "", f"{bandwidth:.1f} GB/s"),
        Row(SUBJECT, f"product of {width} x {width} matrices", "", f"{rate:.0f} GFLOP/s"),
    ]


def copying(setup: Setup) -> Job:
    """A copy of `COPIED` bytes."""
    source, target = (torch.ones(COPIED // 4, device=setup.device) for _ in range(2))
    return timed(lambda: target.copy_(source))


def bandwidth_of(turns: Comparison) -> float:
    """Bytes read and written in a second, where one of the jobs is a "copy"."""
    return 2 * COPIED / turns.median("copy")


class Products:
    """A model's matrix products with its own weights, on random inputs, one after the other.

    `unembedded` says of how many tokens the logits are made; by default of all.
    """

    def __init__(self, model: HookedModel, n_tokens: int, unembedded: int | None = None) -> None:
        self.pairs = [(x[: unembedded if last else n_tokens], w) for x, w, last in _inputs(model, n_tokens)]
        self.n_bytes = sum(weight.nbytes for _, weight in self.pairs)  # that have to be read for them

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
