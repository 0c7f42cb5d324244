"""Readers of prompts without a model: one that must never need its tokenizer, and one whose tokens are letters."""

from dataclasses import replace
from typing import Any

import torch

from families import D_VOCAB
from nnzoo.prompts import Reader

D_MODEL = 8


class Letters:
    """A tokenizer: one id for each letter."""

    pad_token_id, eos_token_id, chat_template = None, 1, None

    @staticmethod
    def encode(text: str, **options: Any) -> list[int]:
        return [ord(letter) % D_VOCAB for letter in text]


def no_tokenizer() -> Any:
    raise AssertionError("ids need no tokenizer")


NUMBERS = Reader(
    no_tokenizer,
    d_vocab=D_VOCAB,
    d_model=D_MODEL,
    max_tokens=12,
    dtype=torch.float32,
    device=torch.device("cpu"),
    pad_id=7,
)
LETTERS = replace(NUMBERS, tokenizer=lambda: Letters)
