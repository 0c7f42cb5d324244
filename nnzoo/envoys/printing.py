"""The tree of a model as text: transformers' own, with the hook points of each module and their shapes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nnzoo.weights.described import extra_repr, sizes

if TYPE_CHECKING:
    from nnzoo.envoys.envoy import Envoy


def tree_text(envoy: "Envoy") -> str:
    """A module and all below, as transformers prints it; lines that begin with a hook point's name are added.

    >>> from nnzoo import LanguageModel
    >>> LanguageModel("nnzoo/tiny-gpt2").transformer.h[0].ln_1
    LayerNorm((96,), eps=1e-05, elementwise_affine=True, bias=True)
        hook_in          [batch, pos, d_model=96]
        hook_scale       [batch, pos, 1]
        hook_normalized  [batch, pos, d_model=96]
        hook_out         [batch, pos, d_model=96]
    """
    return "\n".join(_lines(envoy))


def _lines(envoy: "Envoy") -> list[str]:
    hooks = hooks_of(envoy)
    if envoy._node.is_hook:
        return [f"HookPoint({envoy._path}: {_shape(envoy._node.axes or '', envoy._root.skeleton.axis_sizes)})"]
    children = _children(envoy)
    kind = kind_of(envoy)
    if not children:
        return [f"{kind}({details_of(envoy)})", *(f"    {line}" for line in hooks)]
    return [f"{kind}(", *(f"  {line}" for line in [*hooks, *children]), ")"]


def kind_of(envoy: "Envoy") -> str:
    """The name of a module's class: transformers', or nnzoo's for a module by its native name."""
    node = envoy._node
    if not node.is_native or node.module is None:
        return node.entry.kind
    return type(envoy._root.skeleton.get_submodule(node.module.format(i=envoy._layer))).__name__


def details_of(envoy: "Envoy") -> str:
    """What transformers prints of a module without children: "(96,), eps=1e-05"."""
    node = envoy._node
    return extra_repr(node.path, node.entry.kind, _shapes(envoy), envoy._root.config, envoy._root._settings)


def sizes_of(envoy: "Envoy") -> dict[str, Any]:
    """The numbers that transformers keeps at a module as attributes."""
    node = envoy._node
    if node.is_native or node.entry is None or not hasattr(type(envoy._root), "skeleton"):  # of a stored cache: names
        return {}
    return sizes(node.entry.kind, _shapes(envoy), envoy._root.config, envoy._layer)


def _shapes(envoy: "Envoy") -> dict[str, tuple[int, ...]]:
    names = {leaf: name.format(i=envoy._layer) for leaf, name in envoy._node.parameters.items()}
    return {leaf: tuple(envoy._root.skeleton.get_parameter(name).shape) for leaf, name in names.items()}


def hooks_of(envoy: "Envoy") -> list[str]:
    """A line for each hook point of a module: its name and its shape."""
    hooks, sizes = envoy._node.hooks, envoy._root.skeleton.axis_sizes
    width = max(map(len, hooks), default=0)
    return [f"{name.ljust(width)}  {_shape(node.axes or '', sizes)}" for name, node in hooks.items()]


def _shape(axes: str, sizes: Mapping[str, int]) -> str:
    """A declared shape, with the numbers that the config decides.

    >>> _shape("batch head query key", {"head": 12})
    '[batch, head=12, query, key]'
    """
    return f"[{', '.join(f'{axis}={sizes[axis]}' if axis in sizes else axis for axis in axes.split())}]"


def _children(envoy: "Envoy") -> list[str]:
    """The lines of the modules below, equal ones that follow each other in a list folded to one."""
    labels = labels_of(envoy)
    parts = [(labels.get(name, name), repr(child).split("\n")) for name, child in envoy._children().items()]
    if envoy._node.item is not None:
        parts = _fold(parts)
    return [line for label, (head, *rest) in parts for line in (f"({label}): {head}", *rest)]


def labels_of(envoy: "Envoy") -> dict[str, str]:
    """The children that have other names too: {"h": "layers/h"}."""
    labels: dict[str, str] = {}
    for alias, path in reversed(envoy._node.aliases.items()):
        labels[path] = f"{alias}/{labels.get(path, path)}"
    return labels


def _fold(parts: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    folded: list[tuple[str, str, list[str]]] = []  # first, last, lines
    for label, lines in parts:
        if folded and folded[-1][2] == lines:
            folded[-1] = (folded[-1][0], label, lines)
        else:
            folded.append((label, label, lines))
    return [
        (first, lines)
        if first == last
        else (f"{first}-{last}", [f"{int(last) - int(first) + 1} x {lines[0]}", *lines[1:]])
        for first, last, lines in folded
    ]
