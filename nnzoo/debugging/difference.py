"""`nnzoo.diff`: the first hook point where two models part, and by how much they differ down the layers."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from nnzoo.analysis.results import Axis, Result
from nnzoo.analysis.subject import Subject
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint
from nnzoo.debugging.places import TOLERANCES, Reference, compare, observe, places_of, relative
from nnzoo.language_model import LanguageModel
from nnzoo.tracing.shapes import firing_order
from nnzoo.weights import paths_of

IN_A_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Gap:
    """How far apart two models are at a hook point: the largest difference, relative to the largest value there."""

    hook: str
    place: str  # by the path of transformers' module, where one of the models is transformers'
    size: float
    limit: float  # what another order of summation may make of it

    @property
    def parts(self) -> bool:
        return not self.size <= self.limit


@dataclass(frozen=True, eq=False, repr=False)
class Difference(Result):
    """How far two models are apart, [place layer] inside the blocks; `gaps` has every hook point in firing order."""

    gaps: tuple[Gap, ...]
    models: str  # what they are, in words

    @property
    def first(self) -> Gap | None:
        """Where they part: the first hook point with a difference above its limit; None where they agree."""
        return next((gap for gap in self.gaps if gap.parts), None)

    @property
    def outside(self) -> Result:
        """The differences at the hook points outside of blocks."""
        sizes: dict[str, float] = {}
        for gap in self.gaps:
            if not IN_A_BLOCK.match(gap.hook):
                sizes[gap.hook] = max(sizes.get(gap.hook, 0.0), gap.size)
        values = torch.tensor(list(sizes.values()), dtype=torch.float64)
        return Sizes("outside of the blocks", self.quantity, values, (Axis("place", tuple(sizes)),))

    @property
    def verdict(self) -> str:
        """What came out, in words."""
        if self.first is None:
            worst = max(self.gaps, key=lambda gap: gap.size / gap.limit)
            return (
                f"{self.models} agree at all {len(self.gaps)} places; the one nearest to its limit is "
                f"{worst.place}: {worst.size:.1e} of {worst.limit:.0e} allowed."
            )
        place = self.first.hook if self.first.place == self.first.hook else f"{self.first.hook} ({self.first.place})"
        before = self.gaps[: self.gaps.index(self.first)]
        so_far = f"up to {before[-1].hook} they agree" if before else "it is the first place that they have in common"
        n = sum(gap.parts for gap in self.gaps)
        return (
            f"{self.models} part at {place}, by {self.first.size:.1e} of {self.first.limit:.0e}; {so_far}. "
            f"{n} of {len(self.gaps)} places are too far apart."
        )

    def cell(self, index: tuple[int, ...]) -> str:
        return scientific(self.values[index].item())

    def __str__(self) -> str:
        return "\n".join([self.verdict, super().__str__(), str(self.outside)])

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(self.verdict, super().__rich__(), self.outside)

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict)}</p>{super()._repr_html_()}{self.outside._repr_html_()}"


@dataclass(frozen=True, eq=False, repr=False)
class Sizes(Result):
    """Differences, in powers of ten."""

    def cell(self, index: tuple[int, ...]) -> str:
        return scientific(self.values[index].item())


def scientific(size: float) -> str:
    """A difference as a table has it.

    >>> scientific(3.2e-7), scientific(0.0), scientific(float("nan"))
    ('3.2e-07', '0', '')
    """
    return "" if math.isnan(size) else f"{size:.1e}" if size else "0"


@torch.no_grad()
def diff(a: Any, b: Any, prompt: str | list[str] | Tensor, *, tolerance: float | None = None) -> Difference:
    """Where two models part on a prompt: the first hook point, and by how much down the layers.

    Each is a `LanguageModel`, a native model (`nnzoo.load`), or one of the two transformers' model of the same family
    (its modules' inputs and outputs stand for the hook points). Differences are the largest at a place, relative to the
    largest value there; infinite where shapes differ. `tolerance` is what counts as the same: by default what another
    order of summation may change in the less precise of the two dtypes, 1e-10 in float64, 1e-4 in float32. Prompts are
    texts or ids, all of the same length. Raises ValueError where the models read the prompt as different ids.

    >>> from nnzoo import diff, load
    >>> a, b = load("nnzoo/tiny-gpt2"), load("nnzoo/tiny-gpt2")
    >>> diff(a, b, "The capital of France is").first is None
    True
    >>> _ = b.blocks[2].mlp.up.bias.data.add_(0.1)
    >>> diff(a, b, "The capital of France is").first.hook
    'blocks.2.mlp.hook_pre'
    """
    sides = [_Theirs(one) if _is_transformers(one) else Subject(one) for one in (a, b)]
    ours = [side for side in sides if isinstance(side, Subject)]
    if not ours:
        raise TypeError("both models are transformers': one of the two is a LanguageModel or a native model")
    ids = _ids(ours, prompt)
    dtypes = [next(side.native.parameters()).dtype for side in sides]
    limit = max(TOLERANCES.get(dtype, 1e-4) for dtype in dtypes) if tolerance is None else tolerance
    if len(ours) == 2:
        gaps = list(_between(ours[0].native, ours[1].native, ids, limit))
    else:
        theirs = next(side for side in sides if isinstance(side, _Theirs))
        gaps = list(_next_to(ours[0].native, theirs, ids, limit))
    names = [
        f"{type(side.native).__name__} ({str(d).removeprefix('torch.')})" for side, d in zip(sides, dtypes, strict=True)
    ]
    return _drawn(" and ".join(names), gaps)


def _ids(subjects: list[Subject], prompt: str | list[str] | Tensor) -> Int[Tensor, "batch pos"]:
    """The prompt as all of the models read it."""
    read = [subject.read(prompt) for subject in subjects]
    if any(tokens.mask is not None and not tokens.mask.all() for tokens in read):
        raise ValueError("prompts of different lengths are padded, and what stands there is nobody's value: one length")
    ids = [tokens.ids.cpu() for tokens in read]
    if len(ids) == 2 and not torch.equal(*ids):
        raise ValueError(f"the two models read this prompt as different ids: {ids[0].tolist()} and {ids[1].tolist()}")
    return ids[0]


# --- two native models -----------------------------------------------------------------------------------------------


def _between(a: HookedModel, b: HookedModel, ids: Int[Tensor, "batch pos"], limit: float) -> Iterator[Gap]:
    """A gap for each hook point that both have, without those that are made on request only."""
    names = [p.name for p in a.select(None) if p.name in b.hook_points and not b.hook_points[p.name].on_request]
    _, cache = a.run_with_cache(ids.to(a.device), names_filter=names, return_type=None)
    sizes: dict[str, float] = {}

    def measure(value: Tensor, point: HookPoint) -> None:
        sizes[point.name] = relative(value.cpu(), cache[point.name].cpu())

    handles = [b.hook_points[name].add_reader(measure) for name in names]
    try:
        b(ids.to(b.device), return_type=None)
    finally:
        for handle in handles:
            handle.remove()
    return (Gap(name, name, sizes[name], limit) for name in firing_order(a) if name in sizes)


# --- a native model and transformers' --------------------------------------------------------------------------------


class _Theirs:
    """A model of transformers."""

    def __init__(self, model: Any) -> None:
        self.native: Any = model


def _is_transformers(model: Any) -> bool:
    return isinstance(model, nn.Module) and not isinstance(model, (HookedModel, LanguageModel)) and (
        hasattr(getattr(model, "config", None), "model_type")
    )  # fmt: skip


def _next_to(ours: HookedModel, theirs: _Theirs, ids: Int[Tensor, "batch pos"], limit: float) -> Iterator[Gap]:
    model, kind = theirs.native, paths_of(ours.config)[""].kind
    if type(model).__name__ != kind or model.config.num_hidden_layers != ours.config.n_layers:
        n_layers = getattr(model.config, "num_hidden_layers", "?")
        raise ValueError(
            f"next to {type(ours).__name__} with {ours.config.n_layers} blocks stands a {kind} with as many, not "
            f"{type(model).__name__} with {n_layers}: AutoModelForCausalLM.from_pretrained(folder) reads one"
        )
    paths = {path for path, _ in places_of(ours)}
    found = _values(model, paths, ids.to(next(model.parameters()).device))
    found.values = {place: _as_batch(value, len(ids)).to(ours.device) for place, value in found.values.items()}
    for difference in compare(ours, ids.to(ours.device), found):
        yield Gap(difference.hook, difference.place, difference.size, difference.limit(limit))


def _as_batch(value: Tensor, batch: int) -> Tensor:
    """Transformers makes positions and rotations once for all prompts."""
    return value.expand(batch, *value.shape[1:]) if len(value) == 1 else value


def _values(model: Any, paths: set[str], ids: Int[Tensor, "batch pos"]) -> Reference:
    """What transformers has at its modules; patterns from a second pass, in the implementation that has them."""
    found, eager = Reference(), Reference()
    training, attention = model.training, model.config._attn_implementation
    model.eval()  # without dropout
    try:
        observe(model, paths, ids, found)
        model.set_attn_implementation("eager")
        observe(model, [path for path in paths if path.endswith("attn")], ids, eager)
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
    found.values.update({place: value for place, value in eager.values.items() if place[1] == "output[1]"})
    return found


# --- the table -------------------------------------------------------------------------------------------------------


def _drawn(models: str, gaps: list[Gap]) -> Difference:
    """The largest gap of each hook point, by its name in the block and the layer."""
    sizes: dict[tuple[str, int], float] = {}
    for gap in gaps:
        if match := IN_A_BLOCK.match(gap.hook):
            key = match[2], int(match[1])
            sizes[key] = max(sizes.get(key, 0.0), gap.size)
    names = list(dict.fromkeys(name for name, _ in sizes))
    n_layers = 1 + max((layer for _, layer in sizes), default=-1)
    rows = [[sizes.get((name, layer), math.nan) for layer in range(n_layers)] for name in names]
    values = torch.tensor(rows, dtype=torch.float64).view(len(names), n_layers)
    axes = Axis("place", tuple(names)), Axis("layer", tuple(map(str, range(n_layers))))
    return Difference("in the blocks", "relative difference", values, axes, tuple(gaps), models)
