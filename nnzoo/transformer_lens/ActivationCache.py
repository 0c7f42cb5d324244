"""ActivationCache by TransformerLens's constructor; what it computes is nnzoo's ActivationCache."""

from functools import wraps
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures import activation_cache
from nnzoo.transformer_lens.slices import positions_of


class ActivationCache(activation_cache.ActivationCache):
    """Activations by name: `cache["pattern", 0]`, `cache["blocks.0.attn.hook_pattern"]`, and what follows from them.

    `model` is a HookedTransformer; the cache computes with the native model beneath it.

    >>> from nnzoo.transformer_lens import HookedTransformer
    >>> model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
    >>> logits, cache = model.run_with_cache("The capital of France is")
    >>> cache["pattern", 0].shape, cache["resid_post", -1].shape
    (torch.Size([1, 4, 6, 6]), torch.Size([1, 6, 96]))
    """

    def __init__(self, cache_dict: dict[str, Tensor], model: Any, has_batch_dim: bool = True) -> None:
        super().__init__(cache_dict, getattr(model, "native", model), has_batch_dim)

    def to(self, device: torch.device | str, move_model: bool = False) -> "ActivationCache":
        """Move the values, in this cache itself; the model too, if asked."""
        super().to(device)
        if move_model:
            self.model.to(device)
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch PyTorch's autograd off or on, everywhere."""
        torch.set_grad_enabled(mode)

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "ActivationCache":
        """A cache of some of the prompts; a single number drops the batch axis."""
        cut = super().apply_slice_to_batch_dim(positions_of(batch_slice))
        return ActivationCache(cut.cache_dict, self.model, cut.has_batch_dim)


def _with_slices(name: str) -> Any:
    method = getattr(activation_cache.ActivationCache, name)

    @wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *map(positions_of, args), **{key: positions_of(value) for key, value in kwargs.items()})

    return called


for _name in (
    "accumulated_resid",
    "apply_ln_to_stack",
    "decompose_resid",
    "get_full_resid_decomposition",
    "get_neuron_results",
    "logit_attrs",
    "stack_head_results",
    "stack_neuron_results",
):
    setattr(ActivationCache, _name, _with_slices(_name))  # they take Slice objects too
