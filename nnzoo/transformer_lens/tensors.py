"""Small functions of tensors that TransformerLens's users take from its `utils`."""

from typing import Any

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor, a list, a tuple or a number as a numpy array; bfloat16, which numpy has not, as float32.

    >>> to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype
    dtype('float32')
    """
    if isinstance(tensor, Tensor):
        value = tensor.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(tensor, (np.ndarray, list, tuple, int, float, bool, str)):
        return np.array(tensor) if not isinstance(tensor, np.ndarray) else tensor
    raise ValueError(f"to_numpy takes tensors, arrays, lists and numbers, not {type(tensor).__name__}")


def get_corner(tensor: Any, n: int = 3) -> Any:
    """The first n along each axis."""
    return tensor[tuple(slice(n) for _ in range(tensor.ndim))]


def get_matrix_corner(matrix: Any, n: int = 3) -> Tensor:
    """The first n along each axis of a FactoredMatrix."""
    return get_corner(matrix).AB if n == 3 else matrix[tuple(slice(n) for _ in range(matrix.ndim))].AB


def remove_batch_dim(tensor: Float[Tensor, "batch ..."]) -> Float[Tensor, "..."]:
    """Without the first axis, where it has size 1; else as it is.

    >>> remove_batch_dim(torch.zeros(1, 3)).shape, remove_batch_dim(torch.zeros(2, 3)).shape
    (torch.Size([3]), torch.Size([2, 3]))
    """
    return tensor.squeeze(0)


def transpose(tensor: Float[Tensor, "... a b"]) -> Float[Tensor, "... b a"]:
    """With the last two axes swapped."""
    return tensor.transpose(-1, -2)


def is_square(x: Tensor) -> bool:
    """Whether this is a matrix with as many rows as columns."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Whether a square matrix has nothing above its diagonal."""
    return is_square(x) and x.equal(x.tril())


def get_offset_position_ids(
    past_kv_pos_offset: int, attention_mask: Int[Tensor, "batch offset_pos"]
) -> Int[Tensor, "batch pos"]:
    """Where each token stands, padding not counted (and itself at 0), from the offset on.

    >>> get_offset_position_ids(1, torch.tensor([[0, 1, 1, 1]]))
    tensor([[0, 1, 2]])
    """
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, past_kv_pos_offset:]


def get_cumsum_along_dim(tensor: Tensor, dim: int, reverse: bool = False) -> Tensor:
    """The sum of what stands up to each place of an axis, or from it on.

    >>> get_cumsum_along_dim(torch.tensor([1, 2, 3]), 0, reverse=True)
    tensor([6, 5, 3])
    """
    return tensor.flip(dim).cumsum(dim).flip(dim) if reverse else tensor.cumsum(dim)


def get_attention_mask(
    tokenizer: Any, tokens: Int[Tensor, "batch pos"], prepend_bos: bool, padding_side: str | None = None
) -> Int[Tensor, "batch pos"]:
    """1, and 0 where padding stands at the padded end of a row.

    Where text begins with the token that also pads, the last one of those in front is its beginning.
    """
    mask = torch.ones_like(tokens)
    if tokenizer is None:
        return mask
    left = (padding_side or tokenizer.padding_side) == "left"
    padding = get_cumsum_along_dim(tokens != tokenizer.pad_token_id, -1, reverse=not left) == 0
    mask[padding] = 0
    if left and prepend_bos and tokenizer.bos_token_id == tokenizer.pad_token_id:
        mask[torch.arange(len(mask)), padding.sum(dim=-1) - 1] = 1
    return mask


def get_tokens_with_bos_removed(
    tokenizer: Any, tokens: Int[Tensor, "... pos"], padding_side: str | None = None
) -> Int[Tensor, "... shorter"]:
    """Rows without the token that begins a text; behind padding on the left it is looked for."""
    if tokenizer.bos_token_id is None:
        return tokens
    if (padding_side or tokenizer.padding_side) == "right":
        return tokens[..., 1:]
    bos = (tokens == tokenizer.bos_token_id).int().argmax(dim=-1)
    if tokenizer.bos_token_id == tokenizer.pad_token_id:
        bos = (get_cumsum_along_dim(tokens != tokenizer.pad_token_id, -1) == 0).sum(dim=-1) - 1
    others = torch.arange(tokens.shape[-1], device=tokens.device) != bos[..., None]
    return tokens[others].view(*tokens.shape[:-1], -1)


def get_input_with_manually_prepended_bos(bos_token: str | None, input: str | list[str]) -> str | list[str]:
    """Texts with the token that begins a text in front."""
    if bos_token is None:
        return input
    return bos_token + input if isinstance(input, str) else [bos_token + text for text in input]


def repeat_along_head_dimension(
    tensor: Float[Tensor, "batch pos d_model"], n_heads: int, clone_tensor: bool = True
) -> Float[Tensor, "batch pos head d_model"]:
    """The same for each head; memory of its own for each, unless told otherwise."""
    repeated = repeat(tensor, "batch pos d_model -> batch pos head d_model", head=n_heads)
    return repeated.clone() if clone_tensor else repeated


def filter_dict_by_prefix(dictionary: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What stands below a dotted name, by the rest of its name.

    >>> filter_dict_by_prefix({"a.b": 1, "ab.c": 2}, "a")
    {'b': 1}
    """
    front = prefix if prefix.endswith(".") else f"{prefix}."
    return {name[len(front) :]: value for name, value in dictionary.items() if name.startswith(front)}


def simple_attn_linear(
    input: Float[Tensor, "batch pos d_model"],
    w: Float[Tensor, "head d_model d_head"],
    b: Float[Tensor, "head d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Every head's projection of one input."""
    return torch.einsum("bpd,hde->bphe", input, w) + b
