"""What a pass will hold at each hook point, known before it runs: in which order they fire, with which shapes."""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel

_INTEGER = {"hook_tokens", "hook_positions"}


def firing_order(model: HookedModel) -> list[str]:
    """The names of a model's hook points in the order in which a pass reaches them.

    It is observed, not declared: a model of the same kind, as small as can be and with one block, runs once, and its
    block stands for all of them.
    """
    sizes = {"n_layers": 1, "d_model": 4 * model.config.n_heads, "d_head": 4, "d_mlp": 1, "d_vocab": 1}
    names = {field.name for field in fields(model.config)}
    small = type(model)(replace(model.config, **{name: n for name, n in sizes.items() if name in names}))
    fired: list[str] = []
    for point in small.hook_points.values():
        point.add_reader(lambda value, point: fired.append(point.name))
    with torch.no_grad():
        small.forward(torch.zeros(1, 1, dtype=torch.long))
    first = next(i for i, name in enumerate(fired) if name.startswith("blocks."))
    block = [name.removeprefix("blocks.0.") for name in fired if name.startswith("blocks.")]
    layers = [f"blocks.{layer}.{name}" for layer in range(model.config.n_layers) for name in block]
    return fired[:first] + layers + fired[first + len(block) :]


def shapes_of(model: HookedModel, n_batch: int, n_pos: int) -> Callable[[str], Tensor]:
    """A function from a hook point's name to a meta tensor as a pass over [n_batch n_pos] tokens will have it there."""
    pos = dict.fromkeys(("pos", "key_pos", "query", "key"), n_pos)
    sizes = {**model.axis_sizes, **pos, "batch": n_batch, "1": 1}

    def shape_of(name: str) -> Tensor:
        shape = [sizes[axis] for axis in model.hook_points[name].axes.split()]
        dtype = torch.long if name in _INTEGER else model.dtype
        return torch.empty(shape, dtype=dtype, device="meta")

    return shape_of
