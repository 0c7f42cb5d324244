"""What an operation does beside its result: whether it draws random numbers, and which tensors it changes in place.

Nothing here knows functions by name: while an operation is answered on the meta device, the operators that PyTorch
dispatches for it are watched. Each says of itself that it draws (a tag), and which arguments it writes (its schema).
"""

from collections.abc import Callable
from functools import cache
from types import BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nnzoo.tracing.shape_rules import answer, rule_of
from nnzoo.tracing.shape_rules_common import Rule, is_known

_DRAWS = torch.Tag.nondeterministic_seeded
# how many numbers these draw depends on the values that they are given
_BY_VALUE = ("poisson", "binomial", "_standard_gamma", "_sample_dirichlet", "rrelu")
_STATISTICS = ("running_mean", "running_var")  # what norms write in training; their schemas do not say so
_COMPILED = (BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType)
_plain: set[Any] = set()  # compiled functions of kinds of arguments, which always do the same, with nothing to see
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def watched(fn: Callable, args: tuple, kwargs: dict) -> tuple[Any, "Watch"]:
    """What a function gives, and what it did."""
    watch = Watch()
    call = (fn, _kinds(args), _kinds(kwargs) if kwargs else ()) if isinstance(fn, _COMPILED) else None
    if call is not None and call in _plain:
        return fn(*args, **kwargs), watch
    with watch:
        result = fn(*args, **kwargs)
    if call is not None and not (watch.saw or watch.ruled):
        _plain.add(call)
    return result, watch


def _kinds(value: tuple | list | dict) -> Any:
    """The types of arguments: they decide which operators a compiled function is made of."""
    if isinstance(value, dict):
        return tuple((name, _kinds((part,))) for name, part in value.items())
    return tuple(_kinds(part) if isinstance(part, (tuple, list)) else type(part) for part in value)


class Watch(TorchDispatchMode):
    """Watches the operators that are dispatched inside the `with`, and answers those for which there is a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = self.by_value = self.saw = self.ruled = False
        self._written: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch's compiler is imported, two seconds, to keep away from what is never compiled

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, about = kwargs or {}, _about(op)
        draws = about.draws and not _is_idle(op._schema.name, _named(op._schema.arguments, args, kwargs))
        known = not draws and is_known(args) and is_known(kwargs)
        self.ruled |= about.rule is not None
        result = answer(about.rule, args, kwargs) if known and about.rule is not None else None
        if result is None and known and about.is_composite:
            with self:
                result = op._op_dk(_COMPOSITE, *args, **kwargs)
        elif result is None:
            result = op(*args, **kwargs)
        if about.draws or about.writes:
            self.saw = True
            if draws and not isinstance(result, int):  # the choice of a kernel
                self.draws = True
                self.by_value |= op._schema.name.removeprefix("aten::").startswith(_BY_VALUE)
            self._note_writes(op._schema.arguments, _named(op._schema.arguments, args, kwargs))
        return result

    def _note_writes(self, arguments: Any, given: dict[str, Any]) -> None:
        trains = given.get("training") or given.get("use_input_stats")
        for argument in arguments:
            value = given.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if isinstance(value, Tensor) and (written or (trains and argument.name in _STATISTICS)):
                self._written.add(value.untyped_storage()._cdata)

    def changed(self, tensors: list[Tensor]) -> tuple[int, ...]:
        """The positions of those tensors that were written."""
        return tuple(i for i, t in enumerate(tensors) if t.untyped_storage()._cdata in self._written)


class _About(NamedTuple):
    draws: bool
    writes: bool  # or may write
    is_composite: bool  # made of other operators, on any device
    rule: Rule | None


@cache
def _about(op: Any) -> _About:
    """What an operator says of itself."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    is_composite = op.namespace == "aten" and has(op.name(), _COMPOSITE) and not has(op.name(), "Meta")
    writes = op._schema.is_mutable or op._schema.name.endswith("_norm")
    return _About(_DRAWS in op.tags, writes, is_composite, rule_of(op))


def _named(arguments: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    left_out = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    return left_out | {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs


def _is_idle(name: str, given: dict[str, Any]) -> bool:
    """Whether dropout is off: PyTorch's operators call its rate and its switch by these names."""
    off = any(given.get(switch) is False for switch in ("train", "training"))
    return off or any(given.get(rate) == 0 for rate in ("dropout", "dropout_p", "p" if "dropout" in name else ""))
