"""Rules for operators that give an element for each element: arithmetic, comparisons, activations, `where`."""

from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.shape_rules_common import FLOATS, HALVES, INTEGERS, Number, Rule, elementwise, in_steps, need


def floating(dtype: torch.dtype) -> torch.dtype:
    """A dtype, the default one where integers and truths are computed with as floats."""
    return dtype if dtype in FLOATS else torch.get_default_dtype()


def common(*operands: Any) -> torch.dtype:
    """The dtype to which tensors and numbers are promoted."""
    first, *others = operands
    dtype = first.dtype
    if len(others) == 1:
        return torch.result_type(first, others[0])
    need(all(isinstance(one, Tensor) and one.dtype == dtype for one in others))
    return dtype


def _opmath(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers of a dtype are computed with."""
    return torch.float32 if dtype in HALVES else dtype


def _arithmetic(*operands: Any) -> Tensor:
    dtype = common(*operands)
    return elementwise(*operands, dtype=dtype, computed=_opmath(dtype))


def _sum(x: Tensor, other: Any, alpha: Number = 1) -> Tensor:
    need(type(alpha) is int or (type(alpha) is float and torch.result_type(x, other) in FLOATS))
    return _arithmetic(x, other) if alpha == 1 else in_steps(x, other, dtype=common(x, other))


def _difference(x: Tensor, other: Any, alpha: Number = 1) -> Tensor:
    need(x.dtype != torch.bool and type(other) is not bool)
    need(not isinstance(other, Tensor) or other.dtype != torch.bool)
    return _sum(x, other, alpha)


def _reversed_difference(x: Tensor, other: Any, alpha: Number = 1) -> Tensor:
    return in_steps(x, other, dtype=_difference(x, other, alpha).dtype)


def _quotient(x: Tensor, other: Any) -> Tensor:
    dtype = floating(common(x, other))
    return elementwise(x, other, dtype=dtype, computed=_opmath(dtype))


def _quotient_in_steps(x: Tensor, other: Any) -> Tensor:
    return in_steps(x, other, dtype=floating(common(x, other)))


def _rounded_quotient(x: Tensor, other: Any, rounding_mode: str | None = None) -> Tensor:
    return _quotient(x, other) if rounding_mode is None else _floor_quotient(x, other)


def _floor_quotient(x: Tensor, other: Any) -> Tensor:
    dtype = common(x, other)
    need(dtype in FLOATS)
    return in_steps(x, other, dtype=dtype)


def _of_floats(*operands: Any) -> Tensor:
    """Of operators that take integers in ways of their own, and operands of one dtype alone."""
    need(common(*operands) in FLOATS)
    return _arithmetic(*operands)


def _power(x: Any, exponent: Any) -> Tensor:
    tensor, other = (x, exponent) if isinstance(x, Tensor) else (exponent, x)
    dtype = torch.result_type(tensor, other)
    need(dtype in FLOATS and (isinstance(exponent, Tensor) or exponent != 1))
    return elementwise(x, exponent, dtype=dtype, computed=_opmath(dtype))


def _comparison(x: Tensor, other: Any) -> Tensor:
    return elementwise(x, other, dtype=torch.bool, computed=_opmath(common(x, other)))


def _logical(*operands: Any) -> Tensor:
    return in_steps(*operands, dtype=torch.bool)


def _bitwise(x: Tensor, other: Any = True) -> Tensor:
    dtype = torch.result_type(x, other)
    need(dtype == torch.bool or dtype in INTEGERS)
    return elementwise(x, other, dtype=dtype, computed=dtype)


def _is_special(x: Tensor) -> Tensor:
    need(x.dtype in FLOATS)
    return elementwise(x, dtype=torch.bool)


def _same(x: Tensor, *_: Any, **__: Any) -> Tensor:
    need(x.dtype in FLOATS)
    return elementwise(x, dtype=x.dtype, computed=_opmath(x.dtype))


def _same_in_steps(x: Tensor, *_: Any, **__: Any) -> Tensor:
    need(x.dtype in FLOATS)
    return in_steps(x, dtype=x.dtype)


def _to_float(x: Tensor, *_: Any) -> Tensor:
    dtype = floating(x.dtype)
    return elementwise(x, dtype=dtype, computed=_opmath(dtype))


def _sigmoid(x: Tensor) -> Tensor:
    return in_steps(x, dtype=floating(x.dtype))


def _like(x: Tensor) -> Tensor:
    return in_steps(x, dtype=x.dtype)


def _clamp(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    bounds = [one for one in (low, high) if one is not None]
    need(bool(bounds) and x.dtype in FLOATS)
    need(all(not isinstance(one, Tensor) or one.dtype == x.dtype for one in bounds))
    return in_steps(x, *bounds, dtype=x.dtype)


def _where(condition: Tensor, x: Any, other: Any) -> Tensor:
    need(condition.dtype == torch.bool and isinstance(x, Tensor) and isinstance(other, Tensor))
    if x.dtype != other.dtype:
        return in_steps(condition, x, other, dtype=torch.result_type(x, other))
    return elementwise(condition, x, other, dtype=x.dtype)


def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    need(mask.dtype == torch.bool and x.dtype in FLOATS)
    need(not isinstance(value, Tensor) or (value.ndim == 0 and value.dtype == x.dtype))
    return in_steps(mask, x, dtype=x.dtype).contiguous()


def _lerp(start: Tensor, end: Tensor, weight: Any) -> Tensor:
    need(start.dtype == end.dtype)
    operands = (start, end, weight) if isinstance(weight, Tensor) else (start, end)
    need(start.dtype in FLOATS and all(one.dtype == start.dtype for one in operands))
    return in_steps(*operands, dtype=start.dtype)


def _weighted(x: Tensor, one: Tensor, other: Tensor, value: Number = 1) -> Tensor:
    dtype = common(x, one, other)
    need(dtype in FLOATS)
    return in_steps(x, one, other, dtype=dtype)


_TABLE: list[tuple[Rule, str]] = [
    (_sum, "add.Tensor"),
    (_difference, "sub.Tensor"),
    (_reversed_difference, "rsub.Tensor rsub.Scalar"),
    (_arithmetic, "mul.Tensor mul.Scalar maximum.default minimum.default fmax.default fmin.default"),
    (_quotient, "div.Tensor atan2.default"),
    (_quotient_in_steps, "xlogy.Tensor"),
    (_floor_quotient, "floor_divide.default"),
    (_rounded_quotient, "div.Tensor_mode"),
    (_of_floats, "remainder.Tensor remainder.Scalar fmod.Tensor fmod.Scalar hypot.default"),
    (_power, "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar"),
    (_comparison, " ".join(f"{name}.{kind}" for name in "eq ne lt le gt ge".split() for kind in ("Tensor", "Scalar"))),
    (_logical, "logical_and.default logical_or.default logical_xor.default logical_not.default"),
    (_bitwise, "bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor bitwise_not.default"),
    (_is_special, "isnan.default isinf.default isposinf.default isneginf.default signbit.default"),
    (
        _same,
        "abs.default ceil.default floor.default neg.default "
        "round.default sgn.default sign.default trunc.default frac.default",
    ),
    (
        _same_in_steps,
        "relu.default gelu.default hardtanh.default leaky_relu.default mish.default softplus.default elu.default "
        "logit.default",
    ),
    (
        _to_float,
        "acos.default acosh.default asin.default asinh.default atan.default atanh.default cos.default cosh.default "
        "erf.default erfc.default exp.default exp2.default expm1.default log.default log10.default log1p.default "
        "log2.default reciprocal.default rsqrt.default sin.default sinh.default sqrt.default "
        "tan.default tanh.default",
    ),
    (_sigmoid, "sigmoid.default"),
    (_like, "silu.default"),
    (_clamp, "clamp.default clamp.Tensor clamp_min.default clamp_min.Tensor clamp_max.default clamp_max.Tensor"),
    (_where, "where.self"),
    (_masked_fill, "masked_fill.Scalar masked_fill.Tensor"),
    (_lerp, "lerp.Scalar lerp.Tensor"),
    (_weighted, "addcmul.default addcdiv.default"),
]
ELEMENTWISE = {name: rule for rule, names in _TABLE for name in names.split()}
