"""Values of our model next to transformers', place by place: what `nnzoo verify` and `nnzoo.diff` measure."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor, nn

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.products import chosen_by_pytorch
from nnzoo.tracing.shapes import firing_order
from nnzoo.weights import ModulePath, Value, paths_of

Place = tuple[str, str]  # a module's path, and "input", "output" or, where it is a tuple, "output[1]"
FLOAT32 = 1e-5

# What another order of summation may change. In half precision a score of 10 is off by 0.004 or 0.03, and e to that in
# the pattern: there only gross mistakes show.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class Reference:
    """The values that a prompt has in transformers' model, and how the model goes on."""

    values: dict[Place, Tensor] = field(default_factory=dict)
    generated: Int[Tensor, "batch new"] | None = None

    def note(self, path: str, side: str, value: Any) -> None:
        """Keep what a module was given or gave: a tensor, or the tensors of a tuple."""
        parts = {side: value} if isinstance(value, Tensor) else {f"{side}[{i}]": value[i] for i in range(len(value))}
        self.values.update({(path, name): part.detach() for name, part in parts.items() if isinstance(part, Tensor)})


def observe(model: nn.Module, paths: Collection[str], tokens: Tensor, found: Reference) -> None:
    """Run transformers' model, and keep what the modules at `paths` are given and give."""

    def listen(path: str) -> Any:
        def note(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            found.note(path, "input", next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))
            found.note(path, "output", output)

        return model.get_submodule(path).register_forward_hook(note, with_kwargs=True)

    handles = [listen(path) for path in paths]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Difference:
    """How far apart one value is in the two models.

    >>> difference = Difference("transformer.h.2.mlp.c_fc", "output", "blocks.2.mlp.hook_pre", 0.5)
    >>> difference.place, difference.block, difference.part
    ('transformer.h.2.mlp.c_fc.output', 2, 'mlp')
    """

    path: str
    side: str
    hook: str
    size: float  # the largest difference, relative to the largest value

    @property
    def place(self) -> str:
        return f"{self.path}.{self.side}" if self.path else self.side

    def limit(self, tolerance: float) -> float:
        """How large it may be: patterns are never more exact than float32, to which transformers rounds them."""
        return max(tolerance, FLOAT32) if self.part == "pattern" else tolerance

    @property
    def block(self) -> int | None:
        return next((int(part) for part in self.path.split(".") if part.isdigit()), None)

    @property
    def part(self) -> str:
        """The module of the block that it belongs to; outside of blocks, the module."""
        if self.hook.endswith(".hook_pattern"):
            return "pattern"
        if self.block is None:
            return self.path or "logits"
        return self.path.partition(f".{self.block}")[2].removeprefix(".").partition(".")[0] or "block"


def places_of(model: HookedModel) -> dict[Place, Value]:
    """Every input and output of transformers' modules, with what it is in ours."""
    return {
        (path.replace("{i}", str(i)), side): Value(value.hook.replace("{i}", str(i)), value.view)
        for path, module in paths_of(model.config).items()
        for i in range(model.config.n_layers if "{i}" in path else 1)
        for side, value in _sides(module)
    }


def _sides(module: ModulePath) -> Iterator[tuple[str, Value]]:
    if module.input is not None:
        yield "input", module.input
    if isinstance(module.output, Value):
        yield "output", module.output
    elif module.output is not None:
        yield from ((f"output[{number}]", value) for number, value in enumerate(module.output))


def compare(model: HookedModel, tokens: Int[Tensor, "batch pos"], theirs: Reference) -> list[Difference]:
    """Every value that transformers computed next to ours, in the order of the forward pass."""
    places = places_of(model)
    values = {place: value for found, value in theirs.values.items() if (place := _in_table(found, places)) is not None}
    hooks = {places[place].hook for place in values}
    patterns = {hook for hook in hooks if hook.endswith(".hook_pattern")}
    ours: dict[str, Tensor] = {}
    for names in (hooks - patterns, patterns):  # apart, since asking for patterns leaves the fused kernel
        with chosen_by_pytorch():  # as theirs are
            ours |= model.run_with_cache(tokens, names_filter=names)[1].cache_dict
    order = {name: number for number, name in enumerate(firing_order(model))}

    def cause_first(difference: Difference) -> tuple[int, bool, int]:  # an output, and of the innermost module
        return order[difference.hook], difference.side == "input", -len(difference.place.split("."))

    differences = [
        Difference(path, side, places[path, side].hook, relative(seen_as(places[path, side], ours), value))
        for (path, side), value in values.items()
    ]
    return sorted(differences, key=cause_first)


def seen_as(value: Value, ours: dict[str, Tensor]) -> Tensor:
    """A value of ours in the shape that transformers has it in."""
    return ours[value.hook] if value.view is None else rearrange(ours[value.hook], value.view)


def _in_table(place: Place, places: dict[Place, Value]) -> Place | None:
    """The table's name of a place; None for what it leaves out, such as a KV cache."""
    path, side = place
    whole = (path, side.removesuffix("[0]"))  # some versions of transformers give (hidden,) where others give hidden
    return next((one for one in (place, whole) if one in places), None)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest value; infinite where they cannot be compared.

    >>> relative(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0]))
    0.2
    """
    if ours.shape != theirs.shape or not torch.equal(ours.isfinite(), theirs.isfinite()):
        return math.inf
    ours, theirs = (t.double().nan_to_num(0.0, 0.0, 0.0) for t in (ours, theirs))
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-300)).item()
