"""Rules of shape and dtype for the operators that are used most, asked before PyTorch's kernels for the meta device.

Most of those kernels are Python, and the first that runs imports sympy or PyTorch's compiler: up to two seconds, where
a rule takes microseconds. Rules are of operators, not of functions: however a body spells an operation, and whatever
it is made of, PyTorch itself reads the arguments and dispatches one operator after the other (effects.py watches them).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.shape_rules_common import Rule, StepsAside, is_known, need
from nnzoo.tracing.shape_rules_elementwise import ELEMENTWISE
from nnzoo.tracing.shape_rules_parts import PARTS
from nnzoo.tracing.shape_rules_reductions import REDUCTIONS

RULES: dict[str, Rule] = ELEMENTWISE | REDUCTIONS | PARTS


def answer(rule: Rule, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operator gives of arguments that are known, or None where its rule steps aside.

    All is new, with no storage of an argument; an operator that writes its first argument gives that one.
    """
    try:
        return rule(*args, **kwargs)
    except StepsAside:
        return None


def answer_at_once(fn: Callable, args: tuple) -> Tensor | None:
    """What a method gives that is one operator and no more, for which nothing need be dispatched: a few microseconds.

    None where that is not so, or no rule answers.
    """
    rule = _AT_ONCE.get(fn)
    if rule is None or len(args) != 2 or not (isinstance(args[0], Tensor) and all(_is_operand(one) for one in args)):
        return None
    return answer(rule, args, {})


_AT_ONCE = {
    Tensor.add: RULES["add.Tensor"],
    Tensor.sub: RULES["sub.Tensor"],
    Tensor.mul: RULES["mul.Tensor"],
    Tensor.div: RULES["div.Tensor"],
    Tensor.matmul: RULES["matmul.default"],
}


def _is_operand(value: Any) -> bool:
    """Whether an argument of a method is one of its operator too, as it stands."""
    return type(value) in (int, float, bool) or (isinstance(value, Tensor) and is_known(value))


def rule_of(op: Any) -> Rule | None:
    """The rule of an operator; one in place, `add_`, has that of `add`."""
    namespace, packet, overload = str(op).split(".")
    if namespace != "aten" or packet.startswith("__"):
        return None
    if packet.endswith("_") and f"{packet[:-1]}.{overload}" in ELEMENTWISE:
        return _in_place(ELEMENTWISE[f"{packet[:-1]}.{overload}"])
    return RULES.get(f"{packet}.{overload}")


def _in_place(rule: Rule) -> Rule:
    """The rule of an operator that writes what another gives into its first argument."""

    def written(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = rule(target, *args, **kwargs)
        need(result.shape == target.shape and torch.can_cast(result.dtype, target.dtype))
        return target

    return written
