"""Every name that transformers' `generate` knows and `Options` does not have, and what becomes of it here."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

BEAMS = "there is no beam search here, and num_beams is 1"
OUTPUTS = "generate() gives the ids; a trace, or hook points, give what is computed on the way"
CALLABLES = "functions that change what is chosen are not called here; a trace can change the logits"
HELP = "decoding with help from another model, or from other layers, is not implemented"
ENCODER = "the models here are decoders: there is no encoder's input"

# What changes the tokens or what comes back, and is not implemented: its values that ask for nothing, and why.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), BEAMS),
    "penalty_alpha": ((0, 0.0), "contrastive search is not implemented"),
    "constraints": ((), BEAMS),
    "force_words_ids": ((), BEAMS),
    "guidance_scale": ((1, 1.0), "classifier-free guidance needs a second pass a step, and is not implemented"),
    "encoder_repetition_penalty": ((1, 1.0), ENCODER),
    "encoder_no_repeat_ngram_size": ((0,), ENCODER),
    "watermarking_config": ((), "watermarks are not implemented"),
    "token_healing": ((False,), "the prompt stays as it is"),
    "max_time": ((), "what is generated does not depend on the clock here: max_new_tokens limits it"),
    "dola_layers": ((), HELP),
    "prompt_lookup_num_tokens": ((), HELP),
    "assistant_early_exit": ((), HELP),
    "use_mtp": ((False,), HELP),
    "return_dict_in_generate": ((False,), OUTPUTS),
    "output_scores": ((False,), OUTPUTS),
    "output_logits": ((False,), OUTPUTS),
    "output_attentions": ((False,), OUTPUTS),
    "output_hidden_states": ((False,), OUTPUTS),
}

# The same, but no checkpoint has a say in it: arguments of the call alone, or of a way of decoding that is refused.
REFUSED_IF_ASKED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beam_groups": ((1,), BEAMS),
    "diversity_penalty": ((0, 0.0), BEAMS),
    "early_stopping": ((False,), BEAMS),
    "length_penalty": ((1, 1.0), BEAMS),
    "low_memory": ((False,), "contrastive search is not implemented"),
    "logits_processor": (([],), CALLABLES),
    "stopping_criteria": (([],), CALLABLES),
    "prefix_allowed_tokens_fn": ((), CALLABLES),
    "custom_generate": ((), CALLABLES),
    "assistant_model": ((), HELP),
    "assistant_tokenizer": ((), HELP),
    "negative_prompt_ids": ((), "classifier-free guidance is not implemented"),
    "negative_prompt_attention_mask": ((), "classifier-free guidance is not implemented"),
    "past_key_values": ((), "each call begins with a cache of its own"),
    "inputs_embeds": ((), "the prompt is text or ids; a trace can change model.transformer.wte.output, or its like"),
    "position_ids": ((), "positions follow from the attention_mask"),
    "synced_gpus": ((False,), "generation over several processes is not implemented"),
}

# What changes how tokens are computed, and not which: accepted.
WITHOUT_EFFECT = frozenset(
    "use_cache cache_implementation cache_config max_cache_len compile_config disable_compile prefill_chunk_size "
    "bos_token_id decoder_start_token_id".split()
)


class OptionError(ValueError):
    """An option of generation that cannot be followed: what was asked, and what to do instead."""


def check_names(asked: Mapping[str, Any], options: frozenset[str]) -> None:
    """Raise OptionError for a name that nobody knows, with those that are near.

    >>> check_names({"max_tokens": 3}, frozenset({"max_new_tokens"}))
    Traceback (most recent call last):
    nnzoo.generation.refusals.OptionError: generate() has no option 'max_tokens'; did you mean max_new_tokens?
    """
    known = options | REFUSED.keys() | REFUSED_IF_ASKED.keys() | WITHOUT_EFFECT
    for name in asked:
        if name not in known:
            near = get_close_matches(name, options, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(sorted(options))}"
            raise OptionError(f"generate() has no option {name!r}{hint}")


def refuse(asked: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Raise OptionError for what is known and not implemented, unless its value asks for nothing.

    >>> refuse({"num_beams": 1}, {})
    >>> refuse({"num_beams": 4}, {})
    Traceback (most recent call last):
    nnzoo.generation.refusals.OptionError: num_beams=4 is not implemented: there is no beam search here, ...
    """
    for name, (neutral, reason) in (REFUSED | REFUSED_IF_ASKED).items():
        value = asked.get(name)
        if value is not None and value not in neutral:
            raise OptionError(f"{name}={value!r} is not implemented: {reason}")
    for name, (neutral, reason) in REFUSED.items():
        value = checkpoint.get(name)
        if name not in asked and value is not None and value not in neutral:
            instead = f"pass {name}={neutral[0] if neutral else None} to generate without"
            raise OptionError(
                f"generation_config.json asks for {name}={value!r}, not implemented ({reason}); {instead}"
            )
