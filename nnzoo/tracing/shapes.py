"""What a pass will hold at each hook point, known before it runs: in which order they fire, with which shapes."""

from contextvars import Context
from dataclasses import fields, replace

import torch
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.tracing.graph import LOGITS, Invoke

_INTEGER = {"hook_tokens", "hook_positions"}
UNEMBED = {"unembed.hook_in", LOGITS}  # a step of a generation has them for the last position only


def firing_order(model: HookedModel) -> list[str]:
    """The names of a model's hook points in the order in which a pass reaches them.

    It is observed, not declared: a model of the same kind, as small as can be and with one block, runs once, and its
    block stands for all of them.
    """
    sizes = {"n_layers": 1, "d_model": 4 * model.config.n_heads, "d_head": 4, "d_mlp": 1, "d_vocab": 1}
    names = {field.name for field in fields(model.config)}
    with torch.random.fork_rng(devices=[]):  # its weights are drawn; nobody's random numbers are used up by that
        small = type(model)(replace(model.config, **{name: n for name, n in sizes.items() if name in names}))
    fired: list[str] = []
    for point in small.hook_points.values():
        point.add_reader(lambda value, point: fired.append(point.name))
    with torch.no_grad():
        # in a context of its own: whoever debugs the user's models does not mean this one
        Context().run(small.forward, torch.zeros(1, 1, dtype=torch.long))
    first = next(i for i, name in enumerate(fired) if name.startswith("blocks."))
    block = [name.removeprefix("blocks.0.") for name in fired if name.startswith("blocks.")]
    layers = [f"blocks.{layer}.{name}" for layer in range(model.config.n_layers) for name in block]
    return fired[:first] + layers + fired[first + len(block) :]


class Shapes:
    """The hook points of a model in the order in which they fire, and the shape of each for every invoke."""

    def __init__(self, model: HookedModel, order: dict[str, int]) -> None:
        self.order, self.hooks = order, list(order)  # each hook point's number, and each number's hook point
        self.points = model.hook_points
        self._sizes = {**model.axis_sizes, "1": 1}
        self._axes = {name: tuple(point.axes.split()) for name, point in self.points.items()}
        self.dtype, self._window = model.dtype, model.window
        self._known: dict[tuple, Tensor] = {}

    def axes(self, hook: str) -> tuple[str, ...]:
        """The names of a hook point's dimensions."""
        return self._axes[hook]

    def at(self, hook: str, invoke: Invoke, step: int) -> Tensor:
        """A meta tensor as a hook point will hold it for an invoke in a step."""
        rows, n_pos = invoke.tokens.shape
        n_keys = n_pos if step == 0 else self._keys(invoke, step)
        if step > 0 or (invoke.last_only and hook in UNEMBED):
            n_pos = 1
        key = (hook, rows, n_pos, n_keys)
        meta = self._known.get(key)
        if meta is None:
            if len(self._known) > 4096:
                self._known.clear()
            sizes = {**self._sizes, "batch": rows, "pos": n_pos, "query": n_pos, "key": n_keys, "key_pos": n_keys}
            dtype = torch.long if hook in _INTEGER else self.dtype
            meta = torch.empty([sizes[axis] for axis in self._axes[hook]], dtype=dtype, device="meta")
            self._known[key] = meta
        return meta

    def _keys(self, invoke: Invoke, step: int) -> int:
        """How many keys the KV cache hands out: those that some row may still look at."""
        total, mask = invoke.n_pos + step, invoke.attention_mask
        if self._window is None:
            return total
        if mask is None:
            return min(total, self._window)
        position = mask.cumsum(dim=-1) - 1
        forgotten = (position <= position[:, -1:] + step - self._window).sum(dim=-1).min()
        return total - int(forgotten) - max(0, step - self._window)
