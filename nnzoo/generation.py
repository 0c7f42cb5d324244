"""Generation: one token after the other, with a KV cache.

Greedy decoding gives token for token what transformers' `generate(do_sample=False)` gives, batches padded on the left
included.
"""

from collections.abc import Collection

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.kv_cache import KVCache


@torch.no_grad()
def generate(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Bool[Tensor, "batch pos"] | None = None,
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int] = (),
    pad_token_id: int = 0,
) -> Int[Tensor, "batch total"]:
    """The prompt's ids followed by at most `max_new_tokens` greedy ones.

    A row that has given one of `eos_token_ids` goes on with `pad_token_id`; when all have, generation ends.
    Raises ContextLengthError where prompt and new tokens do not fit the model's context.

    >>> from nnzoo.weights import load
    >>> model = load("nnzoo/tiny-gpt2")
    >>> generate(model, model.to_tokens("The capital of France is"), max_new_tokens=2).shape[0]
    1
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is at least 1, not {max_new_tokens}")
    cache, generated, new, mask = model.new_cache(), [tokens], tokens, attention_mask
    going = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    stops = torch.tensor(sorted(eos_token_ids), dtype=torch.long, device=tokens.device)
    for _ in range(max_new_tokens):
        new = next_token(model, new, mask, cache)
        new = torch.where(going, new, pad_token_id)[:, None]
        mask = None  # what was generated is no padding
        generated.append(new)
        going = going & ~torch.isin(new[:, 0], stops)
        if len(stops) and not going.any():
            break
    return torch.cat(generated, dim=1)


def next_token(model: HookedModel, tokens: Tensor, mask: Tensor | None, cache: KVCache) -> Int[Tensor, "batch"]:
    """The most likely token after the last of each row; only that position is unembedded."""
    x, span = model.begin(tokens, mask, cache)
    for block in model.blocks:
        x = block(x, span)
    return model.finish(x[:, -1:])[:, -1].argmax(dim=-1)
