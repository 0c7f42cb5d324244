"""A module's output that is a tuple: elements are read and set, and the idioms of bare tensors say what to do."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from nnzoo.envoys.envoy import Envoy


class Outputs(tuple):
    """A module's output that is a tuple; setting an element sets the value that the model goes on with."""

    _envoy: "Envoy"

    def __new__(cls, envoy: "Envoy", values: tuple[Tensor, ...]) -> "Outputs":
        outputs = super().__new__(cls, values)
        outputs._envoy = envoy
        return outputs

    @property
    def last_hidden_state(self) -> Tensor:
        """The first value, by the name that Hugging Face's base models give it."""
        if self._envoy._entry("output").record != "base":
            raise AttributeError(f"{self._envoy._path}.output has no last_hidden_state; its value is .output[0]")
        return self[0]

    @last_hidden_state.setter
    def last_hidden_state(self, new: Tensor) -> None:
        _ = self.last_hidden_state
        self[0] = new

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            self._check_is_there(index, len(self))
        elif index == "last_hidden_state":
            return self.last_hidden_state
        elif not isinstance(index, slice):
            raise self._no_tensor()
        return tuple.__getitem__(self, index)

    def __setitem__(self, index: Any, new: Any) -> None:
        if index == "last_hidden_state":
            self.last_hidden_state = new
            return
        if not isinstance(index, int):
            raise self._no_tensor()
        values = self._envoy._values()
        self._check_is_there(index, len(values))
        self._envoy._write(values[index], new)

    def _check_is_there(self, index: int, n_values: int) -> None:
        if not -n_values <= index < n_values:
            raise IndexError(f"{self._envoy._path}.output is a tuple of {n_values}: there is no .output[{index}]")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(f"{self._envoy._path}.output has no {name!r}; its values are .output[0] and so on")
        raise self._no_tensor()

    def __add__(self, other: Any) -> Any:
        return super().__add__(other) if isinstance(other, tuple) else self._arithmetic(other)

    def _arithmetic(self, other: Any = None) -> Any:
        raise self._no_tensor()

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __matmul__ = _arithmetic

    def _no_tensor(self) -> TypeError:
        switch = (
            '. For bare tensors as newer transformers give them: LanguageModel(..., block_output="tensor")'
            if self._envoy._node.entry.record == "block"
            else ""
        )
        return TypeError(f"{self._envoy._path}.output is a tuple here, and its tensor is .output[0]{switch}")

    def save(self) -> "Outputs":
        """Keep every value."""
        for value in self:
            value.save()
        return self
