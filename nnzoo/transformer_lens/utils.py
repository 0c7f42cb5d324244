"""TransformerLens's `utils` (in version 3 `utilities` too): small functions that its users' code takes from there."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnzoo.analysis.circuits import FactoredMatrix as Factors
from nnzoo.architectures.activations import ACTIVATIONS, gelu_fast, solu
from nnzoo.architectures.names import get_act_name
from nnzoo.transformer_lens.datasets import keep_single_column, tokenize_and_concatenate
from nnzoo.transformer_lens.FactoredMatrix import FactoredMatrix
from nnzoo.transformer_lens.initialization import (
    calc_fan_in_and_fan_out,
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)
from nnzoo.transformer_lens.prompting import show_answer as test_prompt
from nnzoo.transformer_lens.refusals import Refused
from nnzoo.transformer_lens.sampling import sample_logits
from nnzoo.transformer_lens.slices import Slice, SliceInput
from nnzoo.transformer_lens.tensors import (
    filter_dict_by_prefix,
    get_attention_mask,
    get_corner,
    get_cumsum_along_dim,
    get_input_with_manually_prepended_bos,
    get_matrix_corner,
    get_offset_position_ids,
    get_tokens_with_bos_removed,
    is_lower_triangular,
    is_square,
    remove_batch_dim,
    repeat_along_head_dimension,
    simple_attn_linear,
    to_numpy,
    transpose,
)

USE_DEFAULT_VALUE = None
gelu_new = gelu_pytorch_tanh = ACTIVATIONS["gelu_new"]


def lm_cross_entropy_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Tensor | None = None,
    per_token: bool = False,
) -> Float[Tensor, "*loss"]:
    """The cross-entropy of each next token in nats: its mean, or [batch pos-1], 0 where one of the two is padding.

    >>> lm_cross_entropy_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))  # the logarithm of 4
    tensor(1.3863)
    """
    from nnzoo.architectures.hooked_model import HookedModel

    return HookedModel.loss(None, logits, tokens, attention_mask, per_token=per_token)  # type: ignore[arg-type]


def lm_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], per_token: bool = False
) -> Tensor:
    """The share of next tokens that had the largest logit, or [batch pos-1] whether each had."""
    right = logits.argmax(dim=-1)[:, :-1] == tokens[:, 1:]
    return right if per_token else right.sum() / right.numel()


def composition_scores(left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True) -> Tensor:
    """|left right| / (|left| |right|) in Frobenius norms, of every matrix on the left with every one on the right."""
    if left.rdim != right.ldim:
        raise AssertionError(f"{list(left.shape)} and {list(right.shape)} do not compose")
    if broadcast_dims:
        for _ in range(right.ndim - 2):
            left = left.unsqueeze(left.ndim - 2)
    L, R = Factors(left.A, left.B), Factors(right.A, right.B)
    return Factors(L.A, (L.B @ R.A) @ R.B).norm / (L.norm * R.norm)


def logits_to_df(logits: Float[Tensor, "d_vocab"], tokenizer: Any = None, top_k: int | None = None) -> Any:
    """A pandas data frame of the tokens of one position, the most likely first."""
    from nnzoo.analysis.drawing import needed

    log_probs = logits.float().log_softmax(dim=-1)
    order = log_probs.argsort(descending=True)[:top_k]
    texts = {} if tokenizer is None else {"token_string": [tokenizer.decode([i]) for i in order.tolist()]}
    numbers = {"logit": logits[order], "log_prob": log_probs[order], "probability": log_probs[order].exp()}
    columns = {name: value.detach().cpu().tolist() for name, value in numbers.items()}
    return needed("pandas", "logits_to_df").DataFrame({"token_index": order.tolist(), **texts, **columns})


def get_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def override_or_use_default_value(default_flag: Any, override: Any = None) -> Any:
    """The override, unless it is None."""
    return default_flag if override is None else override


@contextmanager
def LocallyOverridenDefaults(model: Any, **overrides: Any) -> Iterator[None]:
    """Other defaults of `prepend_bos` and `padding_side` inside the `with`."""
    if unknown := overrides.keys() - {"prepend_bos", "padding_side"}:
        raise AssertionError(f"there is no default of {', '.join(sorted(unknown))}")
    prepend, side = overrides.get("prepend_bos"), overrides.get("padding_side")
    before = model.cfg.default_prepend_bos, None if side is None else model.tokenizer.padding_side
    if prepend is not None:
        model.cfg.default_prepend_bos = prepend
    if side is not None:
        model.tokenizer.padding_side = side
    try:
        yield
    finally:
        model.cfg.default_prepend_bos = before[0]
        if side is not None:
            model.tokenizer.padding_side = before[1]


def get_nested_attr(obj: Any, attr_str: str) -> Any:
    """An attribute by its dotted path."""
    for name in attr_str.split("."):
        obj = getattr(obj, name)
    return obj


def set_nested_attr(obj: Any, attr_str: str, value: Any) -> None:
    """Set an attribute by its dotted path."""
    path, _, name = attr_str.rpartition(".")
    setattr(get_nested_attr(obj, path) if path else obj, name, value)


def is_library_available(name: str) -> bool:
    """Whether a package is installed."""
    return find_spec(name) is not None


download_file_from_hf = Refused("download_file_from_hf", "huggingface_hub's hf_hub_download fetches a file")
print_gpu_mem = Refused("print_gpu_mem", "torch.cuda.memory_summary() says how much a GPU holds")
check_structure = Refused("check_structure", "torch.testing.assert_close compares tensors")
get_dataset = Refused("get_dataset", "nnzoo downloads no data sets; Hugging Face's datasets does")
clear_huggingface_cache = Refused("clear_huggingface_cache", "`hf cache` clears it")
get_tokenizer_with_bos = Refused(
    "get_tokenizer_with_bos", "to_tokens puts the token in front, whatever a tokenizer does"
)

__all__ = [
    "USE_DEFAULT_VALUE",
    "LocallyOverridenDefaults",
    "Slice",
    "SliceInput",
    "calc_fan_in_and_fan_out",
    "check_structure",
    "clear_huggingface_cache",
    "composition_scores",
    "download_file_from_hf",
    "filter_dict_by_prefix",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_cumsum_along_dim",
    "get_dataset",
    "get_device",
    "get_input_with_manually_prepended_bos",
    "get_matrix_corner",
    "get_nested_attr",
    "get_offset_position_ids",
    "get_tokenizer_with_bos",
    "get_tokens_with_bos_removed",
    "init_kaiming_normal_",
    "init_kaiming_uniform_",
    "init_xavier_normal_",
    "init_xavier_uniform_",
    "is_library_available",
    "is_lower_triangular",
    "is_square",
    "keep_single_column",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "logits_to_df",
    "override_or_use_default_value",
    "print_gpu_mem",
    "remove_batch_dim",
    "repeat_along_head_dimension",
    "sample_logits",
    "set_nested_attr",
    "simple_attn_linear",
    "solu",
    "test_prompt",
    "to_numpy",
    "tokenize_and_concatenate",
    "transpose",
]  # fmt: skip
