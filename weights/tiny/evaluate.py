"""How well a tiny checkpoint does on what was held out: the figures of the model cards.

A model is here a function from token ids to logits, so that the same figures can be asked of any implementation.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from nnzoo.weights.tiny.corpus import TASKS, Prompt, held_out

Logits = Callable[[Tensor], Tensor]  # Int "batch pos" -> Float "batch pos d_vocab"
Patterns = Callable[[Tensor], Sequence[Tensor]]
Encode = Callable[[str], list[int]]


def measure(logits: Logits, encode: Encode, n: int = 500) -> dict[str, float]:
    """The figures of a model card, each between 0 and 1.

    For every task, over `n` held-out prompts, the share whose most likely next token, of the whole vocabulary, is a
    right one; then

    - `second_half`: the share of tokens predicted in the second half of repeated sequences of words. Its first token
      counts too, though nothing announces it, so that about 0.95 is the most there is.
    - `later_years`: the probability given to the years after the first one.

    >>> blank = lambda tokens: torch.eye(774)[tokens]  # always says the last token again
    >>> measure(blank, lambda text: list(text.encode()), n=2)["ioi"]
    0.0
    """
    prompts = {task: held_out(task, n) for task in TASKS}
    figures = {task: accuracy(logits, encode, prompts[task]) for task in TASKS}
    figures["second_half"] = second_half(logits, encode, prompts["induction"])
    figures["later_years"] = answer_probability(logits, encode, prompts["greater_than"])
    return figures


def accuracy(logits: Logits, encode: Encode, prompts: list[Prompt]) -> float:
    """The share of prompts whose most likely next token is one of the right answers."""
    hits = [_ids(encode, prompt.answers).eq(last.argmax()).any() for prompt, last in _last(logits, encode, prompts)]
    return torch.stack(hits).float().mean().item()


def answer_probability(logits: Logits, encode: Encode, prompts: list[Prompt]) -> float:
    """The mean probability of the right answers together."""
    mass = [last.softmax(-1)[_ids(encode, prompt.answers)].sum() for prompt, last in _last(logits, encode, prompts)]
    return torch.stack(mass).mean().item()


def second_half(logits: Logits, encode: Encode, prompts: list[Prompt]) -> float:
    """The share of the tokens of a sequence's second copy that the first copy lets the model predict."""
    hits = []
    for _, tokens in _batches(encode, prompts, lambda prompt: prompt.sentence):
        period = tokens.shape[1] // 2
        hits.append((logits(tokens)[:, period - 1 : -1].argmax(-1) == tokens[:, period:]).flatten())
    return torch.cat(hits).float().mean().item()


def induction_scores(patterns: Patterns, encode: Encode, n: int = 50) -> Tensor:
    """How far each head looks at what followed the same token last time: Float "layer head", 1 for always.

    `patterns` gives a batch of token ids' attention, one Float "batch head query key" for each layer. The mean is over
    the second halves of `n` held-out repeated sequences (Olsson et al. 2022, In-context learning and induction heads).
    """
    total, count = torch.zeros(()), 0
    for _, tokens in _batches(encode, held_out("induction", n), lambda prompt: prompt.sentence):
        period = tokens.shape[1] // 2
        queries = torch.arange(period, 2 * period)
        looks = torch.stack([layer[:, :, queries, queries - period + 1] for layer in patterns(tokens)])
        total = total + looks.sum(dim=(1, 3))
        count += tokens.shape[0] * period
    return total / count


def _last(logits: Logits, encode: Encode, prompts: list[Prompt]) -> Iterator[tuple[Prompt, Tensor]]:
    """Each prompt with the logits after its last token."""
    for batch, tokens in _batches(encode, prompts, lambda prompt: prompt.text):
        yield from zip(batch, logits(tokens)[:, -1], strict=True)


def _batches(
    encode: Encode, prompts: list[Prompt], text: Callable[[Prompt], str]
) -> Iterator[tuple[list[Prompt], Tensor]]:
    """The prompts in batches of equal length, so that nothing is padded."""
    by_length = defaultdict(list)
    for prompt in prompts:
        ids = encode(text(prompt))
        by_length[len(ids)].append((prompt, ids))
    for rows in by_length.values():
        yield [prompt for prompt, _ in rows], torch.tensor([ids for _, ids in rows])


def _ids(encode: Encode, answers: tuple[str, ...]) -> Tensor:
    return torch.tensor([encode(answer)[0] for answer in answers])
