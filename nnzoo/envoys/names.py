"""Names in the tree: which are free, and what to say of one that is not there."""

import difflib
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from nnzoo.envoys.envoy import Envoy

# what a whole model can do, and no module of it
CONTEXTS = {"clear_edits", "edit", "generate", "scan", "session", "trace"}
WHOLE = {"bfloat16", "cpu", "cuda", "double", "eval", "float", "half", "to", "train"}
VALUES = ("input", "inputs", "output")


def join(path: str, name: str) -> str:
    """A dotted path with one more name.

    >>> join("transformer.h", "3"), join("", "lm_head")
    ('transformer.h.3', 'lm_head')
    """
    return f"{path}.{name}" if path else name


def missing(envoy: "Envoy", name: str) -> AttributeError:
    """The error for a name that an envoy does not have: the nearest that it has, or all of its modules."""
    where = envoy._path or "the model"
    if name in CONTEXTS:
        return AttributeError(f"{where} has no .{name}: it is of a whole model, model.{name}(...)")
    if name == "source":
        return AttributeError(f"{where} has no source to look into: nothing is traced line by line. {_places(envoy)}")
    if name in WHOLE:
        return AttributeError(f"{where} cannot do .{name}() alone: a model is of one dtype and device; model.{name}()")
    if name in VALUES:
        index = f"{where}[0].{name}" if envoy._node.item is not None else "a module inside"
        return AttributeError(f"{where} has no {name}: it is never called itself; ask {index}")
    if name == "save" or hasattr(Tensor, name):
        return AttributeError(f"{where} is no tensor and has no {name!r}; the tensor is {_tensor_of(envoy)}")
    if name == "model" and not envoy._path:
        return AttributeError(f"the model has no module 'model'; paths begin with {' or '.join(envoy._children())}")
    near = nearest(name, known(envoy))
    if near:
        return AttributeError(f"{where} has no module {name!r}; did you mean {' or '.join(near)}?")
    modules = [*envoy._children()]
    if envoy._node.item is not None:
        has = f"it is a list of {len(envoy)} modules: {where}[0]"
    else:
        has = f"it has {', '.join(modules)}" if modules else "it has no modules of its own"
    return AttributeError(f"{where} has no module {name!r}; {has}")


def _tensor_of(envoy: "Envoy") -> str:
    """Where the tensor stands that a module was taken for."""
    if envoy._node.item is not None:
        return _tensor_of(envoy[0])
    path, entry = join(envoy._path or "model", "output"), envoy._node.entry
    if entry is None or entry.output is None:
        return "the .output of a module inside"
    return path if envoy._is_bare(entry) else f"{path}[0]"


def known(envoy: "Envoy") -> list[str]:
    """Every public name that an envoy answers to."""
    return sorted({name for name in dir(envoy) if not name.startswith("_")})


def nearest(name: str, names: list[str], cutoff: float = 0.6) -> list[str]:
    """The names that were most likely meant."""
    return difflib.get_close_matches(name, names, n=3, cutoff=cutoff)


def _places(envoy: "Envoy") -> str:
    hooks = [*envoy._node.hooks]
    return f"What it computes on the way stands at its hook points: {', '.join(hooks)}" if hooks else "See print(model)"


def no_such_assignment(envoy: "Envoy", name: str) -> AttributeError:
    """The error for setting what cannot be set."""
    path = join(envoy._path, name)
    if name in envoy._node.parameters:
        return AttributeError(f"{path} is a parameter; edit it in place: with torch.no_grad(): {path}.copy_(value)")
    near = nearest(name, [*VALUES])
    hint = f"did you mean .{near[0]}? What can be set is" if near else "what can is"
    return AttributeError(f"{path} cannot be set; {hint} .output, .input, .inputs, and a module of your own")


def part_of_the_model(envoy: "Envoy", index: str) -> TypeError:
    """The error for setting or deleting an element of a list of blocks."""
    path = f"{envoy._path or 'model'}{index}"
    return TypeError(
        f"{path} cannot be set or deleted: it is part of the model, which runs as it is. In a trace, or for good in "
        f"model.edit(), set what it gives, {path}.output = ..., or leave it out: {path}.skip(value)"
    )


def check_free(envoy: "Envoy", name: str) -> None:
    """Raise ValueError where a module of the user's own cannot be put: something has that name already."""
    node, path = envoy._node, join(envoy._path, name)
    if node.is_hook or node.item is not None:
        kind = "a hook point" if node.is_hook else "the list of blocks"
        raise ValueError(f"{envoy._path} is {kind}, which holds no modules of yours; attach it to the module around")
    taken = {*node.children, *node.natives, *node.hooks, *node.parameters, *node.aliases, *vars(envoy)}
    if name in {*node.children, *node.natives}:
        raise ValueError(
            f"{path} is part of the model, which runs as it is; attach your module under another name, and in a trace, "
            f"or for good in model.edit(), put what it gives in the place: .{name}.output = yours(.{name}.input)"
        )
    if name in taken or hasattr(type(envoy), name):
        raise ValueError(f"{path} is there already; attach your module under another name")
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no name that an attribute can have; attach your module under another")
