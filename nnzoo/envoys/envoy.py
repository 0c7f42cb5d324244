"""A module by its path: `model.transformer.h[5].attn.output` finds its hook points and reads or writes them.

The tables of `weights/paths.py` say which hook point a path's input and output are; here they become attributes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nnzoo.architectures.html import page
from nnzoo.envoys.attached import Attached
from nnzoo.envoys.calling import apply, native_module
from nnzoo.envoys.names import check_free, join, missing, no_such_assignment, part_of_the_model
from nnzoo.envoys.outputs import Outputs
from nnzoo.envoys.printing import sizes_of, tree_text
from nnzoo.envoys.tree import Node
from nnzoo.envoys.tree_html import tree_html
from nnzoo.envoys.weights import WeightMethods
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.places import View
from nnzoo.weights.paths import ModulePath, Value

if TYPE_CHECKING:
    from nnzoo.language_model import LanguageModel


class Envoy(WeightMethods):
    """A module of the model by its path: its values inside a trace, its children as attributes.

    What an `nn.Module` answers, it answers: `named_modules()`, `parameters()`, `state_dict()`, with Hugging Face's
    names. A module of your own that is assigned to it becomes its child: `model.transformer.h[3].mlp.sae = my_module`.
    """

    _root: "LanguageModel"
    _path: str
    _node: Node
    _layer: int | None

    def __init__(self, root: "LanguageModel", path: str, node: Node, layer: int | None = None) -> None:
        vars(self).update(_root=root, _path=path, _node=node, _layer=layer)

    # --- values --------------------------------------------------------------------------------------------------

    @property
    def output(self) -> Any:
        """What the module gives in the running trace: a tensor, or a tuple of tensors."""
        entry = self._entry("output")
        values = [self._read(value) for value in _values_of(entry)]
        return values[0] if self._is_bare(entry) else Outputs(self, tuple(values))

    @output.setter
    def output(self, new: Any) -> None:
        values = self._values()
        if isinstance(new, Tensor) and len(values) == 1:
            new = (new,)
        if isinstance(new, Tensor):
            raise TypeError(f"{self._path}.output is a tuple of {len(values)}: set .output[0], or give a tuple")
        if not isinstance(new, (tuple, list)):
            raise TypeError(f"{self._path}.output takes a tensor, not {new!r:.40}; to fill it: .output[...][:] = value")
        if len(new) != len(values):
            raise ValueError(f"{self._path}.output is a tuple of {len(values)}, but got {len(new)} values")
        for number, (value, one) in enumerate(zip(values, new, strict=True)):
            if one is not None or number == 0:  # transformers' attention gives None for a pattern it did not keep
                self._write(value, one)

    @property
    def input(self) -> LazyTensor:
        """The module's first argument in the running trace."""
        return self._read(self._entry("input").input)

    @input.setter
    def input(self, new: Tensor) -> None:
        self._write(self._entry("input").input, new)

    @property
    def inputs(self) -> tuple[tuple[LazyTensor, ...], dict[str, LazyTensor]]:
        """The module's first argument as transformers passes it: `((value,), {})`, or by keyword `((), {name: value})`.

        Masks, positions and caches are not among them: here a pass has them once, and no module of its own.
        """
        keyword = self._entry("input").keyword
        return ((), {keyword: self.input}) if keyword else ((self.input,), {})

    @inputs.setter
    def inputs(self, new: Any) -> None:
        keyword = self._entry("input").keyword
        match new:
            case (args, {**named}) if len(args) + len(named) == 1 and [*named] in ([], [keyword]):
                self.input = [*args, *named.values()][0]
            case _:
                form = f"((), {{{keyword!r}: value}}) or ((value,), {{}})" if keyword else "((value,), {})"
                raise ValueError(f"{self._path}.inputs is {form}: its one argument, and nothing else")

    def skip(self, value: Any) -> None:
        """Let `value` be the module's output, in its form: a tensor, or a tuple. What it would have given is left out.

        >>> from nnzoo import LanguageModel
        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> with model.trace("The keys to the cabinet"):
        ...     model.transformer.h[1].skip(model.transformer.h[1].input)
        ...     before, after = model.transformer.h[1].input, model.transformer.h[1].output[0]
        >>> bool((before == after).all())
        True
        """
        self.output = value

    def next(self, n: int = 1) -> "Envoy":
        """The module itself, which in this body speaks of a later step of the generation from here on.

        >>> from nnzoo import LanguageModel
        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> with model.generate("The capital of France is", max_new_tokens=2):
        ...     first, second = model.lm_head.output, model.lm_head.next().output
        >>> model.tokenizer.decode([first.argmax(), second.argmax()])
        ' Paris.'
        """
        tracer = self._root.tracer
        tracer.ahead[self._place] = tracer.ahead.get(self._place, 0) + n
        return self

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """The module applied to a value of the body, or to a real one, outside of the pass: no edit touches it.

        `hook=True` is for modules of your own, whose `.output` it lets you read afterwards.
        """
        return apply(self, args, kwargs, hook=hook)

    def _read(self, value: Value) -> LazyTensor:
        tracer = self._root.tracer
        lazy = tracer.read(value.hook.format(i=self._layer), ahead=self._ahead(tracer))
        return lazy if value.view is None else tracer.seen_as(lazy, value.view)

    def _write(self, value: Value, new: Tensor) -> None:
        tracer, hook = self._root.tracer, value.hook.format(i=self._layer)
        ahead = self._ahead(tracer)
        if value.view is not None:
            new = View(value.view, tracer.read(hook, ahead=ahead).shape).undone(new)
        tracer.put(hook, new, ahead=ahead)

    def _ahead(self, tracer: Any) -> int:
        """By how many steps `next()` has moved the module on."""
        return tracer.ahead.get(self._place, 0) if tracer.ahead else 0

    def _values(self) -> tuple[Value, ...]:
        return _values_of(self._entry("output"))

    def _is_bare(self, entry: ModulePath) -> bool:
        """Whether `.output` is a tensor, and no tuple of them."""
        record = entry.record
        return record in ("tensor", "logits") or (record == "block" and self._root.block_output == "tensor")

    def _entry(self, what: str) -> Any:
        entry: ModulePath = self._node.entry
        if getattr(entry, what) is None:
            raise AttributeError(f"{self._path} has no {what}")  # __getattr__ says it better
        return entry

    # --- the tree ------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The dotted path by which the module was reached: "transformer.h.3.attn"."""
        return self._path

    @property
    def device(self) -> torch.device:
        """Where the whole model is."""
        return self._root.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the whole model."""
        return self._root.dtype

    @property
    def _place(self) -> str:
        """The Hugging Face path of the module, by whatever name it was reached."""
        return self._node.path.replace("{i}", str(self._layer))

    def get(self, path: str) -> Any:
        """What stands at a dotted path from here: `model.get("transformer.h.3.attn")`, inside a trace its values too.

        >>> from nnzoo import LanguageModel
        >>> LanguageModel("nnzoo/tiny-gpt2").get("blocks.1.attn.hook_pattern").path
        'blocks.1.attn.hook_pattern'
        """
        found: Any = self
        for part in path.replace("[", ".").replace("]", "").split("."):
            found = found[int(part)] if part.removeprefix("-").isdigit() else getattr(found, part)
        return found

    get_submodule = get

    def _children(self) -> dict[str, Any]:
        """The modules directly below, by the names that lead to them; a list's are its numbers."""
        if self._node.item is not None:
            return {str(i): self[i] for i in range(len(self))}
        children = {name: self._child(name, node) for name, node in self._node.children.items()}
        return children | {name: Attached(self._root, join(self._path, name), m) for name, m in self._own().items()}

    def _own(self) -> dict[str, nn.Module]:
        """The modules that the user put directly below this one."""
        start = join(self._place, "")
        return {
            place.removeprefix(start): module
            for place, module in self._root._attached.items()
            if place.startswith(start) and "." not in place.removeprefix(start)
        }

    def _child(self, name: str, node: Node, layer: int | None = None) -> "Envoy":
        return Envoy(self._root, join(self._path, name), node, self._layer if layer is None else layer)

    def _find(self, name: str) -> Any:
        node = self._node
        if name in node.aliases:
            return self.get(node.aliases[name])
        for group in (node.children, node.natives, node.hooks):
            if name in group:
                return self._child(name, group[name])
        if name in node.parameters:
            parameter, recorder = node.parameters[name].format(i=self._layer), self._root.elsewhere
            if recorder is not None:
                return recorder.constant(self._root.skeleton.get_parameter(parameter))
            return self._root._model.get_parameter(parameter)
        if name.isdigit() and node.item is not None:
            return self[int(name)]
        module = self._root._attached.get(join(self._place, name))
        return None if module is None else Attached(self._root, join(self._path, name), module)

    def __getattr__(self, name: str) -> Any:
        if name == "_module":  # nnsight's name for what an envoy stands for
            return native_module(self)
        if name.startswith("_"):
            raise AttributeError(name)
        found = self._find(name)
        if found is None and name in (numbers := sizes_of(self)):
            return numbers[name]
        if found is None:
            raise missing(self, name)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
        elif isinstance(value, nn.Module):
            check_free(self, name)
            self._root._attached[join(self._place, name)] = value
        else:
            self._set_other(name, value)

    def _set_other(self, name: str, value: Any) -> None:
        if name not in self._node.parameters or value is not self._find(name):  # else it was edited in place: bias += 1
            raise no_such_assignment(self, name)

    def __delattr__(self, name: str) -> None:
        if self._root._attached.pop(join(self._place, name), None) is None:
            raise AttributeError(f"{join(self._path, name)} is no module that was attached, so it stays")

    def __dir__(self) -> list[str]:
        node = self._node
        return [*super().__dir__(), *node.children, *node.natives, *node.hooks, *node.parameters, *node.aliases,
                *self._own()]  # fmt: skip

    def _ipython_key_completions_(self) -> list[int]:
        return [] if self._node.item is None else list(range(len(self)))

    def __len__(self) -> int:
        if self._node.item is None:
            raise TypeError(f"{self._path or 'the model'} is one module, not a list of them")
        return self._node.n_items

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: int | slice | str) -> Any:
        if isinstance(index, str):
            return self.get(index)
        try:
            numbers = range(len(self))[index]
        except IndexError:
            raise IndexError(f"{self._path} has {len(self)} blocks (0 to {len(self) - 1}), not {index}") from None
        item = self._node.item
        assert item is not None, "len() has refused what is no list"
        if isinstance(numbers, range):
            return [self._child(str(number), item, number) for number in numbers]
        return self._child(str(numbers), item, numbers)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise part_of_the_model(self, f"[{index!r}]")

    def __delitem__(self, index: Any) -> None:
        raise part_of_the_model(self, f"[{index!r}]")

    def __iter__(self) -> Iterator["Envoy"]:
        return iter(self[:])

    def __contains__(self, other: object) -> bool:
        return any(other == child for child in self._children().values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Envoy) and other._root is self._root and other._place == self._place

    def __hash__(self) -> int:
        return hash((id(self._root), self._place))

    def __repr__(self) -> str:
        return tree_text(self)

    def _repr_html_(self) -> str:
        return tree_html(self)

    def to_html(self) -> str:
        """The tree as a notebook shows it, as one page that needs nothing else: no script, no network."""
        return page(self._path or self._root._checkpoint.name, tree_html(self))


def _values_of(entry: ModulePath) -> tuple[Value, ...]:
    output: Any = entry.output
    return output if isinstance(output, tuple) else (output,)
