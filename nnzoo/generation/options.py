"""How tokens are chosen: the options of transformers' `generate`, checked."""

import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jaxtyping

from nnzoo.architectures.attention import ContextLengthError
from nnzoo.generation.checks import check_all, is_count
from nnzoo.generation.refusals import OptionError, check_names, refuse

_INSIDE = (os.path.dirname(os.path.dirname(__file__)), os.path.dirname(jaxtyping.__file__), "<@beartype")
DEFAULT_NEW_TOKENS = 20  # transformers' own, where nobody says how many
LENGTHS = frozenset({"max_length", "max_new_tokens", "min_length", "min_new_tokens"})
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How tokens are chosen. `Options.of` makes them from what a caller asks and what a checkpoint says.

    Names, defaults and meaning are those of transformers' `generate`
    (https://huggingface.co/docs/transformers/main_classes/text_generation).
    None turns an option off; lengths are settled: `max_new_tokens` and `min_new_tokens` say all of them.

    >>> Options.of({"max_new_tokens": 3}, {"eos_token_id": 1}, prompt_length=5, n_ctx=16, d_vocab=50).eos_token_id
    (1,)
    """

    # how many
    max_new_tokens: int
    min_new_tokens: int = 0  # before so many the end-of-text tokens cannot be chosen
    num_return_sequences: int = 1  # how many continuations of each prompt; more than one must be sampled
    # where a row ends
    eos_token_id: tuple[int, ...] = ()  # any of them ends its row
    pad_token_id: int | None = None  # what stands after a row's end; None: the first of eos_token_id
    stop_strings: tuple[str, ...] = ()  # a row ends with the token that completes one of them
    # how a token is drawn; the fields down to eta_cutoff hold where do_sample is True
    do_sample: bool = False  # draw from the distribution; else take the most likely token
    temperature: float | None = 1.0  # logits are divided by it
    top_k: int | None = 50  # only so many of the most likely tokens; 0: all
    top_p: float | None = 1.0  # only the most likely ones that together reach this probability
    min_p: float | None = None  # only those at least this times as likely as the most likely one
    top_h: float | None = None  # only the most likely ones, up to this share of the entropy
    typical_p: float | None = 1.0  # only those whose surprise is nearest to the entropy, up to this probability
    epsilon_cutoff: float | None = 0.0  # only those at least so likely
    eta_cutoff: float | None = 0.0  # the same, less strict where the entropy is high
    seed: int | None = None  # draw as after torch.manual_seed(seed); None: from torch's global generator
    # what changes the logits before
    repetition_penalty: float | None = 1.0  # above 1: tokens of the text so far become less likely, once each
    no_repeat_ngram_size: int | None = 0  # no run of so many tokens appears twice; 0: any may
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None  # runs of ids that are not generated
    sequence_bias: Any = None  # added to the logit of the last token of a run: [[ids, bias], ...]
    suppress_tokens: tuple[int, ...] | None = None  # ids that are never chosen
    begin_suppress_tokens: tuple[int, ...] | None = None  # ids that are not chosen first
    forced_bos_token_id: int | None = None  # the second token of a text, after a prompt of one
    forced_eos_token_id: int | tuple[int, ...] | None = None  # the last token, where max_new_tokens is reached
    exponential_decay_length_penalty: tuple[int, float] | None = None  # after so many, the end grows likelier
    remove_invalid_values: bool | None = False  # NaN and infinite logits become finite ones
    renormalize_logits: bool | None = None  # the changed logits are made log-probabilities again

    @classmethod
    def of(
        cls,
        asked: Mapping[str, Any],
        checkpoint: Mapping[str, Any],
        *,
        prompt_length: int,
        n_ctx: int,
        d_vocab: int,
        padding: int = 0,
    ) -> "Options":
        """The options of a call: what is asked, else what the checkpoint's generation_config.json says.

        `generation_config` among what is asked is a mapping, or a GenerationConfig of transformers, and comes before
        the checkpoint's. `prompt_length` counts padding in, of which every row has `padding` tokens at least.
        Raises OptionError for what cannot be followed, ContextLengthError where prompt and new tokens do not fit.
        """
        check_names(asked, NAMES)
        asked, checkpoint = _layers(asked, checkpoint)
        refuse(asked, checkpoint)
        said = {name: value for name, value in checkpoint.items() if name in NAMES - {"seed"} and value is not None}
        given = said | {name: value for name, value in asked.items() if name in NAMES}
        limit = _limit(asked, checkpoint, prompt_length, n_ctx)
        _check_context(prompt_length - padding, limit, n_ctx)
        values = {**_plain(given), **_ends(asked, checkpoint, d_vocab)}
        values |= {"max_new_tokens": limit, "min_new_tokens": _least(given, prompt_length)}
        check_all(DEFAULTS | values, d_vocab)
        options = cls(**_as_floats(values))
        _warn_of_greed(asked, options)
        return options

    @property
    def padding(self) -> int:
        """The id that follows a row's end."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.eos_token_id[0] if self.eos_token_id else 0


DEFAULTS = {field.name: field.default for field in fields(Options)}
FLOATS = frozenset(field.name for field in fields(Options) if field.type == float | None)
NAMES = frozenset(DEFAULTS) | LENGTHS | {"generation_config"}
NEVER_NONE = ("do_sample", "num_return_sequences")  # None is there what nobody asks for


def _layers(asked: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is asked, and what a GenerationConfig among it says in front of the checkpoint's."""
    config = asked.get("generation_config")
    values = {} if config is None else config if isinstance(config, Mapping) else config.to_dict()
    said = {name: value for name, value in values.items() if value is not None}
    return {n: value for n, value in asked.items() if n != "generation_config"}, {**checkpoint, **said}


def _limit(asked: Mapping[str, Any], checkpoint: Mapping[str, Any], prompt_length: int, n_ctx: int) -> int:
    """How many tokens may be generated: max_new_tokens goes before max_length, wherever each comes from."""
    new, length = (_said(name, asked, checkpoint) for name in ("max_new_tokens", "max_length"))
    if new is not None:
        if asked.get("max_length") is not None:
            warn(f"max_length={length} has no effect: max_new_tokens={new} goes before it")
        return _count("max_new_tokens", new)
    if length is None:
        return max(1, min(DEFAULT_NEW_TOKENS, n_ctx - prompt_length))
    if _count("max_length", length) <= prompt_length:
        raise OptionError(
            f"max_length={length} counts the prompt, which has {prompt_length} tokens: nothing is left to generate. "
            "Pass max_new_tokens, or a larger max_length."
        )
    return length - prompt_length


def _check_context(prompt_length: int, limit: int, n_ctx: int) -> None:
    if prompt_length + limit - 1 > n_ctx:  # the last token is not read again
        room = max(0, n_ctx - prompt_length + 1)
        raise ContextLengthError(
            f"{prompt_length} tokens of prompt and {limit} new ones, but the model has {n_ctx} positions, which leave "
            f"room for {room}: pass max_new_tokens={room}, or shorten the prompt."
            if room
            else f"{prompt_length} tokens of prompt, but the model has {n_ctx} positions: shorten it."
        )


def _said(name: str, asked: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Any:
    return asked[name] if name in asked else checkpoint.get(name)


def _count(name: str, value: Any) -> int:
    if not is_count(value) or value < 1:
        raise OptionError(f"{name}={value!r} is no number of tokens: it is a whole number, 1 or more")
    return int(value)


def _least(given: Mapping[str, Any], prompt_length: int) -> int:
    """How many tokens must be generated; min_new_tokens goes before min_length, which counts the prompt."""
    for name, less in (("min_new_tokens", 0), ("min_length", prompt_length)):
        value = given.get(name)
        if value is not None:
            if not is_count(value):
                raise OptionError(f"{name}={value!r} is no number of tokens: it is a whole number, 0 or more")
            return max(0, int(value) - less)
    return 0


def _ends(asked: Mapping[str, Any], checkpoint: Mapping[str, Any], d_vocab: int) -> dict[str, Any]:
    """eos_token_id and pad_token_id; those of a checkpoint that are no tokens of its model count as not there."""
    if "eos_token_id" in asked:
        eos = _ids(asked["eos_token_id"])
    else:
        eos = tuple(i for i in _ids(checkpoint.get("eos_token_id")) if 0 <= i < d_vocab)
    if asked.get("pad_token_id") is not None:
        return {"eos_token_id": eos, "pad_token_id": asked["pad_token_id"]}
    pad = checkpoint.get("pad_token_id") if "pad_token_id" not in asked else None
    usable = pad is not None and 0 <= pad < d_vocab  # the first LLaMA says -1, which nothing can embed
    return {"eos_token_id": eos, "pad_token_id": pad if usable else None}


def _ids(value: Any) -> tuple[Any, ...]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return () if value is None else tuple(value) if isinstance(value, (list, tuple, set)) else (value,)


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the fields hold them: nothing that somebody else could change."""
    values = {name: value for name, value in given.items() if name not in LENGTHS}
    for name in ("suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty", "bad_words_ids"):
        if values.get(name) is not None:
            values[name] = _frozen(name, values[name])
    if isinstance(values.get("forced_eos_token_id"), list):
        values["forced_eos_token_id"] = tuple(values["forced_eos_token_id"])
    stops = values.get("stop_strings")
    values["stop_strings"] = (stops,) if isinstance(stops, str) else _frozen("stop_strings", stops or ())
    return {name: value for name, value in values.items() if value is not None or name not in NEVER_NONE}


def _frozen(name: str, value: Any) -> tuple[Any, ...]:
    try:
        return tuple(tuple(run) for run in value) if name == "bad_words_ids" else tuple(value)
    except TypeError as error:
        raise OptionError(
            f"{name}={value!r} will not do: it is a list{' of lists' * (name == 'bad_words_ids')}"
        ) from error


def _as_floats(values: Mapping[str, Any]) -> dict[str, Any]:
    """Whole numbers as floats where the field is one: transformers takes no others."""
    return {name: float(v) if name in FLOATS and v is not None else v for name, v in values.items()}


def _warn_of_greed(asked: Mapping[str, Any], options: Options) -> None:
    """Options of sampling that somebody asked for, where nothing is sampled."""
    idle = [name for name in SAMPLING if asked.get(name) is not None and asked[name] != DEFAULTS[name]]
    if idle and not options.do_sample:
        names = ", ".join(f"{name}={asked[name]!r}" for name in idle)
        warn(f"{names} without effect: the most likely token is taken unless do_sample=True")


def warn(message: str) -> None:
    """A UserWarning at the user's line, which is the first outside of the package (and of what checks its types)."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level + 1)
