"""Modules and parameters by Hugging Face's names, as an `nn.Module` gives them."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from nnzoo.envoys.attached import Attached
from nnzoo.envoys.names import join


class WeightMethods:
    """What every module of the tree knows of itself and all below; a mixin of Envoy.

    The weights of a model that was not dispatched yet are read when a parameter is first asked for.
    """

    _root: Any
    _path: str
    _node: Any
    _layer: int | None

    def _children(self) -> dict[str, Any]:
        raise NotImplementedError

    # --- modules -------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Any]]:
        """The modules directly below, with their names."""
        yield from self._children().items()

    def children(self) -> Iterator[Any]:
        """The modules directly below."""
        yield from self._children().values()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """The module and all below with their paths from here, in transformers' order; each is an envoy.

        >>> from nnzoo import LanguageModel
        >>> [name for name, _ in LanguageModel("nnzoo/tiny-gpt2").named_modules()][:4]
        ['', 'transformer', 'transformer.wte', 'transformer.wpe']
        """
        yield prefix, self
        for name, child in self._children().items():
            yield from child.named_modules(join(prefix, name))

    def modules(self, include_fn: Callable[[Any], bool] | None = None) -> Iterator[Any]:
        """The module and all below, in transformers' order; those that `include_fn` accepts, if it is given."""
        for _, module in self.named_modules():
            if include_fn is None or include_fn(module):
                yield module

    # --- parameters ----------------------------------------------------------------------------------------------

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters with Hugging Face's names, from here; those that are tied once, unless duplicates are asked for.

        >>> from nnzoo import LanguageModel
        >>> [name for name, _ in LanguageModel("nnzoo/tiny-llama").model.layers[0].mlp.named_parameters()]
        ['gate_proj.weight', 'up_proj.weight', 'down_proj.weight']
        """
        given: set[int] = set()
        for path, module in self.named_modules(prefix) if recurse else [(prefix, self)]:
            for leaf, parameter in _own_parameters(module):
                if not remove_duplicate or id(parameter) not in given:
                    given.add(id(parameter))
                    yield join(path, leaf), parameter

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Parameters, those that are tied once: what an optimiser takes."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def get_parameter(self, name: str) -> nn.Parameter:
        """The parameter of a dotted name. Raises AttributeError, with the nearest names, where there is none."""
        found = self.get(name)  # type: ignore[attr-defined]  # Envoy has it
        if not isinstance(found, nn.Parameter):
            raise AttributeError(f"{join(self._path, name)} is a module, not a parameter")
        return found

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold; what is tied counts once."""
        embeddings = {
            id(parameter)
            for module in self.modules()
            if exclude_embeddings and _is_embedding(module)
            for _, parameter in _own_parameters(module)
        }
        counted = (p for p in self.parameters() if id(p) not in embeddings)
        return sum(p.numel() for p in counted if p.requires_grad or not only_trainable)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Switch the gradients of all parameters on or off; gives the module itself."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the parameters' gradients (or, without `set_to_none`, fill them with zeros)."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad = None if set_to_none else torch.zeros_like(parameter.grad)

    # --- states --------------------------------------------------------------------------------------------------

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> "OrderedDict[str, Tensor]":
        """The parameters by Hugging Face's names, a tied head among them: the tensors themselves, not copies.

        >>> from nnzoo import LanguageModel
        >>> list(LanguageModel("nnzoo/tiny-gpt2").state_dict())[-1]
        'lm_head.weight'
        """
        state: OrderedDict[str, Tensor] = OrderedDict(self.named_parameters(remove_duplicate=False))
        for path, module in self.named_modules():
            if isinstance(module, Attached):
                state.update(module._module.state_dict(prefix=f"{path}.", keep_vars=True))
        return OrderedDict((prefix + name, value if keep_vars else value.detach()) for name, value in state.items())

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> _IncompatibleKeys:
        """Copy tensors into the parameters of the same names; gives the names that were missing and unexpected.

        A tied head may be left out, and where it is given it is the embedding. Raises RuntimeError that names every
        tensor of another shape, and, if `strict`, every name that does not fit; nothing is copied then.
        """
        ours = self.state_dict(keep_vars=True)
        missing = [
            name for name, value in ours.items() if name not in state_dict and not _tied(value, ours, state_dict)
        ]
        unexpected = [name for name in state_dict if name not in ours]
        common = {name: value for name, value in state_dict.items() if name in ours}
        complaints = {
            "missing": missing if strict else [],
            "not known": unexpected if strict else [],
            "of another shape": [
                f"{name} is {list(value.shape)}, here {list(ours[name].shape)}"
                for name, value in common.items()
                if value.shape != ours[name].shape
            ],
            "different, though tied here": _torn(common, ours),
        }
        found = [f"{what}: {', '.join(names)}" for what, names in complaints.items() if names]
        if found:
            raise RuntimeError(f"the tensors are not those of {self._path or 'the model'}. {'; '.join(found)}")
        with torch.no_grad():
            for name, value in common.items():
                ours[name].copy_(value)
        return _IncompatibleKeys(missing, unexpected)


def _own_parameters(module: Any) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(module, Attached):
        yield from module._module.named_parameters(recurse=False, remove_duplicate=False)
        return
    for leaf, name in module._node.parameters.items():
        yield leaf, module._root._model.get_parameter(name.format(i=module._layer))


def _is_embedding(module: Any) -> bool:
    if isinstance(module, Attached):
        return isinstance(module._module, nn.Embedding)
    return module._node.entry.kind == "Embedding"


def _tied(value: Tensor, ours: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    """Whether a parameter is there by another of its names."""
    return any(other is value and name in given for name, other in ours.items())


def _torn(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Names of one parameter for which different tensors were given."""
    first: dict[int, str] = {}
    torn = []
    for name, value in given.items():
        other = first.setdefault(id(ours[name]), name)
        if value.shape == given[other].shape and not torch.equal(value, given[other]):
            torn.append(f"{other} and {name}")
    return torn
