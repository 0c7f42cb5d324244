"""What a run left at the hook points: a mapping from names to tensors, and what can be computed from it.

`Recorder` fills it while the model runs; `ActivationCache` is what `run_with_cache` gives back. Its ways to take the
residual stream apart are in residual_stream.py.
"""

import difflib
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.cache_html import cache_html
from nnzoo.architectures.cache_shapes import CacheShapes, shapes_of
from nnzoo.architectures.hooks import Handle, HookPoint, Read
from nnzoo.architectures.html import page
from nnzoo.architectures.names import get_act_name
from nnzoo.architectures.residual_stream import ResidualStream
from nnzoo.architectures.slices import SliceInput, at_positions, take

Key = str | tuple[str, int | None] | tuple[str, int | None, str | None]


class ActivationCache(ResidualStream, Mapping[str, Tensor]):
    """Activations by hook point name, in the order in which they were computed.

    `cache["blocks.1.attn.hook_q"]` has short keys: `cache["q", 1]`, `cache["q", -1]` (from the end), `cache["q1"]`,
    `cache["scale", 1, "ln1"]`. Gradients, where they were recorded, stand at the name with "_grad" at the end.

    Values are detached: no autograd graph hangs on a cache. They are not copies either, and some share their memory
    (what leaves one block enters the next): clone before you edit one in place.

    >>> from nnzoo.architectures.gpt2 import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(
    ...     d_vocab=50, n_ctx=16, d_model=8, n_layers=2, n_heads=2, d_mlp=32, activation="gelu_new", eps=1e-5,
    ...     scale_scores=True, scale_by_layer=False, tied=True,
    ... ))
    >>> logits, cache = model.run_with_cache(torch.tensor([[3, 1, 4]]))
    >>> cache["q", 1].shape, cache["pattern", -1].shape  # [batch pos head d_head], [batch head query key]
    (torch.Size([1, 3, 2, 4]), torch.Size([1, 2, 3, 3]))
    >>> cache["patern", 1]
    Traceback (most recent call last):
    KeyError: "the cache has no 'blocks.1.hook_patern'; nearest: blocks.1.attn.hook_pattern, ..."

    Components of the residual stream add up to the logits, but for the biases after the last block:

    >>> parts, labels = cache.decompose_resid(return_labels=True)
    >>> labels
    ['embed', 'pos_embed', '0_attn_out', '0_mlp_out', '1_attn_out', '1_mlp_out']
    >>> attributed = cache.logit_attrs(parts, tokens=7).sum(0)  # [batch pos]
    >>> torch.allclose(attributed, logits[..., 7], atol=1e-5)  # ln_final.bias is 0 in this model
    True
    """

    def __init__(self, values: dict[str, Tensor], model: Any, has_batch_dim: bool = True) -> None:
        self.cache_dict = values
        self.model = model
        self.has_batch_dim = has_batch_dim

    def __getitem__(self, key: Key) -> Tensor:
        name = self._full_name(key)
        if name not in self.cache_dict:
            raise KeyError(self._why_missing(name))
        return self.cache_dict[name]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, (str, tuple)) and self._full_name(key) in self.cache_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __repr__(self) -> str:
        return f"ActivationCache with keys {list(self.cache_dict)}"

    def shapes(self) -> CacheShapes:
        """What is in the cache: a table of names, axes, sizes, dtypes and bytes, which prints.

        Blocks that hold the same stand in one line, `blocks.{0..11}.attn.hook_q`, whose bytes are those of all.

        >>> from nnzoo import load
        >>> _, cache = load("nnzoo/tiny-gpt2").run_with_cache("The capital of France is", names_filter=["*.hook_z"])
        >>> cache.shapes()
        blocks.{0..3}.attn.hook_z  batch pos head d_head  [1, 5, 4, 24]  float32  7.5 KB
        4 values, 7.5 KB in memory
        """
        return shapes_of(self.cache_dict, self.model.hook_points, self.has_batch_dim)

    def _repr_html_(self) -> str:
        return cache_html(self.cache_dict, self.model, self.has_batch_dim)

    def to_html(self) -> str:
        """What a notebook shows, as one page that needs nothing else: no script, no network."""
        return page("ActivationCache", self._repr_html_())

    def to(self, device: torch.device | str) -> "ActivationCache":
        """Move the values, in this cache itself; those that share memory share it on the device too."""
        move = Mover(device, memory=None)
        self.cache_dict = {name: move(value) for name, value in self.cache_dict.items()}
        return self

    def remove_batch_dim(self) -> "ActivationCache":
        """Drop the batch axis of every value, in this cache itself. Raises ValueError where the batch is not 1.

        Done twice, it changes nothing.
        """
        if not self.has_batch_dim:
            return self
        sizes = {len(value) for value in self.cache_dict.values()}
        if sizes - {1}:
            raise ValueError(
                f"a batch of {max(sizes)} has an axis that is needed; pick a prompt with apply_slice_to_batch_dim(i)"
            )
        self.cache_dict = {name: value[0] for name, value in self.cache_dict.items()}
        self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: SliceInput) -> "ActivationCache":
        """A cache of some of the prompts; a single number drops the batch axis."""
        if not self.has_batch_dim:
            raise ValueError("this cache has no batch axis to slice: remove_batch_dim was called")
        values = {name: take(value, batch_slice, dim=0) for name, value in self.cache_dict.items()}
        return ActivationCache(compact(values), self.model, has_batch_dim=not isinstance(batch_slice, int))

    def at(self, pos_slice: SliceInput) -> "ActivationCache":
        """A cache of some of the positions (of a pattern: the queries); the axis stays, for a single number too.

        Keys after rotation are kept whole: their axis is the positions that are looked at.
        """
        points = self.model.hook_points
        values = {
            name: at_positions(value, points[name.removesuffix("_grad")].axes, pos_slice)
            for name, value in self.cache_dict.items()
        }
        return ActivationCache(compact(values), self.model, self.has_batch_dim)

    def _full_name(self, key: Key) -> str:
        if isinstance(key, str):
            return key if key in self.cache_dict else get_act_name(key)
        name, layer, *sublayer = key
        if layer is not None and layer < 0:
            layer += self.model.config.n_layers
        return get_act_name(name, layer, *sublayer)

    def _why_missing(self, name: str) -> str:
        points, place = self.model.hook_points, name.removesuffix("_grad")
        if place not in points:
            near = difflib.get_close_matches(name, [*self.cache_dict, *points], n=3, cutoff=0.5)
            nearest = f"; nearest: {', '.join(dict.fromkeys(near))}" if near else ""
            return f"the cache has no {name!r}{nearest}"
        if place != name and place in self.cache_dict:
            return f"the cache has no {name!r}: gradients are recorded by run_with_cache(..., incl_bwd=True)"
        if points[place].on_request:
            return f"{name} is large and recorded on request: run_with_cache(..., names_filter=[..., {place!r}])"
        return f"{name} was not recorded: the names_filter left it out, or the run stopped before it"


class Recorder:
    """Listens at hook points and keeps what passes, without copying it.

    Nothing changes a kept value later: a hook that edits gets a copy of its own. `pos_slice` keeps some positions only.
    """

    def __init__(self, device: torch.device | str | None = None, pos_slice: SliceInput = None) -> None:
        self._kept = Kept(device, pos_slice)
        self._reader = Read(self._kept.keep)
        self._handles: list[Handle] = []

    def listen(self, point: HookPoint, *, gradients: bool = False) -> None:
        """Keep what passes from now on, after the hooks that are there already; and its gradient, if asked."""
        if gradients and point.axes != "batch pos":  # ids and positions: integers have no gradient
            self._handles.append(point.add_hook(self._kept.keep_gradient, "bwd"))
        self._handles.append(point.attach(self._reader))

    def stop(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()

    def values(self) -> dict[str, Tensor]:
        """What was kept, by name, in the order in which it came."""
        return self._kept.values


class Kept:
    """What a recorder has kept; it knows nothing of the recorder, so that both go when nobody has them any more."""

    def __init__(self, device: torch.device | str | None, pos_slice: SliceInput) -> None:
        self.values: dict[str, Tensor] = {}
        self._pos_slice = pos_slice
        self._move = Mover(device, memory=8) if device is not None else None

    def keep(self, value: Tensor, point: HookPoint) -> None:
        self._store(point.name, value, point)

    def keep_gradient(self, gradient: Tensor, point: HookPoint) -> None:
        self._store(f"{point.name}_grad", gradient, point)

    def _store(self, name: str, value: Tensor, point: HookPoint) -> None:
        value = value.detach() if value.requires_grad else value
        if self._pos_slice is not None:
            value = at_positions(value, point.axes, self._pos_slice).clone()  # the clone lets the other positions go
        self.values[name] = value if self._move is None else self._move(value)


class Mover:
    """Copies values to a device, the views of one storage as views of one copy.

    It knows the last `memory` storages that it copied whole, and keeps them alive as long; all of them if None.
    """

    def __init__(self, device: torch.device | str, memory: int | None) -> None:
        self.device = torch.device(device)
        self._copied: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory)

    def __call__(self, value: Tensor) -> Tensor:
        if value.device == self.device:
            return value
        for original, copy in self._copied:
            if _storage(original) == _storage(value):
                return copy.as_strided(value.shape, value.stride(), value.storage_offset())
        copy = value.to(self.device)
        if _size(value) == value.untyped_storage().nbytes():
            self._copied.append((value, copy))
        return copy


def compact(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, copied where all of them together are less than half of the storage they keep alive.

    >>> qkv = torch.zeros(1000, 3, 8)
    >>> q = compact({"q": qkv[:, 0]})["q"]
    >>> q.untyped_storage().nbytes() == q.numel() * 4
    True
    >>> compact({"q": qkv[:, 0], "k": qkv[:, 1]})["q"].untyped_storage().nbytes() == qkv.numel() * 4
    True
    """
    seen: dict[int, dict[tuple, Tensor]] = defaultdict(dict)
    for value in values.values():
        seen[_storage(value)].setdefault(_place(value), value)
    for views in seen.values():
        whole = next(iter(views.values())).untyped_storage().nbytes()
        if 2 * sum(map(_size, views.values())) < whole:
            views.update({place: view.clone() for place, view in views.items()})
    return {name: seen[_storage(value)][_place(value)] for name, value in values.items()}


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata  # the address of the storage itself: unlike data_ptr, also where that is 0


def _place(value: Tensor) -> tuple:
    return value.storage_offset(), value.shape, value.stride(), value.dtype


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()
