"""What the tests of edits share: prompts, a vector, and what an edit does to a value."""

import torch
from torch import Tensor

SHORT, LONG = "Hello world", "The cat sat on the quick brown dog"
N = 4  # tokens that are generated
WIDTH = 48
VECTOR = torch.linspace(-1, 1, WIDTH).double() * 4


def halved(value: Tensor) -> Tensor:
    return value * 0.5


def steered(value: Tensor) -> Tensor:
    return value + VECTOR
