"""What the first tests of tracing share: a prompt, names of places, and passes without a trace."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from families import ours, prompt

TOKENS = prompt(2, 9)


@cache
def plain_values() -> dict[str, Tensor]:
    """Every value of the pass without a trace."""
    with torch.no_grad():
        return dict(ours("gpt2", "default").run_with_cache(TOKENS)[1].items())


def resid(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def edited(name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits of a pass in which a hook changes one value."""
    with torch.no_grad():
        return ours("gpt2", "default").run_with_hooks(TOKENS, fwd_hooks=[(name, lambda value, hook: change(value))])
