"""Mistral's checkpoints: LLaMA's tensors, and a window among the settings.

Defaults are those of transformers' MistralConfig, whose configs leave out what equals them.
"""

from typing import Any

from nnzoo.architectures.mistral import Mistral, MistralConfig
from nnzoo.weights.families import Family
from nnzoo.weights.llama import (
    LLAMA_NO_WEIGHTS,
    LLAMA_TENSORS,
    LLAMA_WITHOUT_EFFECT,
    read_layer_types,
    read_shared,
    write_shared,
)
from nnzoo.weights.settings import FIXED, ConfigError, Settings


def read(settings: Settings) -> MistralConfig:
    window = settings.optional_integer("sliding_window", 4096)
    read_layer_types(settings, "full_attention" if window is None else "sliding_attention")
    return MistralConfig(
        **read_shared(settings, n_ctx=4096 * 32, d_mlp=14336, n_kv_heads=8),
        attn_bias=False,
        mlp_bias=False,
        window=window,
    )


def write(config: MistralConfig) -> dict[str, Any]:
    if config.attn_bias or config.mlp_bias:
        raise ConfigError("Mistral's config.json has no place for biases: save it as a LlamaConfig, without a window.")
    return write_shared(config) | {"sliding_window": config.window}


MISTRAL_FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    model=Mistral,
    config=MistralConfig,
    read=read,
    write=write,
    without_effect=LLAMA_WITHOUT_EFFECT,
    fixed=FIXED
    | {
        "attention_bias": (False, "transformers' Mistral has no biases"),
        "mlp_bias": (False, "transformers' Mistral has no biases"),
    },
    prefix="model.",
    tensors=LLAMA_TENSORS,
    no_weights=LLAMA_NO_WEIGHTS,
)
