"""Mistral: LLaMA with a sliding window. What it shares is in llama.py, what differs is here.

A query sees the last `window` tokens, itself included; further back it reaches through the layers below. Keys that
no later query can see leave the KV cache.

Paper: https://arxiv.org/abs/2310.06825
"""

from dataclasses import dataclass

from nnzoo.architectures.llama import Llama, LlamaConfig


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """What a Mistral checkpoint decides."""

    window: int | None  # None since version 0.2: every token before


class Mistral(Llama):
    """Token ids to logits."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.window = config.window
