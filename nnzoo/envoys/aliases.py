"""Further names for modules, given by the user as `rename={"transformer.h": "layers", "mlp": "feedforward"}`.

The rules are nnsight's. A key is a path from any module that it leads somewhere from: "transformer.h" from the model,
"mlp" from every block. "*" stands for any one name. A dotted alias hangs where its beginning leads: {"attn.c_proj":
"attn.o_proj"}. The old names stay.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from nnzoo.envoys.names import join, nearest
from nnzoo.envoys.tree import Node

if TYPE_CHECKING:
    from nnzoo.envoys.envoy import Envoy

Rename = Mapping[str | type, str | list[str]]


def bind(root: "Envoy", rename: Rename | None) -> None:
    """Give the nodes of a model's tree their further names.

    Raises ValueError for an alias that would hide something, that is no name, or whose key leads to several modules,
    and for one that no key leads to: a key may lead nowhere only where another gives the same alias, so that one
    dictionary serves several families.
    """
    bound: set[str] = set()
    asked = [
        (key, alias)
        for key, names in (rename or {}).items()
        for alias in ([names] if isinstance(names, str) else names)
    ]
    for key, alias in asked:
        for host in root._node.below():
            if _bind_at(root, host, key, alias):
                bound.add(alias)
    for key, alias in asked:
        if alias not in bound:
            raise ValueError(
                f"rename: {_name(key)!r}, to be called {alias!r}, leads to no module of this model{_hint(root, key)}"
            )


def _bind_at(root: "Envoy", host: Node, key: str | type, alias: str) -> bool:
    found = [*_named(host, key)]
    if not found:
        return False
    if len(found) > 1:
        paths = ", ".join(path for path, _ in found)
        raise ValueError(f"rename: {_name(key)!r} leads from {_where(host)} to several modules ({paths}); name one")
    path = found[0][0]
    prefix, _, name = alias.rpartition(".")
    if prefix:
        if not path.startswith(f"{prefix}."):
            raise ValueError(
                f"rename: {alias!r} for {path!r} has to begin as the path does: the last name is what is new"
            )
        [(_, host)] = [*_named(host, prefix)]
        path = path.removeprefix(f"{prefix}.")
    if path not in (name, host.aliases.get(name)):
        if not _is_native_name(host, name, found[0][1]):
            _check(root, host, name, path)
        host.aliases[name] = path
    return True


def _is_native_name(host: Node, name: str, node: Node) -> bool:
    """Whether a module has an alias as its native name already: "blocks" for "transformer.h"."""
    native = host.natives.get(name)
    return native is not None and (native.path, native.entry) == (node.path, node.entry)


def _named(host: Node, key: str | type) -> Iterator[tuple[str, Node]]:
    """What a key leads to from a node, with the path from there."""
    if isinstance(key, type):
        yield from ((name, child) for name, child in host.children.items() if child.entry.kind == key.__name__)
        return
    found = [("", host)]
    for part in key.lstrip(".").split("."):
        found = [(join(path, name), node) for path, one in found for name, node in _step(one, part)]
    yield from found


def _step(node: Node, part: str) -> Iterator[tuple[str, Node]]:
    if part == "*":
        yield from node.children.items()
    elif part.isdigit() and node.item is not None and int(part) < node.n_items:
        yield part, node.item
    else:
        for group in (node.children, node.natives, node.hooks):
            if part in group:
                yield part, group[part]


def _check(root: "Envoy", host: Node, name: str, path: str) -> None:
    kind = type(root)
    if not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"rename: {name!r} for {path!r} is no name that an attribute can have")
    if name in host.aliases:
        hidden = f"is the alias of {host.aliases[name]!r} there already"
    elif name in {*host.children, *host.natives, *host.hooks, *host.parameters}:
        hidden = "is a module, hook point or parameter there already"
    elif hasattr(kind, name) or (host is root._node and name in vars(root)):
        hidden = "is what every module answers to"
    else:
        return
    raise ValueError(f"rename: {name!r} for {path!r} {hidden} ({_where(host)}); choose another alias")


def _hint(root: "Envoy", key: str | type) -> str:
    paths = [path for node in root._node.below() if (path := node.path.removesuffix(".{i}"))]
    near = nearest(_name(key), [*paths, *(path.rpartition(".")[2] for path in paths)])
    return f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""


def _name(key: str | type) -> str:
    return key if isinstance(key, str) else key.__name__


def _where(host: Node) -> str:
    return host.path or "the model"
