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
    """The shape of every place of every invoke."""

    def __init__(self, model: HookedModel) -> None:
        self._sizes = {**model.axis_sizes, "1": 1}
        self._axes = {name: tuple(point.axes.split()) for name, point in model.hook_points.items()}
        self.dtype, self._window = model.dtype, model.window
        self._known: dict[tuple, Tensor] = {}

    def axes(self, hook: str) -> tuple[str, ...]:
        """The names of a hook point's dimensions."""
        return self._axes[hook]

    def at(self, hook: str, invoke: Invoke, step: int) -> Tensor:
        """A meta tensor as a hook point will hold it for an invoke in a step."""
        sizes = self.sizes(hook, invoke, step)
        key = (hook, tuple(sizes.items()))
        if key not in self._known:
            if len(self._known) > 4096:
                self._known.clear()
            shape = [sizes[axis] if axis in sizes else self._sizes[axis] for axis in self._axes[hook]]
            dtype = torch.long if hook in _INTEGER else self.dtype
            self._known[key] = torch.empty(shape, dtype=dtype, device="meta")
        return self._known[key]

    def sizes(self, hook: str, invoke: Invoke, step: int) -> dict[str, int]:
        """The lengths of the axes that the prompt decides."""
        last_only = step > 0 or (hook in UNEMBED and invoke.last_only)
        n_pos = 1 if last_only else invoke.n_pos
        n_keys = invoke.n_pos if step == 0 else self._keys(invoke, step)
        return {"batch": invoke.rows, "pos": n_pos, "query": n_pos, "key": n_keys, "key_pos": n_keys}

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
