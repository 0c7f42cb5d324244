"""transformers' logits processors for some options, in the order in which its `generate` applies them.

transformers is imported only where one is wanted.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnzoo.generation.options import Options

Processor = Callable[[Int[Tensor, "batch total"], Float[Tensor, "batch d_vocab"]], Float[Tensor, "batch d_vocab"]]
StopCheck = Callable[[Int[Tensor, "batch total"], None], Bool[Tensor, "batch"]]
Wanted = Iterator[tuple[str, dict[str, Any]]]  # the name of a class, and what it is made with


def processors_of(
    options: Options, tokens: Int[Tensor, "batch pos"], attention_mask: Bool[Tensor, "batch pos"] | None
) -> list[Processor]:
    """What changes the logits of each step, one after the other; nothing for plain greedy decoding."""
    wanted = [
        *_of_the_text(options),
        *_of_the_end(options, tokens),
        *_of_tokens(options, tokens),
    ]
    wanted += _of_sampling(options, tokens) if options.do_sample else ()
    if options.renormalize_logits:
        wanted.append(("LogitNormalization", {}))
    if not wanted:
        return []
    from transformers.generation import logits_process

    made: dict[str, Processor] = {name: getattr(logits_process, name)(**settings) for name, settings in wanted}
    penalty = made.get("RepetitionPenaltyLogitsProcessor")
    if penalty is not None and attention_mask is not None:
        made["RepetitionPenaltyLogitsProcessor"] = _without_padding(penalty, attention_mask.int().argmax(dim=1))
    return [*made.values()]


def _without_padding(penalty: Processor, first: Int[Tensor, "batch"]) -> Processor:
    """A penalty for which padding is the row's first token once more, so that it forbids nothing that is not there."""

    def process(
        ids: Int[Tensor, "batch total"], scores: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        is_text = torch.arange(ids.shape[1], device=ids.device) >= first[:, None]
        return penalty(ids.where(is_text, ids.gather(1, first[:, None])), scores)

    return process


def stop_check_of(options: Options, tokenizer: Any) -> StopCheck | None:
    """What says which rows end with one of the stop strings; None where there are none."""
    if not options.stop_strings:
        return None
    if tokenizer is None:
        raise ValueError("stop_strings are looked for in text: pass the tokenizer")
    from transformers.generation.stopping_criteria import StopStringCriteria

    return StopStringCriteria(tokenizer=tokenizer, stop_strings=list(options.stop_strings))


def ends_of(options: Options, tokens: Tensor) -> Int[Tensor, "end"] | None:
    """The ids that end a row, where the tokens are."""
    return torch.tensor(options.eos_token_id, device=tokens.device) if options.eos_token_id else None


def _of_the_text(options: Options) -> Wanted:
    if options.sequence_bias is not None:
        yield "SequenceBiasLogitsProcessor", {"sequence_bias": options.sequence_bias}
    if options.repetition_penalty not in (None, 1):
        yield "RepetitionPenaltyLogitsProcessor", {"penalty": options.repetition_penalty}
    if options.no_repeat_ngram_size:
        yield "NoRepeatNGramLogitsProcessor", {"ngram_size": options.no_repeat_ngram_size}


def _of_the_end(options: Options, tokens: Tensor) -> Wanted:
    eos, n_pos, device = ends_of(options, tokens), tokens.shape[1], tokens.device
    if options.bad_words_ids is not None:
        words = [list(word) for word in options.bad_words_ids]
        yield "NoBadWordsLogitsProcessor", {"bad_words_ids": words, "eos_token_id": eos}
    if options.min_new_tokens and eos is not None:
        least = {"prompt_length_to_skip": n_pos, "min_new_tokens": options.min_new_tokens}
        yield "MinNewTokensLengthLogitsProcessor", {**least, "eos_token_id": eos, "device": device}
    if options.forced_bos_token_id is not None:
        yield "ForcedBOSTokenLogitsProcessor", {"bos_token_id": options.forced_bos_token_id}
    if options.forced_eos_token_id is not None:
        forced = torch.tensor(options.forced_eos_token_id, device=device).reshape(-1)
        length = n_pos + options.max_new_tokens
        yield "ForcedEOSTokenLogitsProcessor", {"max_length": length, "eos_token_id": forced, "device": device}
    if options.remove_invalid_values:
        yield "InfNanRemoveLogitsProcessor", {}
    if options.exponential_decay_length_penalty is not None:
        decay = {"exponential_decay_length_penalty": options.exponential_decay_length_penalty}
        yield "ExponentialDecayLengthPenalty", {**decay, "eos_token_id": eos, "input_ids_seq_length": n_pos}


def _of_tokens(options: Options, tokens: Tensor) -> Wanted:
    n_pos, device = tokens.shape[1], tokens.device
    if options.suppress_tokens is not None:
        ids = list(options.suppress_tokens)
        yield "SuppressTokensLogitsProcessor", {"suppress_tokens": ids, "device": device}
    if options.begin_suppress_tokens is not None:
        ids = list(options.begin_suppress_tokens)
        begin = n_pos if n_pos > 1 or options.forced_bos_token_id is None else n_pos + 1
        settings = {"begin_suppress_tokens": ids, "begin_index": begin}
        yield "SuppressTokensAtBeginLogitsProcessor", {**settings, "device": device}


def _of_sampling(options: Options, tokens: Tensor) -> Wanted:
    if options.temperature not in (None, 1):
        yield "TemperatureLogitsWarper", {"temperature": options.temperature}
    if options.top_h is not None:
        yield "TopHLogitsWarper", {"top_h": options.top_h}
    if options.top_k:
        yield "TopKLogitsWarper", {"top_k": options.top_k}
    if options.top_p is not None and options.top_p < 1:
        yield "TopPLogitsWarper", {"top_p": options.top_p}
    if options.min_p is not None:
        yield "MinPLogitsWarper", {"min_p": options.min_p}
    if options.typical_p is not None and options.typical_p < 1:
        yield "TypicalLogitsWarper", {"mass": options.typical_p}
    if options.epsilon_cutoff and options.epsilon_cutoff < 1:
        yield "EpsilonLogitsWarper", {"epsilon": options.epsilon_cutoff}
    if options.eta_cutoff and options.eta_cutoff < 1:
        yield "EtaLogitsWarper", {"epsilon": options.eta_cutoff, "device": tokens.device}
