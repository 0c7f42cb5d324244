"""What each option of generation may be."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

from nnzoo.generation.refusals import OptionError

Check = tuple[Callable[[Any], bool], str]  # whether a value will do, and what it is


def is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # a bool is an int too


def is_count(value: Any) -> bool:
    return is_whole(value) and value >= 0


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def is_flag(value: Any) -> bool:
    return value is None or type(value) is bool


def is_runs(value: Any) -> bool:
    return len(value) > 0 and all(run and all(is_count(i) for i in run) for run in value)


SHARE: Check = (is_share, "a number from 0 to 1")
POSITIVE: Check = (lambda value: is_number(value) and value > 0, "a number above 0")
COUNT: Check = (is_count, "a whole number, 0 or more")
FLAG: Check = (is_flag, "True or False")

ALWAYS: dict[str, Check] = {
    "do_sample": FLAG,
    "num_return_sequences": (lambda value: is_count(value) and value > 0, "a whole number, 1 or more"),
    "stop_strings": (lambda value: all(isinstance(s, str) and s for s in value), "a text, or several, none empty"),
    "seed": (is_whole, "a whole number, as for torch.manual_seed"),
    "repetition_penalty": (POSITIVE[0], "a number above 0; 1.0 changes nothing"),
    "no_repeat_ngram_size": COUNT,
    "bad_words_ids": (is_runs, "lists of token ids, none empty"),
    "exponential_decay_length_penalty": (
        lambda value: len(value) == 2 and is_count(value[0]) and is_number(value[1]),
        "a number of tokens and a factor",
    ),
    "remove_invalid_values": FLAG,
    "renormalize_logits": FLAG,
}
SAMPLED: dict[str, Check] = {
    "temperature": (POSITIVE[0], "a number above 0; for the most likely token at each step pass do_sample=False"),
    "top_k": (is_count, "a whole number, 0 (all tokens) or more"),
    "top_p": SHARE,
    "min_p": SHARE,
    "top_h": SHARE,
    "typical_p": (lambda value: is_share(value) and value > 0, "a number above 0, 1 at most"),
    "epsilon_cutoff": SHARE,
    "eta_cutoff": SHARE,
}
IDS = "eos_token_id pad_token_id suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id".split()


def check_all(values: Mapping[str, Any], d_vocab: int) -> None:
    """Raise OptionError for a value that its option cannot have; `values` has every option.

    Those of sampling are looked at only where something is sampled: a checkpoint may say anything for them.
    """
    for name, (fits, what) in (ALWAYS | (SAMPLED if values["do_sample"] else {})).items():
        value = values[name]
        if value is not None and not fits(value):
            raise OptionError(f"{name}={value!r} will not do: it is {what}")
    for name in IDS:
        _check_ids(name, values[name], d_vocab)
    times = values["num_return_sequences"]
    if times > 1 and not values["do_sample"]:
        raise OptionError(
            f"num_return_sequences={times} without do_sample=True gives {times} times the same text: "
            "sample, or ask for one"
        )
    if values["exponential_decay_length_penalty"] is not None and not values["eos_token_id"]:
        raise OptionError("exponential_decay_length_penalty makes the end likelier, and there is no eos_token_id")


def _check_ids(name: str, value: Any, d_vocab: int) -> None:
    for token in value if isinstance(value, tuple) else () if value is None else (value,):
        if not is_count(token) or token >= d_vocab:
            hint = f"; {name}=None does without" if name == "eos_token_id" else ""
            raise OptionError(f"{name}={value!r}: {token!r} is no token id, which run from 0 to {d_vocab - 1}{hint}")
