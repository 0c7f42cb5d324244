"""Random numbers of recorded calls: drawn at their line, once, whatever runs how often afterwards."""

from collections.abc import Callable

import torch
from torch import Tensor

from nnzoo.tracing.arguments import call_with
from nnzoo.tracing.modes import random_state


def draw(
    fn: Callable, args: tuple, kwargs: dict, stand_in: Callable[[Tensor], Tensor], device: torch.device
) -> tuple[dict, Tensor | None]:
    """Draw from the generator what a call will draw; stand-ins take the place of its tensors.

    The keyword arguments to record it with, whose `generator`, if it has one, is a copy as it stood before; else the
    state of the device's generator before, None where nothing was drawn.
    """
    own = kwargs.get("generator")
    kept = kwargs if own is None else {**kwargs, "generator": own.clone_state()}
    before = random_state(device) if own is None else None
    with torch.no_grad():
        call_with(fn, stand_in, args, kwargs)
    drew = before is not None and not torch.equal(before, random_state(device))
    return kept, before if drew else None
