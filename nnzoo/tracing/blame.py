"""What an error of PyTorch's says beside: which values of the trace were to go together, and the line that said so.

PyTorch knows sizes alone; a trace knows that they are those of a hook point, and what its axes are called. Nothing here
runs unless an operation fails.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from nnzoo.tracing.arguments import flat, name_of, operands, to_meta
from nnzoo.tracing.graph import Call, Node, fill
from nnzoo.tracing.infer import infer, is_one_integer, map_tensors
from nnzoo.tracing.lines import add_note, goes_through_the_compiler

_KEEP = set("clone detach contiguous to float double half bfloat16 view_as fill_ zero_ copy_ __setitem__".split())
_FITTED = set(
    "add sub mul div true_divide pow maximum minimum where lerp eq ne lt le gt ge __add__ __sub__ __mul__ __truediv__ "
    "__radd__ __rsub__ __rmul__ rsub __rpow__ __pow__ __rtruediv__ __rdiv__ copy_ logical_and logical_or "
    "bitwise_and bitwise_or __and__ __or__ expand_as".split()
)
_MOST = 4  # operands that are described


def add_hints(error: BaseException, block_output: str) -> None:
    """Add to an error of a body what is likely to be its reason, where that is known."""
    if isinstance(error, IndexError) and block_output == "tensor" and "too many" in str(error):
        add_note(
            error, 'with block_output="tensor" a block\'s .output is its tensor, and .output[0] the first row of it'
        )
    if goes_through_the_compiler(error.__traceback__):
        add_note(
            error,
            "torch.compile, torch.cond, torch.while_loop and flex_attention go through PyTorch's compiler, which takes "
            "no traced values: call the function itself, branch with `if`, which looks at the value, or use "
            "scaled_dot_product_attention",
        )


def blame(error: Exception, node: Node) -> None:
    """An error came up when a node ran: it is of the line that recorded the node, and of its operands."""
    if getattr(error, "line", None) is None:
        error.line = node.line  # type: ignore[attr-defined]  # as a GraphError has it
        if isinstance(node, Call):
            say_of(error, node.fn, node.args, node.kwargs)


def say_of(error: Exception, fn: Callable, args: tuple, kwargs: dict) -> None:
    """Let an error that PyTorch raised name the values that a function was given, nodes as they stand in a graph."""
    if not isinstance(error, (RuntimeError, IndexError, ValueError, TypeError)) or len(error.args) != 1:
        return
    said, name = error.args[0], name_of(fn)
    if not isinstance(said, str) or type(error).__module__.startswith("nnzoo") or not operands((args, kwargs))[0]:
        return
    try:
        described = _with_dtype if "type" in said else _described
        of = (
            _set(args[0], args[1], args[2], described)
            if name == "__setitem__"
            else _called(name, args, kwargs, described)
        )
    except Exception:  # what is said beside is no reason for another error
        return
    error.args = (f"{of}. PyTorch: {said}",)


def _set(target: Node, index: Any, value: Any, described: Callable[[Any], str]) -> str:
    """Of `target[index] = value`: the part that was to be set, and the value."""
    whole = described(target)
    if not isinstance(value, (Node, Tensor)):
        return f"{whole} at {_written(index)}"
    on_meta = map_tensors(to_meta, fill(index, lambda node: node.meta))
    shape = _shape(infer(Tensor.__getitem__, (target.meta, on_meta), {}, [target.meta]).result)
    axes = _indexed(target, index)
    part = "" if shape == _shape(target) else f", of which {_written(index)} is {_sizes(axes, shape)},"
    return f"{whole}{part} cannot be set to {described(value)}{_unequal(axes, shape, _shape(value))}"


def _called(name: str, args: tuple, kwargs: dict, described: Callable[[Any], str]) -> str:
    """Of a call: its operands, and which of their axes are unequal where all have to fit."""
    if name == "__getitem__":
        return f"{described(args[0])} at {_written(args[1])}"
    tensors = [one for one in flat((args, kwargs)) if isinstance(one, (Node, Tensor))]
    words = [described(one) for one in tensors[:_MOST]] + ["..."] * (len(tensors) > _MOST)
    unequal = ""
    if _is_fitted(name) and len(tensors) == 2:
        one, other = tensors
        unequal = _unequal(axes_of(one) or axes_of(other), _shape(one), _shape(other))
    return f"{name} of {' and '.join(words)}{unequal}"


def _unequal(axes: tuple[str, ...], one: tuple[int, ...], other: tuple[int, ...]) -> str:
    """Which axes, counted from the last, are of different size."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    wrong = [(-1 - i, a, b) for i, (a, b) in enumerate(pairs) if a != b and 1 not in (a, b)]
    names = [f"axis {axes[i]!r}" if len(axes) >= -i else f"axis {i}" for i, _, _ in wrong]
    said = [f"{name} is {a} and {b}" for name, (_, a, b) in zip(names, wrong, strict=True)]
    return f": {', '.join(said)}" if said else ""


# --- values in words -------------------------------------------------------------------------------------------------


def _described(one: Any) -> str:
    """A value as the user would call it: a hook point with its axes, what an operation gave, a tensor."""
    sizes = _sizes(axes_of(one), _shape(one))
    if not isinstance(one, Node):
        return f"a tensor {sizes}"
    if one.hook is not None:
        return f"{one.hook} {sizes}"
    if isinstance(one, Call) and name_of(one.fn) == "__getitem__" and one.inputs[0].hook is not None:
        return f"{one.inputs[0].hook}{_written(one.args[1])} {sizes}"
    return f"the result of {one} {sizes}"


def _with_dtype(one: Any) -> str:
    meta = one.meta if isinstance(one, Node) else one
    return _described(one) if meta is None else f"{_described(one)} of {meta.dtype}"


def _sizes(axes: tuple[str, ...], shape: tuple[int, ...]) -> str:
    if not axes:
        return str(list(shape))
    return f"({', '.join(f'{axis} {size}' for axis, size in zip(axes, shape, strict=True))})"


def _shape(one: Any) -> tuple[int, ...]:
    meta = one.meta if isinstance(one, Node) else one
    return () if meta is None else tuple(meta.shape)


def axes_of(one: Any, known: dict[Any, tuple[str, ...]] | None = None) -> tuple[str, ...]:
    """The names of a value's axes: of a place's, and of what plain indexing and arithmetic make of it; else none.

    `known` has those that were found on the way: x = x + x is gone through once, however often it is repeated.
    """
    known = {} if known is None else known
    if isinstance(one, Node) and one not in known:
        axes = _axes_of(one, known)
        known[one] = axes if len(axes) == len(_shape(one)) else ()
    return known.get(one, ())


def _axes_of(node: Node, known: dict[Any, tuple[str, ...]]) -> tuple[str, ...]:
    if node.view is not None:
        return tuple(node.view.pattern.partition("->")[2].split())
    if node.hook is not None and node.storage.place is not None:
        return node.storage.place.axes
    if not isinstance(node, Call):
        return ()
    name = name_of(node.fn)
    if name == "__getitem__":
        target, index = node.args
        return _indexed(target, index, known)
    if name in _KEEP or _is_fitted(name):
        alike = (axes_of(one, known) for one in node.inputs if _shape(one) == _shape(node))
        return next(filter(None, alike), ())
    return ()


def _is_fitted(name: str) -> bool:
    """Whether a function's operands are broadcast to one another; in place too."""
    return (name if name.endswith("__") else name.removesuffix("_")) in _FITTED


def _indexed(target: Any, index: Any, known: dict[Any, tuple[str, ...]] | None = None) -> tuple[str, ...]:
    """The axes that are left after indexing by numbers, slices, None and an ellipsis."""
    axes = list(axes_of(target, known))
    parts = [0 if _is_one_number(part) else part for part in (index if isinstance(index, tuple) else (index,))]
    if not axes or not all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts):
        return ()
    taken = sum(isinstance(part, (int, slice)) for part in parts)
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts[at : at + 1] = [slice(None)] * (len(axes) - taken)
    found, left = [], iter(axes)
    for part in parts:
        axis = "new" if part is None else next(left)
        if not isinstance(part, int):
            found.append(axis)
    return tuple(found)


def _is_one_number(part: Any) -> bool:
    return isinstance(part, Node) and part.meta is not None and is_one_integer(part.meta)


def _written(index: Any) -> str:
    """An index as one writes it."""
    parts = index if isinstance(index, tuple) else (index,)
    return f"[{', '.join(_part(part) for part in parts)}]"


def _part(part: Any) -> str:
    if isinstance(part, slice):
        ends = ["" if end is None else _part(end) for end in (part.start, part.stop, part.step)]
        return ":".join(ends if ends[2] else ends[:2])
    if isinstance(part, (Node, Tensor)):
        return f"a tensor {list(_shape(part))}"
    return "..." if part is Ellipsis else str(part)
