"""Sites: the places of a model that a sweep goes through, one for each layer and each part of a hook point's value.

`at` is the short name of a hook point in every block ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v",
"pattern", "post", ...), and `by` says which of its axes are gone through one by one: "pos", "head", "pos head", "head
query key". What is not in `by` is changed as a whole. The first axis of every result is the layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from nnzoo.analysis.results import Axis
from nnzoo.analysis.subject import Subject, Tokens
from nnzoo.analysis.sweep import Edit, Experiment
from nnzoo.architectures.hooked_model import Hooks
from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.names import get_act_name

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Sites:
    """The hook points of one kind, in some layers, and the parts of their values."""

    at: str
    names: tuple[str, ...]  # one for each layer
    layers: tuple[int, ...]
    axes: tuple[Axis, ...]  # of a result: the layer, then those of `by`
    indices: tuple[Index, ...]  # into a value without its batch axis, in the order of `axes[1:]`

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis.labels) for axis in self.axes)

    def experiment(self, i: int, edit: Edit) -> Experiment:
        """A run with a change at the i-th layer's hook point, from as late on as can be."""
        layer = self.layers[i]
        if self.at in ("resid_pre", "resid_post"):  # what enters a block is where runs go on
            return Experiment(layer + (self.at == "resid_post"), stream=edit)
        return Experiment(layer, edits={self.names[i]: edit})

    def replacements(self, values: Sequence[Tensor]) -> list[Experiment]:
        """An experiment for each site, which puts there what stands in `values` [layer][batch ...]."""
        return [self.experiment(i, replacing(index, value)) for i, value in enumerate(values) for index in self.indices]

    def summed(self, value: Tensor, axes: str) -> Tensor:
        """A value [batch ...] summed over all axes that are not gone through: [*by]."""
        symbols = axes.split()
        kept = [axis.name for axis in self.axes[1:]]
        dims = [i for i, symbol in enumerate(symbols) if symbol not in kept]
        summed = value.sum(dim=dims)
        order = [[s for s in symbols if s in kept].index(name) for name in kept]
        return summed.permute(order)


def replacing(index: Index, value: Tensor) -> Edit:
    """The change that puts a part of `value` [batch ...] in its place."""
    where = (slice(None), *index)

    def edit(rows: Tensor) -> None:
        rows[where] = value[where]

    return edit


def sites_of(
    subject: Subject, tokens: Tokens, at: str, by: str | None = None, layers: Sequence[int] | None = None
) -> Sites:
    """The sites of a sweep. Raises KeyError for a hook point that no block has, ValueError for axes it has not."""
    chosen = tuple(range(subject.n_layers)) if layers is None else tuple(_checked(subject, i) for i in layers)
    points = [_point(subject, at, layer) for layer in chosen]
    symbols = points[0].axes.split()[1:]
    wanted = _wanted(symbols, at, by)
    axes = tuple(subject.axis(name, tokens) for name in wanted)
    indices = []
    for places in product(*(range(len(axis.labels)) for axis in axes)):
        at_place = dict(zip(wanted, places, strict=True))
        indices.append(tuple(at_place.get(symbol, slice(None)) for symbol in symbols))
    layer_axis = Axis("layer", tuple(map(str, chosen)))
    return Sites(at, tuple(p.name for p in points), chosen, (layer_axis, *axes), tuple(indices))


def _checked(subject: Subject, layer: int) -> int:
    n = subject.n_layers
    if not -n <= layer < n:
        raise ValueError(f"layer {layer} is none of the model's {n} (0 to {n - 1})")
    return layer % n


def _point(subject: Subject, at: str, layer: int) -> HookPoint:
    name = get_act_name(at, layer)
    if name not in subject.native.hook_points:
        blocks = [n.split(".", 2)[2] for n in subject.native.hook_points if n.startswith("blocks.0.")]
        short = ", ".join(dict.fromkeys(n.rsplit("hook_", 1)[-1] for n in blocks))
        raise KeyError(f"no block has {at!r} ({name}); blocks have {short}")
    return subject.native.hook_points[name]


def _wanted(symbols: list[str], at: str, by: str | None) -> list[str]:
    if by is None:
        return [next((s for s in symbols if s.endswith("head")), "pos")]
    same = {"head": "kv_head"} if "kv_head" in symbols else {}  # with grouped queries keys and values have fewer heads
    wanted = [same.get(name, name) for name in by.split()]
    fixed = {s for s in symbols if s.isdigit()}
    if unknown := [name for name in wanted if name not in symbols or name in fixed]:
        raise ValueError(f"{at} has the axes {' '.join(symbols)}, and no {', '.join(unknown)} to go through")
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"by={by!r} names an axis twice")
    return wanted


@torch.no_grad()
def values_at(subject: Subject, tokens: Tokens, names: Sequence[str], fwd_hooks: Hooks = ()) -> list[Tensor]:
    """What stands at some hook points in a run of prompts, each [batch ...]."""
    with subject.native.hooks(fwd_hooks):
        _, cache = subject.native.run_with_cache(
            tokens.ids, attention_mask=tokens.mask, names_filter=list(names), return_type=None
        )
    return [cache[name] for name in names]
