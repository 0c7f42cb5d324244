"""What transformers computes on a checkpoint: the other side of `nnzoo verify`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from nnzoo.debugging.places import Reference, observe


@torch.no_grad()
def reference(
    folder: Path,
    paths: Collection[str],
    tokens: Int[Tensor, "batch pos"],
    *,
    dtype: torch.dtype,
    max_new_tokens: int,
) -> Reference:
    """Inputs and outputs of transformers' modules at `paths`, and greedy ids after the prompt, on the tokens' device.

    Attention runs in PyTorch's fused kernel (sdpa). That has no patterns, so they come from a second pass with the
    same weights in the eager implementation.
    """
    model = _load(folder, dtype, tokens.device)
    found, eager = Reference(), Reference()
    observe(model, paths, tokens, found)
    if max_new_tokens:
        model.generation_config.max_new_tokens = max_new_tokens
        found.generated = model.generate(tokens, attention_mask=torch.ones_like(tokens))[:, tokens.shape[1] :]
    model.set_attn_implementation("eager")
    observe(model, [path for path in paths if path.endswith("attn")], tokens, eager)
    found.values.update({place: value for place, value in eager.values.items() if place[1] == "output[1]"})
    return found


def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # its advice is for other uses
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(device)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # no stop token: all the way
    return model.eval()
