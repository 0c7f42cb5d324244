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
STREAM = "batch pos d_model"  # the axes of the residual stream, and of whatever is as wide


@dataclass(frozen=True)
class Sites:
    """The hook points of one kind, in some layers, and the parts of their values."""

    at: str
    names: tuple[str, ...]  # one for each layer
    layers: tuple[int, ...]
    axes: tuple[Axis, ...]  # of a result: the layer, then those of `by`
    indices: tuple[Index, ...]  # into a value without its batch axis, in the order of `axes[1:]`
    along: int | None  # which axis of a value [batch ...] are the positions of the pass; None: none of them
    symbols: str  # the axes of a value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis.labels) for axis in self.axes)

    def replacement(self, layers: Sequence[int], index: Index, values: Sequence[Tensor]) -> Experiment:
        """A run, from as late on as can be, with what stands in `values` [layer][batch ...] put in a place of layers.

        Layers are counted as the sites count them.
        """
        start, first = self.layers[layers[0]], self._first(index)
        edits = {self.names[i]: self._putting(index, values[i]) for i in layers}
        if self.at in ("resid_pre", "resid_post") and len(layers) == 1:  # what enters a block is where runs go on
            [edit] = edits.values()
            return Experiment(start + (self.at == "resid_post"), stream=edit, first=first)
        return Experiment(start, edits=edits, first=first)

    def replacements(self, values: Sequence[Tensor]) -> list[Experiment]:
        """An experiment for each site, which puts there what stands in `values` [layer][batch ...]."""
        return [self.replacement([i], index, values) for i in range(len(self.names)) for index in self.indices]

    def _first(self, index: Index) -> int:
        """The first position that a change at an index touches."""
        place = slice(None) if self.along is None else index[self.along - 1]
        return place if isinstance(place, int) else 0

    def _putting(self, index: Index, value: Tensor) -> Edit:
        """The change that puts a part of `value` [batch ...] in its place."""

        def edit(rows: Tensor, first: int) -> None:
            new, where = value, [slice(None), *index]
            if self.along is not None:
                new = value.narrow(self.along, first, rows.shape[self.along])
                if isinstance(place := where[self.along], int):
                    where[self.along] = place - first
            rows[tuple(where)] = new[tuple(where)]

        return edit

    def summed(self, value: Tensor) -> Tensor:
        """A value [batch ...] summed over all axes that are not gone through: [*by]."""
        symbols = self.symbols.split()
        kept = [axis.name for axis in self.axes[1:]]
        dims = [i for i, symbol in enumerate(symbols) if symbol not in kept]
        summed = value.sum(dim=dims)
        order = [[s for s in symbols if s in kept].index(name) for name in kept]
        return summed.permute(order)


def streams_of(subject: Subject, tokens: Tokens, at: str, layers: Sequence[int] | None = None) -> Sites:
    """The sites of values that are as wide as the residual stream, position by position.

    Raises KeyError for a hook point that no block has, ValueError for one of other axes; both name those of these axes.
    """
    return sites_of(subject, tokens, at, "pos", layers, axes=STREAM)


def sites_of(
    subject: Subject,
    tokens: Tokens,
    at: str,
    by: str | None = None,
    layers: Sequence[int] | None = None,
    *,
    axes: str | None = None,
) -> Sites:
    """The sites of a sweep; with `axes`, of values that have just these.

    Raises KeyError for a hook point that no block has, ValueError for axes it has not, and for layers that are none.
    """
    chosen = tuple(range(subject.n_layers)) if layers is None else tuple(_checked(subject, i) for i in layers)
    if not chosen:
        raise ValueError("layers are numbers of blocks, or None for all of them; the list is empty")
    points = [_point(subject, at, layer, axes) for layer in chosen]
    symbols = points[0].axes.split()[1:]
    wanted = _wanted(symbols, at, by)
    gone_through = tuple(subject.axis(name, tokens) for name in wanted)
    indices = []
    for places in product(*(range(len(axis.labels)) for axis in gone_through)):
        at_place = dict(zip(wanted, places, strict=True))
        indices.append(tuple(at_place.get(symbol, slice(None)) for symbol in symbols))
    layer_axis = Axis("layer", tuple(map(str, chosen)))
    # under a sliding window a run that begins late has fewer keys, so that it begins with the prompt where these matter
    whole = "key" in symbols and subject.native.window is not None
    along = None if whole else next((i for i, s in enumerate(symbols, start=1) if s in ("pos", "query")), None)
    names = tuple(point.name for point in points)
    return Sites(at, names, chosen, (layer_axis, *gone_through), tuple(indices), along, points[0].axes)


def _checked(subject: Subject, layer: int) -> int:
    n = subject.n_layers
    if not -n <= layer < n:
        raise ValueError(f"layer {layer} is none of the model's {n} (0 to {n - 1})")
    return layer % n


def _point(subject: Subject, at: str, layer: int, axes: str | None) -> HookPoint:
    name = get_act_name(at, layer)
    point = subject.native.hook_points.get(name)
    if point is None:
        raise KeyError(f"no block has {at!r} ({name}); here it can be {_short_names(subject, layer, axes)}")
    if axes not in (None, point.axes):
        can_be = _short_names(subject, layer, axes)
        raise ValueError(f"{at} has the axes {point.axes}, and {axes} are needed: {can_be}")
    return point


def _short_names(subject: Subject, layer: int, axes: str | None) -> str:
    """What `at` may be: a block's hook points that have a short name, of these axes."""
    points = subject.native.hook_points
    short = dict.fromkeys(name.rpartition("hook_")[2] for name in points if name.startswith(f"blocks.{layer}."))
    found = [(name, points.get(get_act_name(name, layer))) for name in short]
    return ", ".join(name for name, point in found if point is not None and axes in (None, point.axes))


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
