"""Which modules a model has, by Hugging Face's paths and by the native model's, and where their values stand.

A node stands for a module in every layer at once: "transformer.h.{i}.attn". It is one and the same place under its
two names, so `model.blocks[3].attn` answers as `model.transformer.h[3].attn` does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.weights.config import family_of
from nnzoo.weights.paths import ModulePath, Value, modules_of, paths_of


@dataclass(eq=False, kw_only=True)
class Node:
    """A module, or a hook point, by one of its names."""

    path: str  # Hugging Face's, "{i}" for the layer; of a native module too
    entry: ModulePath  # where its values stand
    module: str | None = None  # the native module that it is, "blocks.{i}.attn"
    is_native: bool = False  # reached by the native model's names
    axes: str | None = None  # of a hook point: its declared shape
    children: dict[str, "Node"] = field(default_factory=dict)  # in transformers' order
    item: "Node | None" = None  # of a list: what stands for each of its modules
    n_items: int = 0
    natives: dict[str, "Node"] = field(default_factory=dict)  # of the root: the modules by the native model's names
    hooks: dict[str, "Node"] = field(default_factory=dict)  # in the order in which they fire
    parameters: dict[str, str] = field(default_factory=dict)  # "weight" -> "blocks.{i}.attn.qkv.weight"
    aliases: dict[str, str] = field(default_factory=dict)  # a name the user gave -> the path from here

    @property
    def is_hook(self) -> bool:
        return self.axes is not None

    def below(self) -> Iterator["Node"]:
        """The node and all modules under it, those by native names among them."""
        yield self
        for child in (*self.children.values(), *filter(None, [self.item]), *self.natives.values()):
            yield from child.below()


def build_tree(model: HookedModel, order: Mapping[str, int]) -> Node:
    """The root of a model's tree; `order` numbers its hook points as they fire."""
    modules = modules_of(model.config)
    theirs = {
        path: Node(path=path, entry=entry, module=modules.get(path)) for path, entry in paths_of(model.config).items()
    }
    ours = {
        node.module: Node(path=node.path, entry=node.entry, module=node.module, is_native=True)
        for node in theirs.values()
        if node.module
    }
    root = theirs[""]
    n_layers = model.config.n_layers
    _connect(theirs, n_layers)
    _connect({"": (top := Node(path="", entry=root.entry)), **ours}, n_layers)
    root.natives = top.children
    _add_hooks(model, theirs, ours, order)
    _add_parameters(model, theirs, ours)
    return root


def _connect(nodes: dict[str, Node], n_layers: int) -> None:
    for path, node in nodes.items():
        parent, _, name = path.rpartition(".")
        if name == "{i}":
            nodes[parent].item, nodes[parent].n_items = node, n_layers
        elif path:
            nodes[parent].children[name] = node


def _add_hooks(model: HookedModel, theirs: dict[str, Node], ours: dict[str, Node], order: Mapping[str, int]) -> None:
    owners = {node.module: node for node in theirs.values() if node.module is not None}
    for name in sorted(model.hook_points, key=lambda name: order[name]):
        hook = name.replace("blocks.0.", "blocks.{i}.", 1)
        owner, _, attribute = hook.rpartition(".")
        for node in filter(None, (owners.get(owner), ours.get(owner))):  # the other layers have no owner here
            value, axes = Value(hook), model.hook_points[name].axes
            path = f"{node.path}.{attribute}" if node.path else attribute
            entry = ModulePath("HookPoint", value, value)
            node.hooks[attribute] = Node(path=path, entry=entry, is_native=node.is_native, axes=axes)


def _add_parameters(model: HookedModel, theirs: dict[str, Node], ours: dict[str, Node]) -> None:
    there = dict(model.named_parameters(remove_duplicate=False))
    for their_name, our_name in family_of(model.config).tensors.items():
        if our_name.replace("{i}", "0") in there:
            for node in (theirs[their_name.rpartition(".")[0]], ours[our_name.rpartition(".")[0]]):
                node.parameters[our_name.rpartition(".")[2]] = our_name
