"""What nnzoo has to know of a family to load and save its checkpoints; one table each, and the list of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.weights.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of checkpoints: its config.json and its tensors, by Hugging Face's names and ours."""

    name: str  # config.json's model_type
    architecture: str  # transformers' class
    model: type[HookedModel]
    config: type
    read: Callable[[Settings], Any]  # config.json -> our config
    write: Callable[[Any], dict[str, Any]]  # and back
    without_effect: Mapping[str, str]  # settings that leave the forward pass as it is: why
    fixed: Mapping[str, tuple[Any, str]]  # settings that may have one value only: which, and what to do else
    prefix: str  # of every tensor but the head's; left out in checkpoints of the base class
    tensors: Mapping[str, str]  # Hugging Face's name -> the parameter's, "{i}" for the layer
    no_weights: Mapping[str, str]  # tensors of old checkpoints that are no weights: why

    def parameters(self, n_layers: int) -> dict[str, str]:
        """Every tensor's name and the parameter's, for so many layers; biases that a config leaves out among them."""
        return dict(each_layer(self.tensors, n_layers))

    def ignored(self, n_layers: int) -> set[str]:
        """The names of tensors that are no weights."""
        return {name for name, _ in each_layer(self.no_weights, n_layers)}


def each_layer(table: Mapping[str, str], n_layers: int) -> list[tuple[str, str]]:
    """A table with its "{i}" lines repeated for every layer.

    >>> each_layer({"h.{i}.ln_1.weight": "blocks.{i}.ln1.weight", "wte.weight": "embed.weight"}, 2)
    [('h.0.ln_1.weight', 'blocks.0.ln1.weight'), ('h.1.ln_1.weight', 'blocks.1.ln1.weight'),
     ('wte.weight', 'embed.weight')]
    """
    return [
        (theirs.replace("{i}", str(i)), ours.replace("{i}", str(i)))
        for theirs, ours in table.items()
        for i in range(n_layers if "{i}" in theirs else 1)
    ]
