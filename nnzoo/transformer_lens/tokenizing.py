"""Between text and ids as TransformerLens has it: with the beginning-of-text token in front, padded on its side."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.transformer_lens.HookedTransformerConfig import HookedTransformerConfig
from nnzoo.transformer_lens.tensors import get_attention_mask


class NotOneToken(ValueError, AssertionError):
    """A text is more than one token; an AssertionError too, as users of TransformerLens expect."""


class Tokenizing:
    """What a HookedTransformer does with text.

    `prepend_bos` None is `cfg.default_prepend_bos`: True, unless the model was loaded otherwise. `padding_side` None is
    the tokenizer's.
    """

    cfg: HookedTransformerConfig
    native: HookedModel
    _padding_side: str | None = None
    _tokenizer_settled: bool = False

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded when it is first asked for; None where there is none."""
        if self.native._tokenizer is None:
            return None
        if not self._tokenizer_settled:
            self._settle(self.native.tokenizer)
        return self.native.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.native.tokenizer, self._tokenizer_settled = tokenizer, False

    def set_tokenizer(self, tokenizer: Any, default_padding_side: str | None = None) -> None:
        """Read text with this tokenizer; it gets the special tokens it lacks, as in TransformerLens."""
        if default_padding_side not in (None, "left", "right"):
            raise ValueError(f"default_padding_side is 'left', 'right' or None, not {default_padding_side!r}")
        self._padding_side = default_padding_side
        self.tokenizer = tokenizer
        if self.cfg.d_vocab == -1:
            self.cfg.d_vocab = self.cfg.d_vocab_out = max(tokenizer.get_vocab().values()) + 1

    def _settle(self, tokenizer: Any) -> None:
        self._tokenizer_settled = True
        tokenizer.padding_side = self._padding_side or getattr(tokenizer, "padding_side", None) or "right"
        if tokenizer.eos_token is None:
            tokenizer.eos_token = "<|endoftext|>"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.bos_token is None:
            tokenizer.bos_token = tokenizer.eos_token
        self.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0

    def _needed_tokenizer(self) -> Any:
        tokenizer = self.tokenizer
        return self.native.tokenizer if tokenizer is None else tokenizer  # the native model says what to do

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """Ids of one text or several. With `truncate`, no more than the model has positions."""
        rows = self._rows([input] if isinstance(input, str) else input, prepend_bos, truncate)
        tokens = self._padded(rows, padding_side)
        return tokens.to(self.native.device) if move_to_device else tokens

    def _rows(self, texts: list[str], prepend_bos: bool | None, truncate: bool) -> list[list[int]]:
        tokenizer = self._needed_tokenizer()
        front = [tokenizer.bos_token_id] if self._prepends(prepend_bos) else []
        rows = [front + list(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        return [row[: self.cfg.n_ctx] for row in rows] if truncate else rows

    def _prepends(self, prepend_bos: bool | None) -> bool:
        return self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos

    def _padded(self, rows: list[list[int]], padding_side: str | None) -> Tensor:
        tokenizer, most = self._needed_tokenizer(), max(map(len, rows), default=0)
        side = padding_side or tokenizer.padding_side
        if side not in ("left", "right"):
            raise ValueError(f"padding_side is 'left' or 'right', not {side!r}")
        fill = [[tokenizer.pad_token_id] * (most - len(row)) for row in rows]
        padded = [f + row if side == "left" else row + f for f, row in zip(fill, rows, strict=True)]
        return torch.tensor(padded, dtype=torch.long)

    def tokens_and_mask(
        self, input: Any, prepend_bos: bool | None, padding_side: str | None, attention_mask: Tensor | None
    ) -> tuple[Int[Tensor, "batch pos"], Tensor | None]:
        """Ids of text or ids, and where they are no padding: what is padded on the right needs no mask."""
        text = isinstance(input, (str, list))
        tokens = self.to_tokens(input, prepend_bos, padding_side) if text else input
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        # ids that come before any text was read were not padded here: no tokenizer is loaded for them
        if attention_mask is None and self._tokenizer_settled:
            tokenizer = self.native.tokenizer
            if (padding_side or tokenizer.padding_side) == "left" and (tokens[:, 0] == tokenizer.pad_token_id).any():
                attention_mask = get_attention_mask(tokenizer, tokens, self._prepends(prepend_bos), "left")
        return tokens, attention_mask

    def to_string(self, tokens: Any) -> str | list[str]:
        """Text of ids: one string for one row (or one id), a list for a batch."""
        if isinstance(tokens, list) and tokens and isinstance(tokens[0], Tensor):
            tokens = torch.stack(tokens)
        ids = torch.as_tensor(tokens)
        if ids.ndim > 2:
            raise ValueError(f"ids are [pos] or [batch pos], not {list(ids.shape)}")
        decode = self._needed_tokenizer().decode
        rows = ids.tolist() if ids.ndim == 2 else [ids.reshape(-1).tolist()]
        texts = [decode(row, clean_up_tokenization_spaces=False) for row in rows]
        return texts if ids.ndim == 2 else texts[0]

    def to_str_tokens(self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None) -> list[Any]:
        """Each token's own text: of a text, of ids [pos] or [1 pos]; a list of lists for a list of these."""
        if isinstance(input, list):
            return [self.to_str_tokens(one, prepend_bos, padding_side) for one in input]
        if isinstance(input, str):
            ids = self.to_tokens(input, prepend_bos, padding_side)[0]
        elif isinstance(input, (Tensor, np.ndarray)):
            ids = torch.as_tensor(input).squeeze()
            if ids.ndim > 1:
                raise AssertionError(f"tokens are [pos] or [1 pos], not {list(ids.shape)}")
        else:
            raise ValueError(f"to_str_tokens takes text or ids, not {type(input).__name__}")
        decode = self._needed_tokenizer().decode
        return [decode([token], clean_up_tokenization_spaces=False) for token in ids.reshape(-1).tolist()]

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token. Raises NotOneToken, with its pieces, where it is more."""
        ids = self.to_tokens(string, prepend_bos=False)[0].tolist()
        if len(ids) != 1:
            pieces = [self.to_string([i]) for i in ids]
            raise NotOneToken(f"{string!r} is {len(ids)} tokens, not one: {pieces}. A leading space may be missing.")
        return ids[0]

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id."""
        return self._needed_tokenizer().decode([int_token], clean_up_tokenization_spaces=False)

    def get_token_position(
        self,
        single_token: str | int | Tensor,
        input: str | Tensor,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """Where a token stands in a text or in ids [pos] or [1 pos]: its "first" place or its "last".

        Raises NotOneToken where the token is more than one, AssertionError where it does not occur.
        """
        if mode not in ("first", "last"):
            raise ValueError(f"mode is 'first' or 'last', not {mode!r}")
        tokens = self.to_tokens(input, prepend_bos, padding_side) if isinstance(input, str) else input
        if tokens.ndim == 2 and len(tokens) != 1:
            raise AssertionError(f"one prompt is looked at, not {len(tokens)}")
        token = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        places = (tokens.reshape(-1) == token).nonzero().reshape(-1).tolist()
        if not places:
            raise AssertionError(f"the token {single_token!r} does not occur in the prompt")
        return places[0 if mode == "first" else -1]
