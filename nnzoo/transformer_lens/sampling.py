"""How TransformerLens draws a token: the same numbers from the same generator."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sample_logits(
    final_logits: Float[Tensor, "batch d_vocab"],
    top_k: int | None = None,
    top_p: float | int | None = None,
    temperature: float | int = 1.0,
    freq_penalty: float | int = 0.0,
    repetition_penalty: float | int = 1.0,
    tokens: Int[Tensor, "batch pos"] | None = None,
) -> Int[Tensor, "batch"]:
    """A token for each row, drawn from torch's global generator; the most likely one at temperature 0.

    `freq_penalty` is taken off a logit for each time its token stands in `tokens`; a `repetition_penalty` above 1 makes
    what stands there at all less likely. `top_k` tokens, or as few as reach the probability `top_p`, may be drawn.

    >>> sample_logits(torch.tensor([[0.0, 2.0, 1.0]]), temperature=0.0)
    tensor([1])
    """
    if repetition_penalty != 1.0 and tokens is not None:
        final_logits = _less_repeated(final_logits, tokens, repetition_penalty)
    if temperature == 0.0:
        return final_logits.argmax(dim=-1)
    logits = final_logits / temperature
    if freq_penalty > 0:
        if tokens is None:
            raise AssertionError("a frequency penalty counts tokens: pass tokens=")
        logits = logits - freq_penalty * torch.stack([row.bincount(minlength=logits.shape[-1]) for row in tokens])
    logits = _narrowed(logits, top_k, top_p).float()
    return torch.distributions.Categorical(logits=logits, validate_args=False).sample()


def _less_repeated(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    there = torch.zeros_like(logits, dtype=torch.bool).scatter(1, tokens, True)
    return torch.where(there, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _narrowed(logits: Tensor, top_k: int | None, top_p: float | int | None) -> Tensor:
    if top_k is not None:
        if top_k <= 0:
            raise AssertionError(f"top_k is a number of tokens above 0, not {top_k}")
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        return logits.masked_fill(logits < least, -torch.inf)
    if top_p is None:
        return logits
    if not 0 < top_p <= 1:
        raise AssertionError(f"top_p is a probability above 0, not {top_p}")
    ordered, places = logits.sort(descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
    before[:, 0] = 0
    return logits.masked_fill((before > top_p).scatter(-1, places, before > top_p), -torch.inf)
