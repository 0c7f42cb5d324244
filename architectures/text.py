"""Between text and token ids; a mixin of HookedModel.

The tokenizer is whatever the model was given as `model.tokenizer`: a Hugging Face tokenizer, or anything that encodes
and decodes as one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

_INTEGERS = {getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}


class TextMethods:
    """What a HookedModel does with text."""

    config: Any
    device: Any
    _tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; a ValueError that says what to do where the model has none."""
        if self._tokenizer is None:
            raise ValueError("this model has no tokenizer: pass token ids, or set model.tokenizer")
        if not hasattr(self._tokenizer, "decode") and callable(self._tokenizer):
            self._tokenizer = self._tokenizer()  # a loader: tokenizers are slow to import, and not everybody uses text
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def to_tokens(self, text: str | list[str], *, prepend_bos: bool = False) -> Int[Tensor, "batch pos"]:
        """Ids of one text or several, padded on the left.

        No token is added unless asked: what the tokenizer itself adds (LLaMA's "<s>") is always there once.
        """
        return self._encode(text, prepend_bos)[0].to(self.device)

    def tokens_and_mask(
        self,
        input: str | list[str] | Tensor,
        attention_mask: Tensor | None = None,
        device: torch.device | None = None,
        prepend_bos: bool = False,
    ) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"] | None]:
        """Ids, and where they are not padding (None: nowhere), on a device: the model's, unless another is named."""
        device = self.device if device is None else device
        if not isinstance(input, Tensor):
            if attention_mask is not None:
                raise ValueError("text is padded here, and takes no attention_mask; pass token ids with one")
            input, attention_mask = self._encode(input, prepend_bos)
        tokens = input[None] if input.ndim == 1 else input
        check_tokens(tokens, self.config.d_vocab)
        if attention_mask is not None:
            attention_mask = attention_mask[None] if attention_mask.ndim == 1 else attention_mask
            if attention_mask.shape != tokens.shape:
                raise ValueError(f"attention_mask is {list(attention_mask.shape)}, the tokens {list(tokens.shape)}")
            attention_mask = attention_mask.to(device).bool()
        return tokens.to(device, torch.long), attention_mask

    def to_string(self, tokens: Int[Tensor, "*batch"] | list[int] | int) -> str | list[str]:
        """Text of ids: one string for one row (or one id), a list for a batch."""
        tokens = torch.as_tensor(tokens)
        if tokens.ndim == 2:
            return [self.tokenizer.decode(row) for row in tokens.tolist()]
        return self.tokenizer.decode(tokens.reshape(-1).tolist())

    def to_str_tokens(
        self, input: str | list[str] | Tensor, *, prepend_bos: bool = False
    ) -> list[str] | list[list[str]]:
        """Each token's own text: a list for one prompt, a list of lists for several."""
        if isinstance(input, Tensor):
            rows = [input.tolist()] if input.ndim == 1 else input.tolist()
        else:
            rows = self._rows(input, prepend_bos)
        texts = [[self.tokenizer.decode([token]) for token in row] for row in rows]
        return texts if isinstance(input, list) or len(texts) > 1 else texts[0]

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token; ValueError with its pieces where it is more."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            pieces = [self.tokenizer.decode([i]) for i in ids]
            raise ValueError(f"{text!r} is {len(ids)} tokens, not one: {pieces}. A leading space may be missing.")
        return ids[0]

    def to_single_str_token(self, token: int) -> str:
        """The text of one id."""
        return self.tokenizer.decode([token])

    def _encode(self, text: str | list[str], prepend_bos: bool = False) -> tuple[Tensor, Tensor | None]:
        rows = [torch.tensor(row, dtype=torch.long) for row in self._rows(text, prepend_bos)]
        return pad_left(rows, pad_id_of(self.tokenizer, rows))

    def _rows(self, text: str | list[str], prepend_bos: bool) -> list[list[int]]:
        rows = [self.tokenizer.encode(one) for one in ([text] if isinstance(text, str) else text)]
        if not prepend_bos:
            return rows
        bos = self.tokenizer.bos_token_id
        return [row if row[:1] == [bos] else [bos, *row] for row in rows]


def pad_id_of(tokenizer: Any, rows: Sequence[Sequence[int] | Tensor]) -> int:
    """What a tokenizer pads rows with, if any is shorter: its padding, the end of a text, or 0; masked, any id does."""
    if len({len(row) for row in rows}) <= 1:
        return 0
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((i for i in candidates if i is not None), 0)


def pad_left(rows: list[Tensor], fill: int) -> tuple[Tensor, Tensor | None]:
    """Rows [pos] of different lengths as one tensor, filled on the left, and False where it was (None: nowhere).

    >>> pad_left([torch.tensor([3, 1]), torch.tensor([4])], 0)
    (tensor([[3, 1],
            [0, 4]]), tensor([[ True,  True],
            [False,  True]]))
    """
    lengths = [len(row) for row in rows]
    if len(rows) > 1 and 0 in lengths:
        raise ValueError(f"prompt {lengths.index(0)} of {len(rows)} is empty, and a model needs at least one token")
    if len(set(lengths)) <= 1:
        return (torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.long)), None
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill, padding_side="left")
    return padded, torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]


def check_tokens(tokens: Tensor, d_vocab: int) -> None:
    """Raise ValueError, saying what is wrong, for what are no ids [batch pos] of a vocabulary."""
    if tokens.ndim != 2 or tokens.dtype not in _INTEGERS:
        raise ValueError(f"tokens are integers [batch pos] or [pos], not {tokens.dtype} {list(tokens.shape)}")
    if tokens.numel() == 0:
        raise ValueError(f"the prompt is empty: tokens are {list(tokens.shape)}, and a model needs at least one")
    if not tokens.is_cpu or torch.compiler.is_compiling():
        return  # on a GPU a look would wait for it
    low, high = tokens.aminmax()
    if not 0 <= int(low) <= int(high) < d_vocab:
        raise ValueError(f"token ids run from 0 to {d_vocab - 1}, but got {low} to {high}: of another tokenizer?")
