"""What can be wrong with the value of a hook point, and how it is said: its shape, its dtype, numbers that are none."""

import math

import torch
from torch import Tensor, nn

from nnzoo.architectures.hooks import HookPoint, HookShapeError


class NonFiniteError(FloatingPointError):
    """A hook point holds NaN or infinity; the first of a pass that does."""


def wrong_rank(point: HookPoint, value: Tensor) -> HookShapeError:
    """The error for a value that has more or fewer axes than declared."""
    n = len(point.axes.split())
    return HookShapeError(
        f"{named(point)} declares [{point.axes}], but what came has {value.ndim} axes, not {n}: {list(value.shape)}."
    )


def wrong_size(point: HookPoint, value: Tensor, axis: str, expected: int, where: str) -> HookShapeError:
    """The error for an axis that is of another size than elsewhere in the run."""
    got = value.shape[point.axes.split().index(axis) - len(point.axes.split())]
    says = f"the model's config says {expected}" if where == "" else f"{where} has {expected} in the same run"
    if axis == str(expected):
        says = f"its size is declared as {expected}"
    return HookShapeError(
        f"{named(point)} holds [{point.axes}] = {list(value.shape)}: its axis {axis!r} is {got}, but {says}."
    )


def wrong_dtype(point: HookPoint, value: Tensor, expected: torch.dtype, where: str) -> HookShapeError:
    """The error for numbers of another precision than elsewhere in the run."""
    return HookShapeError(
        f"{named(point)} holds {value.dtype}, but {where} has {expected} in the same run: something on the way between "
        f"them converts, or a parameter is of another dtype. model.to({expected}) converts all of them."
    )


def is_sound(point: HookPoint, value: Tensor) -> bool:
    """Whether all numbers are finite; in masked scores -inf is what belongs there."""
    if not (value.is_floating_point() or value.is_complex()) or not value.numel():
        return True
    value = value.detach()
    if point.name.endswith("hook_attn_scores"):
        return bool(value.amax() < math.inf)  # NaN passes through amax, and is less than nothing
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())  # a sum may overflow where no number does


def not_finite(
    point: HookPoint,
    value: Tensor,
    *,
    before: str | None,
    put_back: bool,
    module: nn.Module | None,
    tokens: Tensor | None,
) -> NonFiniteError:
    """The error that names the place, what is wrong there and the last place where all was well."""
    wrong = value.isnan() | (value == math.inf)
    if not point.name.endswith("hook_attn_scores"):
        wrong = wrong | (value == -math.inf)
    what = "NaN" if value.isnan().any() else "Infinity"
    text = (
        f"{named(point)} is the first hook point of this run that is not finite. {what} in {int(wrong.sum())} of "
        f"{wrong.numel()} numbers {_shape(point, wrong)}, {_where(point, wrong, tokens)}."
    )
    if put_back:
        return NonFiniteError(
            f"{text} What the model computed there was finite, what a hook or a trace put back is not."
        )
    if before is not None:
        text += f" The hook point before it, {before}, was still finite."
    return NonFiniteError(text + _parameters(module) + _range(value))


def _shape(point: HookPoint, value: Tensor) -> str:
    return str(list(value.shape)) if "_" in point.axes.split() else f"[{point.axes}]"


def named(point: HookPoint) -> str:
    return point.name or "a hook point without a name"


def _where(point: HookPoint, wrong: Tensor, tokens: Tensor | None) -> str:
    """The first wrong number, and the axes along which only a part is wrong."""
    places = wrong.nonzero()
    symbols = [] if "_" in point.axes.split() else point.axes.split()[-wrong.ndim :]
    names = [f"axis {i}" for i in range(wrong.ndim - len(symbols))] + symbols
    first = ", ".join(f"{name} {i}" for name, i in zip(names, places[0].tolist(), strict=True))
    text = f"the first at {first}{_token(names, places[0], tokens)}"
    for dim, name in enumerate(names):
        found = places[:, dim].unique().tolist()
        if len(found) < wrong.shape[dim] and len(places) > 1:
            text += f"; all in {name} {_listed(found)}"
    return text


def _token(names: list[str], place: Tensor, tokens: Tensor | None) -> str:
    axis = next((i for i, name in enumerate(names) if name in ("pos", "query")), None)
    if tokens is None or axis is None or names[0] != "batch" or len(tokens) <= place[0]:
        return ""
    return f" (token {int(tokens[place[0], place[axis]])})" if tokens.shape[1] > place[axis] else ""


def _listed(numbers: list[int]) -> str:
    """Numbers in words.

    >>> _listed([2, 3, 4]), _listed([7]), _listed([1, 5, 9, 11, 12, 20, 30])
    ('2 to 4', '7', '1, 5, 9, 11, 12, ... (7 of them)')
    """
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown}, ... ({len(numbers)} of them)"


def _parameters(module: nn.Module | None) -> str:
    if module is None:
        return ""
    wrong = [name for name, weight in module.named_parameters() if not weight.is_meta and not weight.isfinite().all()]
    return f" The parameter {wrong[0]} of the {type(module).__name__} there is not finite itself." if wrong else ""


def _range(value: Tensor) -> str:
    if value.dtype != torch.float16 or not value.isinf().any():
        return ""
    return " float16 ends at 65504: bfloat16 and float32 reach further."
