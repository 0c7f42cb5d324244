"""config.json read with note taken of every key: each is read, known to change nothing, or refused by name."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from nnzoo.architectures.activations import ACTIVATIONS


class ConfigError(ValueError):
    """A config.json that nnzoo cannot follow: what it says, where, and what to do instead."""


def reasons(table: Mapping[str, str]) -> dict[str, str]:
    """A table of settings and reasons from one of reasons and settings.

    >>> reasons({"only in training": "resid_pdrop embd_pdrop"})
    {'resid_pdrop': 'only in training', 'embd_pdrop': 'only in training'}
    """
    return {key: reason for reason, keys in table.items() for key in keys.split()}


TOKEN_IDS = "token ids, for the tokenizer and for generation"
GENERATION = "generation"

# The settings of every family that leave the forward pass as it is, and why.
WITHOUT_EFFECT = reasons(
    {
        "a name or a note": "model_type architectures transformers_version _name_or_path name_or_path _commit_hash "
        "auto_map transformers.js_config unsloth_fixed unsloth_version is_llama_config tokenizer_class prefix",
        "read by `load`": "dtype torch_dtype",
        "only in training": "initializer_range attention_dropout hidden_dropout gradient_checkpointing "
        "gradient_checkpointing_kwargs",
        "which attention kernel runs": "_attn_implementation _attn_implementation_autoset attn_implementation "
        "_experts_implementation _flash_attn_2_enabled use_flash_attn flash_attn use_bfloat16 xla_device torchscript",
        "what the forward pass gives back beside the logits": "output_attentions output_hidden_states output_past "
        "return_dict use_return_dict use_cache cache_implementation tie_last_hidden_states",
        "another head than the language model's": "id2label label2id num_labels _num_labels problem_type "
        "finetuning_task task_specific_params",
        "transformers does the same whatever it says": "is_decoder tie_encoder_decoder chunk_size_feed_forward "
        "predict_special_tokens",
        TOKEN_IDS: "bos_token_id eos_token_id pad_token_id sep_token_id "
        "decoder_start_token_id forced_bos_token_id forced_eos_token_id",
        GENERATION: "max_length min_length do_sample early_stopping num_beams temperature top_k top_p typical_p "
        "repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
        "num_return_sequences output_scores return_dict_in_generate remove_invalid_values suppress_tokens "
        "exponential_decay_length_penalty begin_suppress_tokens epsilon_cutoff eta_cutoff num_beam_groups "
        "encoder_repetition_penalty diversity_penalty num_assistant_tokens num_assistant_tokens_schedule "
        "assistant_confidence_threshold assistant_lookbehind target_lookbehind",
    }
)

# Settings that may have this one value (or null), and what to do about another.
FIXED: dict[str, tuple[Any, str]] = {
    "is_encoder_decoder": (False, "the models here are decoders"),
    "add_cross_attention": (False, "cross-attention is not implemented"),
    "cross_attention_hidden_size": (None, "cross-attention is not implemented"),
    "pruned_heads": ({}, "save the model with whole heads, the pruned ones zero"),
    "quantization_config": (None, "load the checkpoint that it was quantized from"),
    "compression_config": (None, "load the checkpoint that it was compressed from"),
    "per_layer_config": (None, "every block has the same shape here"),
}


class Settings:
    """A JSON object whose keys are read one by one; `finish` refuses those that nobody read.

    `where` is how errors name it: "config.json of /models/gpt2".

    >>> settings = Settings({"n_layer": 3, "depth": 4}, "config.json")
    >>> settings.integer("n_layer", 12), settings.integer("n_head", 12)
    (3, 12)
    >>> settings.finish({}, {})
    Traceback (most recent call last):
    nnzoo.weights.settings.ConfigError: config.json: setting 'depth' = 4 is not known. ...
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._values = dict(values)
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str, default: int) -> int:
        value = self._get(key, default)
        if type(value) is not int or value < 1:  # a bool is an int too
            raise self.error(key, value, "is not a positive integer")
        return value

    def optional_integer(self, key: str, default: int | None = None) -> int | None:
        return None if self._get(key, default) is None else self.integer(key, default or 1)

    def number(self, key: str, default: float, *, positive: bool = False) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float):
            raise self.error(key, value, "is not a number")
        if not abs(value) <= sys.float_info.max:  # NaN, infinity, or an integer that no float can hold
            raise self.error(key, value, "is not finite")
        if positive and value <= 0:
            raise self.error(key, value, "is not above 0")
        return float(value)

    def optional_number(self, key: str, *, positive: bool = False) -> float | None:
        return None if self._get(key, None) is None else self.number(key, 0.0, positive=positive)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.error(key, value, "is neither true nor false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if type(value) is not str:
            raise self.error(key, value, "is not a string")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """A JSON object; empty where it is missing or null."""
        value = self._get(key, None)
        if value is not None and type(value) is not dict:
            raise self.error(key, value, "is not an object")
        return value or {}

    def words(self, key: str) -> list[Any]:
        """A JSON array; empty where it is missing or null."""
        value = self._get(key, None)
        if value is not None and type(value) is not list:
            raise self.error(key, value, "is not an array")
        return value or []

    def activation(self, key: str, default: str) -> str:
        name = self.text(key, default)
        if name not in ACTIVATIONS:
            raise self.error(key, name, f"is not implemented; nnzoo knows {listed(ACTIVATIONS)}")
        return name

    def only(self, key: str, allowed: Any, advice: str) -> None:
        """Refuse a setting that has another value than this one, or null."""
        value = self._get(key, None)
        if value is not None and value != allowed:
            raise self.error(key, value, f"is not implemented; nnzoo knows only {json.dumps(allowed)}: {advice}")

    def same(self, key: str, other: str) -> None:
        """Refuse two spellings of one setting that disagree; null says nothing, and neither counts as read."""
        value, rival = self._values.get(key), self._values.get(other)
        if value is not None and rival is not None and value != rival:
            raise self.error(key, value, f"and {other!r} = {rival!r} disagree: remove one")

    def finish(self, without_effect: Mapping[str, str], fixed: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
        """The settings that change nothing, once every other was read, or has the value that it must have."""
        for key, (allowed, advice) in fixed.items():
            self.only(key, allowed, advice)
        left = {key: value for key, value in self._values.items() if key not in self._read}
        for key, value in left.items():
            if key not in without_effect:
                advice = (
                    "If the forward pass does not depend on it, remove it; if it does, nnzoo has not got this model"
                )
                raise self.error(key, value, f"is not known. {advice}")
        return left

    def error(self, key: str, value: Any, complaint: str) -> ConfigError:
        return ConfigError(f"{self.where}: setting {key!r} = {json.dumps(value)} {complaint}.")

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        return self._values.get(key, default)


def listed(names: Any) -> str:
    """Names as a sentence has them.

    >>> listed(["yarn", "linear", "default"])
    "'default', 'linear' and 'yarn'"
    """
    *first, last = (repr(name) for name in sorted(names))
    return f"{', '.join(first)} and {last}" if first else last
