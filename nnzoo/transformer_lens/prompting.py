"""`utils.test_prompt`: how likely a model finds an answer, printed."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def show_answer(
    prompt: str,
    answer: str | list[str],
    model: Any,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Print the rank, logit and probability of an answer after a prompt, and the most likely tokens.

    An answer of several tokens is gone through token by token; of several answers, each one's first token is looked at.
    A space is put in front of answers that have none, unless told otherwise.

    >>> from nnzoo.transformer_lens import HookedTransformer
    >>> model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
    >>> show_answer("The capital of France is", "Paris", model, print_details=False)
    Ranks of the answer tokens: [(' Paris', 0)]
    """
    answers = [answer] if isinstance(answer, str) else list(answer)
    if prepend_space_to_answer:
        answers = [text if text.startswith(" ") else f" {text}" for text in answers]
    pieces = [model.to_tokens(text, prepend_bos=False)[0] for text in answers]
    pieces = pieces if len(answers) == 1 else [ids[:1] for ids in pieces]
    front = model.to_tokens(prompt, prepend_bos=prepend_bos)[0]
    tokens = torch.stack([torch.cat([front, ids]) for ids in pieces])
    if print_details:
        _say("Tokenized prompt:", model.to_str_tokens(front))
        _say("Tokenized answer:" if len(answers) == 1 else "Tokenized answers:", *map(model.to_str_tokens, pieces))
    logits = model(tokens)
    ranks = []
    for place in range(len(front), tokens.shape[1]):
        at, wanted = logits[:, place - 1], tokens[:, place]
        ranks.append([_performance(model, *row, print_details) for row in zip(at, wanted, strict=True)])
        if print_details:
            _say(*_best(model, at[0], top_k), sep="\n")
    _say("Ranks of the answer tokens:", [rank[0] for rank in ranks] if len(answers) == 1 else ranks)


show_answer.__test__ = False  # type: ignore[attr-defined]  # for pytest, where somebody imports it into a test


def _performance(model: Any, logits: Tensor, token: Tensor, print_details: bool) -> tuple[str, int]:
    """A token's text and rank."""
    text, rank = model.to_string(token), int((logits > logits[token]).sum())
    if print_details:
        prob = logits.softmax(dim=-1)[token]
        _say("Performance on answer token:")
        _say(f"Rank: {rank: <8} Logit: {logits[token]:5.2f} Prob: {prob:6.2%} Token: |{text}|")
    return text, rank


def _best(model: Any, logits: Tensor, top_k: int) -> list[str]:
    probs, places = logits.softmax(dim=-1).topk(min(top_k, len(logits)))
    return [
        f"Top {i}th token. Logit: {logits[place]:5.2f} Prob: {prob:6.2%} Token: |{model.to_string(place)}|"
        for i, (prob, place) in enumerate(zip(probs, places, strict=True))
    ]


def _say(*parts: Any, sep: str = " ") -> None:
    print(*parts, sep=sep)  # noqa: T201  it is what the function is for
