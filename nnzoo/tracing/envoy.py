"""Hugging Face's module paths: `model.transformer.h[5].attn.output` finds its hook points and reads or writes them.

The tables of `weights/paths.py` say which hook point a path's input and output are; here they become attributes.
"""

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from einops import parse_shape, rearrange
from torch import Tensor

from nnzoo.tracing.lazy import LazyTensor
from nnzoo.weights.paths import ModulePath, Value

if TYPE_CHECKING:
    from nnzoo.language_model import LanguageModel


# what nnsight offers at a model or module, and nnzoo does not: said so, instead of "no such module"
NOT_YET = {"clear_edits", "edit", "named_modules", "next", "rename", "scan", "session", "skip", "source"}


class Envoy:
    """A module of the model by its Hugging Face path: its values inside a trace, its children as attributes."""

    def __init__(self, root: "LanguageModel", path: str) -> None:
        self._root = root
        self._path = path

    # --- values --------------------------------------------------------------------------------------------------

    @property
    def output(self) -> Any:
        """What the module gives in the running trace: a tensor, or a tuple of tensors."""
        entry = self._entry("output")
        if isinstance(entry.output, Value):
            value = self._read(entry.output)
            if entry.record == "base":
                return Outputs(self, (value,))
            return Outputs(self, (value,)) if self._is_tuple(entry) else value
        return Outputs(self, tuple(self._read(value) for value in entry.output))

    @output.setter
    def output(self, new: Any) -> None:
        entry = self._entry("output")
        values = entry.output if isinstance(entry.output, tuple) else (entry.output,)
        if isinstance(new, Tensor):
            if isinstance(entry.output, tuple):
                raise TypeError(f"{self._path}.output is a tuple of {len(values)}: set .output[0], or give a tuple")
            new = (new,)
        if not isinstance(new, (tuple, list)):
            raise TypeError(f"{self._path}.output takes a tensor, not {new!r:.40}; to fill it: .output[...][:] = value")
        if len(new) != len(values):
            raise ValueError(f"{self._path}.output is a tuple of {len(values)}, but got {len(new)} values")
        for value, one in zip(values, new, strict=True):
            self._write(value, one)

    @property
    def input(self) -> LazyTensor:
        """The module's first argument in the running trace."""
        return self._read(self._entry("input").input)

    @input.setter
    def input(self, new: Tensor) -> None:
        self._write(self._entry("input").input, new)

    @property
    def inputs(self) -> tuple[tuple[LazyTensor, ...], dict[str, Any]]:
        """The module's arguments in the running trace: positional ones, and an empty dict of keywords."""
        return (self.input,), {}

    @inputs.setter
    def inputs(self, new: Any) -> None:
        match new:
            case ((value,), {}) if not new[1]:
                self.input = value
            case _:
                raise ValueError(f"{self._path}.inputs is ((value,), {{}}): one argument, and no keywords")

    def __setattr__(self, name: str, value: Any) -> None:
        if type(self) is Envoy and not name.startswith("_") and name not in ("output", "input", "inputs"):
            raise AttributeError(f"{self._path}.{name} cannot be set; what can is .output, .input and .inputs")
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module applied to a value of the body, outside of the pass: hooks and edits do not see it."""
        return self._root.apply(self._path, args, kwargs)

    def _read(self, value: Value) -> LazyTensor:
        lazy = self._root.tracer.recorder.read(value.hook.format(i=self._layer))
        return lazy if value.view is None else rearrange(lazy, value.view)

    def _write(self, value: Value, new: Tensor) -> None:
        recorder, hook = self._root.tracer.recorder, value.hook.format(i=self._layer)
        if value.view is not None:
            ours, theirs = (side.strip() for side in value.view.split("->"))
            new = rearrange(new, f"{theirs} -> {ours}", **parse_shape(recorder.read(hook), ours))
        recorder.put(hook, new)

    def _is_tuple(self, entry: ModulePath) -> bool:
        return entry.record == "block" and self._root.block_output == "tuple"

    def _entry(self, what: str) -> Any:
        entry = self._root.paths[self._template(self._path)]
        if getattr(entry, what) is None:
            raise AttributeError(f"{self._path} has no {what}: it is a list of modules; index it first")
        return entry

    # --- the tree ------------------------------------------------------------------------------------------------

    @property
    def _layer(self) -> int | None:
        numbers = [part for part in self._path.split(".") if part.isdigit()]
        return int(numbers[0]) if numbers else None

    @staticmethod
    def _template(path: str) -> str:
        return ".".join("{i}" if part.isdigit() else part for part in path.split("."))

    def _children(self) -> list[str]:
        prefix = f"{self._path}." if self._path else ""
        template = self._template(prefix)
        rest = (path.removeprefix(template) for path in self._root.paths if path.startswith(template) and path)
        return list(dict.fromkeys(one.split(".")[0] for one in rest))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        path = f"{self._path}.{name}" if self._path else name
        if self._template(path) in self._root.paths:
            return Envoy(self._root, path)
        if path in self._root.parameter_names:
            return self._root._model.get_parameter(self._root.parameter_names[path])
        if name in NOT_YET:
            raise AttributeError(f".{name} is not implemented yet; traces of one prompt and greedy generate() are")
        near = difflib.get_close_matches(name, self._children(), n=3, cutoff=0.4)
        has = f"it has {', '.join(self._children())}" if self._children() else "it has no modules of its own"
        hint = f"did you mean {' or '.join(near)}?" if near else has
        raise AttributeError(f"{self._path or 'the model'} has no module {name!r}; {hint}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(child for child in self._children() if child != "{i}")]

    def __len__(self) -> int:
        if self._root.paths[self._template(self._path)].kind != "ModuleList":
            raise TypeError(f"{self._path or 'the model'} is one module, not a list of them")
        return self._root.config.n_layers

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: int | slice) -> Any:
        try:
            numbers = range(len(self))[index]
        except IndexError:
            raise IndexError(f"{self._path} has {len(self)} blocks (0 to {len(self) - 1}), not {index}") from None
        if isinstance(numbers, range):
            return [Envoy(self._root, f"{self._path}.{number}") for number in numbers]
        return Envoy(self._root, f"{self._path}.{numbers}")

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    def __repr__(self) -> str:
        return f"<{self._path or 'model'}: {self._root.paths[self._template(self._path)].kind}>"


class Outputs(tuple):
    """A module's output that is a tuple; setting an element sets the value that the model goes on with."""

    _envoy: Envoy

    def __new__(cls, envoy: Envoy, values: tuple[LazyTensor, ...]) -> "Outputs":
        outputs = super().__new__(cls, values)
        outputs._envoy = envoy
        return outputs

    @property
    def last_hidden_state(self) -> LazyTensor:
        """The first value, by the name that Hugging Face's base models give it."""
        if self._envoy._entry("output").record != "base":
            raise AttributeError(f"{self._envoy._path}.output has no last_hidden_state; its value is .output[0]")
        return self[0]

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, (int, slice)):
            raise self._no_tensor()
        return super().__getitem__(index)

    def __setitem__(self, index: Any, new: Any) -> None:
        if not isinstance(index, int):
            raise self._no_tensor()
        values = self._envoy._entry("output").output
        values = values if isinstance(values, tuple) else (values,)
        self._envoy._write(values[index], new)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(f"{self._envoy._path}.output has no {name!r}")
        raise self._no_tensor()

    def __add__(self, other: Any) -> Any:
        return super().__add__(other) if isinstance(other, tuple) else self._arithmetic(other)

    def _arithmetic(self, other: Any = None) -> Any:
        raise self._no_tensor()

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __matmul__ = _arithmetic

    def _no_tensor(self) -> TypeError:
        return TypeError(
            f"{self._envoy._path}.output is a tuple here, and its tensor is .output[0]. For bare tensors as newer "
            'transformers give them: LanguageModel(..., block_output="tensor")'
        )

    def save(self) -> "Outputs":
        """Keep every value."""
        for value in self:
            value.save()
        return self
