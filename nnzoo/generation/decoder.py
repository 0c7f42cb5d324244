"""A decoder: chooses tokens for the rows of one batch, a step at a time. It knows nothing of models."""

from copy import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnzoo.generation.options import Options
from nnzoo.generation.processors import ends_of, processors_of, stop_check_of
from nnzoo.generation.randomness import copied, seeded


class Decoder:
    """Chooses tokens for the rows of one batch of prompts.

    Give the model `tokens` and `attention_mask` (the prompts, each `num_return_sequences` times), then each step's
    logits at the last position to `choose`, and what comes back to the model, until `done`. Sampling draws from
    `generator`, else from one of its own where the options have a seed, else from torch's global one.
    `tokenizer` is needed for stop strings only.

    >>> options = Options(max_new_tokens=2, eos_token_id=(1,))
    >>> decoder = Decoder(options, torch.tensor([[3, 4], [5, 6]]))
    >>> logits = torch.eye(8)[[1, 7]]  # the first row ends at once
    >>> while not decoder.done:
    ...     new = decoder.choose(logits)
    >>> decoder.ids
    tensor([[3, 4, 1, 1],
            [5, 6, 7, 7]])
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch pos"] | None

    def __init__(
        self,
        options: Options,
        tokens: Int[Tensor, "prompt pos"],
        attention_mask: Bool[Tensor, "prompt pos"] | None = None,
        *,
        tokenizer: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        times = options.num_return_sequences
        if times > 1:
            tokens = tokens.repeat_interleave(times, dim=0)
            attention_mask = None if attention_mask is None else attention_mask.repeat_interleave(times, dim=0)
        self.options, self.tokens, self.attention_mask = options, tokens, attention_mask
        self.steps = 0  # tokens chosen so far, in each row
        self.done = False  # all rows have ended, or have max_new_tokens
        if generator is None and options.seed is not None:
            generator = seeded(options.seed, tokens.device)
        self._generator = generator
        self._processors = processors_of(options, tokens, attention_mask)
        self._stops = stop_check_of(options, tokenizer)
        self._ends = ends_of(options, tokens)
        self._ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)  # of each row
        self._chosen = [tokens]  # what `ids` is put together from
        self.stream: Any = None  # a nnzoo.generation.Stream, which hears of each step

    @property
    def ids(self) -> Int[Tensor, "batch total"]:
        """The prompts and what was chosen."""
        if len(self._chosen) > 1:
            self._chosen = [torch.cat(self._chosen, dim=1)]
        return self._chosen[0]

    @property
    def generator(self) -> torch.Generator | None:
        """What tokens are drawn from; None: torch's global generator, or nothing is drawn."""
        return self._generator

    @property
    def may_end_early(self) -> bool:
        """Whether the text may end before max_new_tokens."""
        least = self.options.min_new_tokens >= self.options.max_new_tokens
        return self._stops is not None or (self._ends is not None and not least)

    def choose(self, logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, "batch"]:
        """The next token of each row, by the logits that follow the row's last; rows that have ended give padding.

        When all is `done`, padding is all that comes, and `ids` stays as it is.
        """
        if self.done:
            return torch.full_like(self.tokens[:, 0], self.options.padding)
        new = self._pick(logits.detach())
        if self._ends is not None:
            new = new.masked_fill(self._ended, self.options.padding)
        self._chosen.append(new[:, None])
        self.steps += 1
        self._end_rows(new)
        if self.stream is not None:
            self.stream.tell(self)
        return new

    def copy(self) -> "Decoder":
        """A decoder that stands where this one stands, and goes on the same way: with the same random numbers.

        Raises ValueError where tokens are drawn from torch's global generator, which nobody can put back.
        """
        if self.options.do_sample and self._generator is None:
            raise ValueError(
                "this decoder draws from torch's global generator, and a copy would draw other numbers: "
                "make it with a seed, or with generator=fork(device)"
            )
        other = copy(self)
        other._chosen = list(self._chosen)  # the tensors in it are never written to
        other._generator = None if self._generator is None else copied(self._generator)
        return other

    def _pick(self, logits: Tensor) -> Int[Tensor, "batch"]:
        scores = logits.float()  # as transformers does: what is equal in float32 is a tie
        for process in self._processors:
            scores = process(self.ids, scores)
        if not self.options.do_sample:
            return scores.argmax(dim=-1)
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1, generator=self._generator)[:, 0]

    def _end_rows(self, new: Tensor) -> None:
        if self._ends is not None:
            self._ended = self._ended | (new[:, None] == self._ends).any(dim=-1)
        if self._stops is not None:
            self._ended = self._ended | self._stops(self.ids, None)
        ended = self.steps >= self.options.max_new_tokens
        may_end = self._ends is not None or self._stops is not None
        self.done = ended or (may_end and bool(self._ended.all()))  # the one look at a value in a step
