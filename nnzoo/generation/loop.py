"""The loop: a model, a KV cache, and a decoder that chooses."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.generation.decoder import Decoder
from nnzoo.generation.options import Options
from nnzoo.generation.recorded import recorded
from nnzoo.generation.steps import next_logits
from nnzoo.generation.streaming import streamed


@torch.no_grad()
def generate(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Bool[Tensor, "batch pos"] | None = None,
    *,
    checkpoint: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    streamer: Any = None,
    **options: Any,
) -> Int[Tensor, "row total"]:
    """The prompts' ids followed by new ones, by the options of transformers' `generate` (see `Options`).

    `checkpoint` is what a generation_config.json says, for what is not asked; without it decoding is greedy and does
    not end early. `tokenizer`, for stop strings, is the model's unless another is given. A `streamer` gets the prompts'
    ids by `put`, then each step's [batch], then `end()`.
    Raises OptionError for an option that cannot be followed, ContextLengthError where prompt and new tokens do not
    fit the model's context; both before anything runs.

    >>> from nnzoo.weights import load
    >>> model = load("nnzoo/tiny-gpt2")
    >>> ids = generate(model, model.to_tokens("The capital of France is"), max_new_tokens=1)
    >>> model.to_string(ids[0])
    'The capital of France is Paris'
    """
    settled = options_for(model, tokens, attention_mask, options, checkpoint or {})
    if settled.stop_strings and tokenizer is None:
        tokenizer = model.tokenizer
    decoder = Decoder(settled, tokens, attention_mask, tokenizer=tokenizer)
    with streamed(decoder, streamer):
        run(model, decoder)
    return decoder.ids


def options_for(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Bool[Tensor, "batch pos"] | None,
    asked: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
) -> Options:
    """The options of a call, checked against the prompts and the model's context and vocabulary."""
    padding = 0 if attention_mask is None else int((~attention_mask).sum(dim=-1).min())
    sizes = {"prompt_length": tokens.shape[1], "n_ctx": positions_of(model), "d_vocab": model.config.d_vocab}
    return Options.of(asked, checkpoint, padding=padding, **sizes)


def positions_of(model: HookedModel) -> int:
    """How many positions a model has, as far as its rotary embedding is stretched."""
    rope = getattr(model.config, "rope", None)
    return model.config.n_ctx if rope is None else rope.reach(model.config.n_ctx)


def run(model: HookedModel, decoder: Decoder) -> None:
    """Let the decoder choose, until it is done."""
    cache, tokens, mask = model.new_cache(), decoder.tokens, decoder.attention_mask
    alone = type(decoder) is Decoder and decoder.stream is None
    steps = recorded(model, cache, decoder.options.max_new_tokens, alone=alone)
    follow = next_logits if steps is None else steps.next_logits
    # a tenth faster, but what a hook keeps of it could not take part in a loss
    mode = torch.no_grad if any(point.hooks for point in model.hook_points.values()) else torch.inference_mode
    while not decoder.done:
        with mode():
            logits = follow(model, tokens, mask, cache)
        tokens, mask = decoder.choose(logits)[:, None], None  # what was generated is no padding
