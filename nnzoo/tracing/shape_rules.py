"""Rules of shape and dtype for the operators that are used most, asked before PyTorch's kernels for the meta device.

Most of those kernels are Python, and the first that runs imports sympy or PyTorch's compiler: up to two seconds, where
a rule takes microseconds. Rules are of operators, not of functions: however a body spells an operation, and whatever
it is made of, PyTorch itself reads the arguments and dispatches one operator after the other (effects.py watches them).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.shape_rules_common import Rule, StepsAside, need
from nnzoo.tracing.shape_rules_elementwise import ELEMENTWISE
from nnzoo.tracing.shape_rules_parts import PARTS
from nnzoo.tracing.shape_rules_reductions import REDUCTIONS

RULES: dict[str, Rule] = ELEMENTWISE | REDUCTIONS | PARTS


def ruled(op: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operator gives of arguments that are known, or None where no rule answers.

    All is new, with no storage of an argument; an operator that writes its first argument gives that one.
    """
    rule = _rule_of(op)
    if rule is None:
        return None
    try:
        return rule(*args, **kwargs)
    except StepsAside:
        return None


@cache
def _rule_of(op: Any) -> Rule | None:
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
        need(torch._debug_has_internal_overlap(target) != _OVERLAPS)
        others = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one is not target]
        need(all(one.untyped_storage()._cdata != target.untyped_storage()._cdata for one in others))
        return target

    return written


_OVERLAPS = 1  # as at::MemOverlap counts: several elements are one place in memory
