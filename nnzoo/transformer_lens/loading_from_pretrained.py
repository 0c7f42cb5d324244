"""From names and configs of TransformerLens's users to models of nnzoo, and back to their config."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from nnzoo import arguments
from nnzoo.architectures.gpt2 import GPT2Config
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.llama import LlamaConfig
from nnzoo.transformer_lens.HookedTransformerConfig import HookedTransformerConfig
from nnzoo.weights.checkpoint import Checkpoint, load_tokenizer, open_checkpoint
from nnzoo.weights.config import Config, family_of
from nnzoo.weights.hub import resolve

ALIASES = {
    "gpt2": ["gpt2-small"],
    "distilgpt2": ["distillgpt2", "distill-gpt2", "distil-gpt2", "gpt2-xs"],
    "stanford-crfm/alias-gpt2-small-x21": ["stanford-gpt2-small-a", "gpt2-mistral-small-a", "gpt2-stanford-small-a"],
    "stanford-crfm/battlestar-gpt2-small-x49": ["stanford-gpt2-small-b", "gpt2-mistral-small-b"],
    "stanford-crfm/caprica-gpt2-small-x81": ["stanford-gpt2-small-c", "gpt2-mistral-small-c", "gpt2-stanford-small-c"],
    "stanford-crfm/darkmatter-gpt2-small-x343": ["stanford-gpt2-small-d", "gpt2-mistral-small-d"],
    "stanford-crfm/expanse-gpt2-small-x777": ["stanford-gpt2-small-e", "gpt2-mistral-small-e"],
    "stanford-crfm/arwen-gpt2-medium-x21": ["stanford-gpt2-medium-a", "gpt2-stanford-medium-a"],
    "stanford-crfm/beren-gpt2-medium-x49": ["stanford-gpt2-medium-b", "gpt2-stanford-medium-b"],
    "stanford-crfm/celebrimbor-gpt2-medium-x81": ["stanford-gpt2-medium-c"],
    "stanford-crfm/durin-gpt2-medium-x343": ["stanford-gpt2-medium-d", "gpt2-stanford-medium-d"],
    "stanford-crfm/eowyn-gpt2-medium-x777": ["stanford-gpt2-medium-e", "gpt2-stanford-medium-e"],
    "meta-llama/Llama-2-7b-hf": ["Llama-2-7b"],
    "meta-llama/Llama-2-7b-chat-hf": ["Llama-2-7b-chat"],
    "meta-llama/Llama-2-13b-hf": ["Llama-2-13b"],
    "meta-llama/Llama-2-13b-chat-hf": ["Llama-2-13b-chat"],
    "meta-llama/Llama-2-70b-chat-hf": ["Llama-2-70b-chat", "meta-llama-2-70b-chat-hf"],
    "codellama/CodeLlama-7b-hf": ["CodeLlamallama-2-7b"],
    "codellama/CodeLlama-7b-Python-hf": ["CodeLlama-7b-python"],
    "codellama/CodeLlama-7b-Instruct-hf": ["CodeLlama-7b-instruct"],
    "mistralai/Mistral-7B-v0.1": ["mistral-7b"],
    "mistralai/Mistral-7B-Instruct-v0.1": ["mistral-7b-instruct"],
    "mistralai/Mistral-Nemo-Base-2407": ["mistral-nemo-base-2407"],
}
OFFICIAL = {alias.lower(): name for name, aliases in ALIASES.items() for alias in aliases}


def get_official_model_name(model_name: str) -> str:
    """The Hub's id behind one of TransformerLens's aliases; any other name or folder as it is.

    >>> get_official_model_name("gpt2-small"), get_official_model_name("nnzoo/tiny-gpt2")
    ('gpt2', 'nnzoo/tiny-gpt2')
    """
    return OFFICIAL.get(str(model_name).lower(), str(model_name))


def get_pretrained_model_config(
    model_name: str, *, fold_ln: bool = False, device: Any = None, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> HookedTransformerConfig:
    """The config of a checkpoint by TransformerLens's names; no weights are read.

    >>> get_pretrained_model_config("nnzoo/tiny-llama").positional_embedding_type
    'rotary'
    """
    default_prepend_bos = kwargs.pop("default_prepend_bos", None)
    checkpoint = open_checkpoint(get_official_model_name(model_name), **access_of(kwargs))
    cfg = cfg_of(checkpoint.config, str(model_name), fold_ln=fold_ln, device=device, dtype=dtype)
    cfg.default_prepend_bos = True if default_prepend_bos is None else default_prepend_bos
    return cfg


def open_pretrained(model_name: str | Path, kwargs: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of an alias, an id of the Hub or a folder."""
    known = Path(model_name).expanduser().is_dir()
    return open_checkpoint(model_name if known else get_official_model_name(str(model_name)), **access_of(kwargs))


def load_named_tokenizer(name: str) -> Any:
    """The tokenizer of an alias, an id of the Hub or a folder; no weights are downloaded."""
    return load_tokenizer(resolve(get_official_model_name(name), weights=False))


def access_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What `from_pretrained` passes on about the Hub. Raises TypeError for an argument that is not followed."""
    access = {n: v for n, v in kwargs.items() if n in ("revision", "cache_dir", "token", "local_files_only")}
    for name, value in kwargs.items():
        if name in access or arguments.without_effect(name, value) or value in (None, False):
            continue
        why = arguments.REFUSED.get(name, "it is none of HookedTransformer's arguments here")
        raise TypeError(f"from_pretrained takes no {name}={value!r:.60}: {why}")
    return access


def load_in_memory(hf_model: Any, dtype: torch.dtype) -> HookedModel:
    """Nnzoo's model of a transformers model that is in memory."""
    with TemporaryDirectory() as folder:  # what transformers itself writes: no second table of tensor names
        hf_model.save_pretrained(folder)
        native = open_checkpoint(folder).load(dtype=dtype)
        for parameter in native.parameters():
            parameter.data = parameter.data.clone()  # the mapped file goes with the folder
    return native


def cfg_of(
    config: Config, name: str, *, fold_ln: bool, device: Any = None, dtype: torch.dtype = torch.float32
) -> HookedTransformerConfig:
    """A config by TransformerLens's names."""
    sizes: dict[str, Any] = {
        n: getattr(config, n) for n in ("d_model", "d_head", "n_layers", "n_ctx", "n_heads", "d_mlp", "d_vocab")
    }
    family: dict[str, Any] = {
        "original_architecture": family_of(config).architecture,
        "tokenizer_name": name,
        "init_weights": False,
    }
    shared: dict[str, Any] = {
        "eps": config.eps,
        "act_fn": config.activation,
        "model_name": name.rstrip("/").split("/")[-1],
    }
    own = _gpt2(config) if isinstance(config, GPT2Config) else _llama(config)
    if fold_ln:
        own["normalization_type"] += "Pre"
    return HookedTransformerConfig(**sizes, **family, **shared, **own, device=device, dtype=dtype)


def _gpt2(config: GPT2Config) -> dict[str, Any]:
    return {
        "normalization_type": "LN",
        "use_attn_scale": config.scale_scores,
        "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
    }


def _llama(config: LlamaConfig) -> dict[str, Any]:
    window = getattr(config, "window", None)
    return {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_base": config.rope.theta,
        "n_key_value_heads": None if config.n_kv_heads == config.n_heads else config.n_kv_heads,
        "gated_mlp": True,
        "final_rms": True,
        "use_local_attn": window is not None,
        "window_size": window,
        "attn_types": None if window is None else ["local"] * config.n_layers,
    }


def cut(native: Any, first_n_layers: int | None, n_ctx: int | None) -> HookedModel:
    """A model's first blocks, and another number of positions, as far as the model has them."""
    if first_n_layers is not None:
        native.blocks = native.blocks[:first_n_layers]
        native.config = replace(native.config, n_layers=len(native.blocks))
    if n_ctx is not None:
        if isinstance(native.config, GPT2Config):
            if n_ctx > native.config.n_ctx:
                raise ValueError(f"n_ctx={n_ctx}, but the model has learned {native.config.n_ctx} positions")
            native.pos_embed.weight = nn.Parameter(native.pos_embed.weight.detach()[:n_ctx])
        native.config = replace(native.config, n_ctx=n_ctx)
    if first_n_layers is not None or n_ctx is not None:
        native.setup()
    return native


def untie(native: Any) -> HookedModel:
    """An unembedding of its own: in TransformerLens a change of W_E leaves W_U as it is."""
    if native.config.tied:
        native.config = replace(native.config, tied=False)
        native.unembed.weight = nn.Parameter(native.embed.weight.detach().clone())
    return native
