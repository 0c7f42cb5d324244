"""Tiny Hugging Face folders of every family and setting, and both models read from each.

Weights are drawn uniform(-1, 1): at the default initialisation a dropped bias or the wrong norm hides below the
tolerance. Sizes differ from each other wherever two could be mixed up.
"""

import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.weights import load

logging.set_verbosity_error()  # it warns of unusual settings, which are the point here
logging.disable_progress_bar()

D_VOCAB, N_CTX = 97, 64
ENDS = {"bos_token_id": 0, "eos_token_id": 1}

CLASSES = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}
GROUPED = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BASE = {
    "gpt2": {"vocab_size": D_VOCAB, "n_positions": N_CTX, "n_embd": 48, "n_layer": 3, "n_head": 4},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 7},
}


def rope(kind: str, theta: float = 10000.0, **settings: float | bool) -> dict:
    """The `rope_parameters` of a config.

    >>> rope("linear", factor=3.0)
    {'rope_parameters': {'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 3.0}}
    """
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **settings}}


def yarn(original: int, factor: float = 4.0, theta: float = 100.0, **settings: float | bool) -> dict:
    return rope("yarn", theta, factor=factor, original_max_position_embeddings=original, **settings)


ROPES = {
    "rope=theta_5e5": rope("default", 5e5),
    "rope=linear": rope("linear", factor=3.0),
    "rope=dynamic": rope("dynamic", factor=2.5),
    # of six pairs one is kept, one blended, four divided
    "rope=llama3": rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "rope=yarn": yarn(40),
    "rope=yarn_betas": yarn(40, beta_fast=4.0, beta_slow=0.5),
    "rope=yarn_untruncated": yarn(40, beta_fast=4.0, truncate=False),
    "rope=yarn_attention_factor": yarn(40, attention_factor=0.7),
    "rope=yarn_mscale": yarn(40, mscale=0.8, mscale_all_dim=1.3),
    "rope=yarn_ramp_past_the_last_pair": yarn(4096, theta=20.0),
    "rope=yarn_step": yarn(5),
}
SETTINGS = {
    "gpt2": {
        "default": {},
        "act=gelu": {"activation_function": "gelu"},
        "act=relu": {"activation_function": "relu"},
        "act=silu": {"activation_function": "silu"},
        "act=gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
        "n_inner=100": {"n_inner": 100},
        "inverse_layer_scale": {"scale_attn_by_inverse_layer_idx": True},
        "unscaled": {"scale_attn_weights": False},
        "unscaled_but_by_layer": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        "upcast": {"reorder_and_upcast_attn": True},
        "untied": {"tie_word_embeddings": False},
        "eps=0.3": {"layer_norm_epsilon": 0.3},
        "n_heads=1": {"n_head": 1},
        "n_ctx=256": {"n_positions": 256},
        "odd_sizes": {"n_embd": 33, "n_head": 3, "n_inner": 51, "vocab_size": 101, "n_positions": 43},
    },
    "llama": {
        "default": {},
        "n_kv_heads=1": {"num_key_value_heads": 1},
        "n_kv_heads=4": {"num_key_value_heads": 4},
        "head_dim=10": {"head_dim": 10},
        "head_dim=16": {"head_dim": 16},
        "attention_bias": {"attention_bias": True},
        "mlp_bias": {"mlp_bias": True},
        "tied": {"tie_word_embeddings": True},
        "n_ctx=256": {"max_position_embeddings": 256},
        "act=gelu": {"hidden_act": "gelu"},
        "act=gelu_new": {"hidden_act": "gelu_new"},
        "act=relu": {"hidden_act": "relu"},
        "eps=0.3": {"rms_norm_eps": 0.3},
        **ROPES,
    },
    "mistral": {
        "window=7": {},
        "window=1": {"sliding_window": 1},
        "window=3": {"sliding_window": 3},
        "window=64": {"sliding_window": 64},
        "window=null": {"sliding_window": None},
        "n_ctx=256": {"sliding_window": 3, "max_position_embeddings": 256},
        "head_dim=16": {"head_dim": 16},
        "n_kv_heads=1": {"num_key_value_heads": 1},
        "eps=0.3": {"rms_norm_eps": 0.3},
        "rope=linear": rope("linear", factor=3.0),
    },
}
PLAIN = [("gpt2", "default"), ("llama", "default"), ("mistral", "window=7")]  # one of each family
BIASED = [("gpt2", "default"), ("llama", "attention_bias"), ("mistral", "window=3")]


def ids(pairs: Iterable[tuple[str, str]]) -> pytest.MarkDecorator:
    """Parametrise a test by family and setting, with ids such as [llama-n_kv_heads=1]."""
    return pytest.mark.parametrize(("family", "setting"), [pytest.param(f, s, id=f"{f}-{s}") for f, s in pairs])


def settings_of(*families: str) -> list[tuple[str, str]]:
    """Every (family, setting) of some families; of all, if none is named."""
    return [(family, setting) for family in families or SETTINGS for setting in SETTINGS[family]]


@cache
def _home() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="nnzoo-tests-")  # goes with the process


@cache
def folder(family: str, setting: str) -> Path:
    """A float64 checkpoint, as `save_pretrained` writes it."""
    config_class, model_class = CLASSES[family]
    config = config_class(**ENDS, **{**BASE[family], **SETTINGS[family][setting]})
    model = model_class(config).to(torch.float64)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -1, 1, generator=generator)
    path = Path(_home().name) / family / setting
    model.save_pretrained(path)
    return path


@cache
def ours(family: str, setting: str, dtype: torch.dtype = torch.float64) -> HookedModel:
    """nnzoo's model, read from the folder; shared between tests, so leave no hooks on it."""
    return load(folder(family, setting), dtype=dtype).eval()


@cache
def theirs(family: str, setting: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> PreTrainedModel:
    """transformers' model, read from the same folder."""
    model_class = CLASSES[family][1]
    path = folder(family, setting)
    return model_class.from_pretrained(path, dtype=dtype, attn_implementation=attention).eval()


def prompt(*shape: int, d_vocab: int = D_VOCAB) -> Tensor:
    """Random token ids of a shape."""
    return torch.randint(0, d_vocab, shape, generator=torch.Generator().manual_seed(2))


def in_full(error: BaseException) -> str:
    """What an error says, with its notes, which Python has from 3.11 on.

    >>> in_full(ValueError("no such layer"))
    'no such layer'
    """
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def error(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of b; infinite values must be the same.

    >>> error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0]))
    0.2
    """
    assert a.shape == b.shape
    finite = b.isfinite()
    assert torch.equal(a[~finite], b[~finite]), "infinite or NaN where the other is not"
    a, b = a[finite].double(), b[finite].double()
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-300)).item() if len(b) else 0.0
