"""Texts of a data set as rows of tokens, all of the same length."""

from typing import Any

import torch
from torch import Tensor


def keep_single_column(dataset: Any, col_name: str) -> Any:
    """A data set (of Hugging Face's datasets) with one of its columns."""
    return dataset.remove_columns([name for name in dataset.features if name != col_name])


def tokenize_and_concatenate(
    dataset: Any,
    tokenizer: Any,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int | None = 10,
    set_format: bool = True,
) -> Any:
    """A data set of "tokens" [max_length]: texts one after the other, the end-of-text token between them, cut in rows.

    What is left at the end of a batch of texts is dropped, unless it is all there is: then it is padded. Rows begin
    with the beginning-of-text token, if `add_bos_token`. `dataset` is one of Hugging Face's datasets.
    """
    length = max_length - add_bos_token
    padding = tokenizer.eos_token_id if tokenizer.pad_token is None else tokenizer.pad_token_id

    def rows_of(examples: Any) -> dict[str, list[list[int]]]:
        texts = [tokenizer.encode(text, add_special_tokens=False) for text in examples[column_name]]
        ids = [i for text in texts for i in (*text, tokenizer.eos_token_id)][:-1]
        if not ids:
            return {"tokens": []}
        ids += [padding] * (length - len(ids))
        front = [tokenizer.bos_token_id] * add_bos_token
        rows: Tensor = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
        return {"tokens": [front + row for row in rows.tolist()]}

    processes = {} if streaming else {"num_proc": num_proc}
    kept = keep_single_column(dataset, column_name)
    tokenized = kept.map(rows_of, batched=True, remove_columns=[column_name], **processes)
    if set_format:
        tokenized.set_format(type="torch", columns=["tokens"])
    return tokenized
