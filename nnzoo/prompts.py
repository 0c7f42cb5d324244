"""What counts as a prompt: all that users of transformers and nnsight give to a model, read into tensors or refused.

By position comes one prompt: a text or several, a conversation or several, ids as lists, tensors or arrays, or a
tokenizer's output. Keywords are transformers' own, and mean here what they mean there; a name that nothing here would
heed is refused. What has different lengths is padded on the left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnzoo.architectures.attention import ContextLengthError
from nnzoo.architectures.text import check_tokens, pad_id_of, pad_left
from nnzoo.prompt_names import KINDS, brief, by_name, plain

IGNORED = -100  # the label of a token that does not count, in transformers and in torch's cross_entropy


@dataclass(eq=False, slots=True)
class Prompt:
    """The input of one pass, on the model's device."""

    tokens: Int[Tensor, "batch pos"]  # zeros where there are embeds
    attention_mask: Bool[Tensor, "batch pos"] | None = None  # False: padding. None: no padding
    embeds: Float[Tensor, "batch pos d_model"] | None = None  # instead of the tokens' embeddings; no copy
    labels: Int[Tensor, "batch pos"] | None = None  # for `loss_of`; IGNORED where no token predicts them


@dataclass(eq=False, slots=True)
class Reader:
    """What reading a prompt needs to know of a model."""

    tokenizer: Callable[[], Any]  # called for text only
    d_vocab: int
    d_model: int
    max_tokens: int
    dtype: torch.dtype
    device: torch.device
    pad_id: int = 0  # what ids of different lengths are padded with


def read_prompt(model: Reader, *args: Any, **kwargs: Any) -> Prompt:
    """The prompt that a user's arguments mean, with every number checked that can be without waiting for a GPU.

    By position: one of the kinds that the module names. Keywords: `input_ids`; `attention_mask`, 1 at tokens and 0 at
    padding, wherever it is; `inputs_embeds`; `labels`, IGNORED (-100) where nothing is to be predicted, text like the
    prompt's or ids; `token_type_ids`, all zeros; `position_ids`, if they are what the mask says. A tokenizer's output
    holds the same names.

    A label right after padding counts as IGNORED: no token predicts it, as for the first of a prompt that stands alone.
    `token_type_ids` of zeros are left out; transformers' GPT-2 adds the embedding of id 0 to every token for them.

    Raises ContextLengthError for more tokens than the model has positions, TypeError for a name or a kind of value that
    is no prompt's, and ValueError for one that does not fit.

    >>> cpu = torch.device("cpu")
    >>> reader = Reader(lambda: None, d_vocab=50, d_model=8, max_tokens=16, dtype=torch.float32, device=cpu)
    >>> prompt = read_prompt(reader, [[3, 1, 4], [1, 5]])
    >>> prompt.tokens.tolist(), prompt.attention_mask.tolist()
    ([[3, 1, 4], [0, 1, 5]], [[True, True, True], [False, True, True]])
    """
    if len(args) == 1 and not kwargs and type(args[0]) is Tensor and args[0].dtype is torch.long:
        tokens = _checked_ids(model, args[0])
        _check_length(model, tokens, None)
        return Prompt(tokens)
    given = by_name(args, kwargs)
    tokens, embeds, padding = _tokens_and_embeds(model, given)
    mask = _mask(given, tokens, padding)
    mask = None if mask is None else mask.to(model.device)
    _check_length(model, tokens, mask)
    _check_types(given.get("token_type_ids"), tokens, padding)
    _check_positions(given.get("position_ids"), tokens, mask)
    labels = _labels(model, given["labels"], tokens, mask, padding) if "labels" in given else None
    return Prompt(tokens, mask, embeds, labels)


def loss_of(logits: Float[Tensor, "batch pos d_vocab"], labels: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """The mean cross-entropy in nats of each label, as the position before it predicts it; IGNORED ones do not count.

    It is transformers' `loss`, except that float64 logits are not rounded to float32 first.

    >>> loss_of(torch.zeros(1, 3, 4), torch.tensor([[0, 1, IGNORED]])).exp()  # four tokens, all as likely
    tensor(4.)
    """
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return torch.nn.functional.cross_entropy(wide.flatten(0, 1), following.flatten(), ignore_index=IGNORED)


# --- ids and embeddings ----------------------------------------------------------------------------------------------


def _tokens_and_embeds(model: Reader, given: Mapping[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Ids, embeddings in their place, and where prompts of different lengths were padded (False)."""
    if "inputs_embeds" in given:
        if "input_ids" in given:
            raise TypeError("a prompt and inputs_embeds were given, and either is the whole input: leave one out")
        embeds = _embeds(model, given["inputs_embeds"])
        return torch.zeros(embeds.shape[:2], dtype=torch.long, device=model.device), embeds, None
    if "input_ids" not in given:
        raise TypeError(f"no prompt was given{', only ' if given else ''}{', '.join(given)}; {KINDS}")
    ids, padding = _ids(model, given["input_ids"])
    return _checked_ids(model, ids), None, padding


def _checked_ids(model: Reader, ids: Tensor) -> Int[Tensor, "batch pos"]:
    ids = ids[None] if ids.ndim == 1 else ids
    check_tokens(ids, model.d_vocab)
    return ids.to(model.device, torch.long, copy=True)  # whoever writes into theirs later does not change the prompt


def _ids(model: Reader, prompt: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(prompt, Mapping):
        raise TypeError("input_ids were given a tokenizer's whole output: give it by itself, or its parts: **output")
    if not _is_text(prompt):
        return _table("input_ids", prompt, model.pad_id)
    rows = _encoded(model.tokenizer(), [prompt] if isinstance(prompt, str) else prompt)
    pad_id = pad_id_of(model.tokenizer(), rows)
    pad_id = pad_id if 0 <= pad_id < model.d_vocab else 0  # a pad token may have been added to the tokenizer alone
    return pad_left([torch.tensor(row, dtype=torch.long) for row in rows], pad_id)


def _is_text(prompt: Any, depth: int = 2) -> bool:
    """Whether it is for the tokenizer, by its first part: a text, a message, or a list of texts or of conversations."""
    if isinstance(prompt, (list, tuple)):
        return bool(depth and prompt) and (isinstance(prompt[0], Mapping) or _is_text(prompt[0], depth - 1))
    return isinstance(prompt, str)


def _encoded(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Ids of each text or conversation."""
    if all(isinstance(one, str) for one in prompts):
        return [_encode(tokenizer, text) for text in prompts]
    conversations = [prompts] if isinstance(prompts[0], Mapping) else prompts
    if not all(_is_conversation(one) for one in conversations):
        raise TypeError(f"{brief(prompts)} is neither all text, nor all ids, nor all messages with a role; {KINDS}")
    texts = [_templated(tokenizer, one) for one in conversations]
    return [_encode(tokenizer, text, add_special_tokens=False) for text in texts]  # the template writes its own


def _is_conversation(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) and "role" in one for one in value)


def _encode(tokenizer: Any, text: str, **options: Any) -> list[int]:
    try:
        ids = tokenizer.encode(text, **options)
    except (TypeError, UnicodeEncodeError) as error:
        raise ValueError(f"the tokenizer cannot read {text!r:.40}: {error}") from error
    if not ids:
        raise ValueError(f"the text {text!r:.40} is empty: it has no tokens, and a model needs at least one")
    return ids


def _templated(tokenizer: Any, conversation: Sequence[Mapping[str, Any]]) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "messages need a chat template, and this tokenizer has none: write the conversation as one text, or set "
            "model.tokenizer.chat_template"
        )
    return tokenizer.apply_chat_template(list(conversation), add_generation_prompt=True, tokenize=False)


def _embeds(model: Reader, embeds: Any) -> Float[Tensor, "batch pos d_model"]:
    if not isinstance(embeds, Tensor) or embeds.ndim not in (2, 3) or embeds.shape[-1] != model.d_model:
        got = list(embeds.shape) if isinstance(embeds, Tensor) else f"a {type(embeds).__name__}"
        raise ValueError(f"inputs_embeds is a tensor [batch pos {model.d_model}] or [pos {model.d_model}], not {got}")
    if embeds.dtype != model.dtype:
        raise ValueError(f"inputs_embeds are {embeds.dtype}, the model {model.dtype}: give embeds.to({model.dtype})")
    if not embeds.numel():
        raise ValueError(f"the prompt is empty: inputs_embeds are {list(embeds.shape)}, and a model needs a token")
    return (embeds[None] if embeds.ndim == 2 else embeds).to(model.device)


# --- tables of numbers -----------------------------------------------------------------------------------------------


def _table(name: str, value: Any, fill: int) -> tuple[Tensor, Tensor | None]:
    """Numbers [batch pos], and where rows of different lengths were padded with `fill` (False)."""
    if not isinstance(value, (Tensor, list)):
        raise TypeError(f"{name} is [pos] or [batch pos], not a {type(value).__name__}, {brief(value)}")
    if isinstance(value, Tensor):
        table = _numbers(name, value)
        return (table[None] if table.ndim == 1 else table), None
    of_rows = bool(value) and (isinstance(value[0], Sequence) or getattr(value[0], "ndim", 0) > 0)
    return pad_left([_row(name, row) for row in (value if of_rows else [value])], fill)


def _row(name: str, row: Any) -> Int[Tensor, "pos"] | Bool[Tensor, "pos"]:
    if not isinstance(row, (Sequence, Tensor)) and not hasattr(row, "__array__"):
        raise ValueError(f"{name} has lists beside {brief(row)}, and is [pos] or [batch pos]")
    row = plain(name, row)
    if not isinstance(row, Tensor):
        kinds = set(map(type, row))
        if bool in kinds and len(kinds) > 1:
            raise ValueError(f"{name} {brief(row)} has True or False among numbers")
        try:
            row = torch.tensor(row, dtype=torch.long if kinds <= {int} else None)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{name} {brief(row)} cannot be read as numbers [pos] or [batch pos]: {error}") from error
    if row.ndim != 1:
        raise ValueError(f"{name} is [pos] or [batch pos], and a row of it has shape {list(row.shape)}")
    return _numbers(name, row)


def _numbers(name: str, numbers: Tensor) -> Tensor:
    """Integers, or True and False of a mask."""
    if name == "attention_mask":
        mask = numbers.to(torch.bool, copy=True)
        if not torch.equal(mask.to(numbers.dtype), numbers):
            raise ValueError(
                f"attention_mask is 1 at tokens and 0 at padding, but has {brief(numbers.unique().tolist())}. "
                "What a query may look at is set at attn.hook_attn_scores"
            )
        return mask
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(f"{name} are integers [batch pos] or [pos], not {numbers.dtype} {list(numbers.shape)}")
    return numbers


# --- what stands beside the ids --------------------------------------------------------------------------------------


def _mask(given: Mapping[str, Any], tokens: Tensor, padding: Tensor | None) -> Tensor | None:
    """True at tokens, None where all are."""
    if "attention_mask" not in given:
        return padding
    if _is_text(given.get("input_ids")):
        raise ValueError("text is padded here, and takes no attention_mask; pass token ids with one")
    mask, rows = _table("attention_mask", given["attention_mask"], 0)
    _check_alike("attention_mask", mask, rows, tokens, padding)
    if mask.all():
        return None
    if (empty := ~mask.any(dim=-1)).any():
        raise ValueError(f"row {_first(empty)} of attention_mask is all 0, and a prompt has at least one token")
    return mask


def _first(wrong: Bool[Tensor, "batch *pos"]) -> int:
    return int(wrong.nonzero()[0, 0])


def _check_alike(name: str, table: Tensor, rows: Tensor | None, tokens: Tensor, padding: Tensor | None) -> None:
    """Raise ValueError where what stands beside the ids was not padded as they were, or has another shape."""
    ours, theirs = (one if one is None else one.sum(dim=-1).tolist() for one in (padding, rows))
    if ours and ours != theirs:
        raise ValueError(
            f"prompts of different lengths are padded here, and take no {name} but rows of the same lengths: {ours}"
        )
    if theirs and not ours:
        raise ValueError(f"{name} has rows of lengths {theirs}, but each prompt has {tokens.shape[1]} tokens")
    if table.shape != tokens.shape:
        raise ValueError(f"{name}: {list(table.shape)}, but the tokens are {list(tokens.shape)}")


def _check_length(model: Reader, tokens: Tensor, mask: Tensor | None) -> None:
    total = tokens.shape[1]
    if total > model.max_tokens and mask is not None:
        total = int(mask.sum(dim=-1).max())
    if total > model.max_tokens:
        raise ContextLengthError(f"{total} tokens, but the model has {model.max_tokens} positions: shorten the prompt")


def _check_types(given: Any, tokens: Tensor, padding: Tensor | None) -> None:
    if given is None:
        return
    types, rows = _table("token_type_ids", given, 0)
    _check_alike("token_type_ids", types, rows, tokens, padding)
    if types.any():
        raise ValueError("token_type_ids are not all 0, and these models tell no types of tokens apart: leave them out")


def _check_positions(given: Any, tokens: Tensor, mask: Tensor | None) -> None:
    if given is None:
        return
    positions = _table("position_ids", given, 0)[0].to(tokens.device)
    if positions.shape not in (tokens.shape, (1, tokens.shape[1])):
        raise ValueError(f"position_ids are {list(positions.shape)}, the tokens {list(tokens.shape)}")
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    counted = real.cumsum(dim=-1) - 1
    if (wrong := (positions != counted) & real).any():
        row = _first(wrong)
        asked, ours = positions.expand_as(real)[row, real[row]], counted[row, real[row]]
        raise ValueError(
            f"position_ids of row {row} are {brief(asked.tolist())}, but positions count the tokens that are no "
            f"padding: {brief(ours.tolist())}. Leave them out; other positions can be set at hook_positions"
        )


def _labels(model: Reader, given: Any, tokens: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor:
    """Labels of a prompt's shape, IGNORED wherever no token predicts them."""
    labels, rows = _ids(model, given) if _is_text(given) else _table("labels", given, IGNORED)
    _check_alike("labels", labels, rows, tokens, padding)
    labels = (labels if rows is None else labels.masked_fill(~rows, IGNORED)).to(model.device, torch.long, copy=True)
    counted = labels != IGNORED
    if ((labels < 0) | (labels >= model.d_vocab))[counted].any():
        low, high = (int(one) for one in labels[counted].aminmax())
        raise ValueError(f"labels run from 0 to {model.d_vocab - 1}, or are {IGNORED}; got {low} to {high}")
    if mask is not None:
        if (wrong := counted & ~mask).any():
            raise ValueError(f"row {_first(wrong)} of labels has some at padding: set them to {IGNORED}, not to count")
        labels[:, 1:].masked_fill_(~mask[:, :-1], IGNORED)
    if (labels[:, 1:] == IGNORED).all():
        raise ValueError(f"no label counts: each is {IGNORED}, or the first of its prompt, which no token predicts")
    return labels
