"""From a HookedTransformerConfig of one's own to a model: a small one of nnzoo.architectures.toy, LLaMA or Mistral."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.llama import LlamaConfig
from nnzoo.architectures.mistral import MistralConfig
from nnzoo.architectures.rotary import Rope
from nnzoo.architectures.toy import TOY_ACTIVATIONS, Toy, ToyConfig
from nnzoo.transformer_lens.HookedTransformerConfig import HookedTransformerConfig
from nnzoo.transformer_lens.initialization import INIT_MODES
from nnzoo.weights.config import build

# fields of a config that name what no model has, with the values that do not ask for it
UNKNOWN: dict[str, tuple] = {
    "num_experts": (None,), "use_qk_norm": (False,), "clip_qkv": (None,),
    "use_logn_attn": (False,), "use_dynamic_ntk_rope": (False,), "ungroup_grouped_query_attention": (False,),
    "parallel_attn_mlp": (False,), "post_embedding_ln": (False,),
    "rotary_base_local": (None,), "rotary_scaling_factor": (1.0,), "rotary_adjacent_pairs": (False,),
    "load_in_4bit": (False,), "quantization_method": (None,), "n_devices": (1,),
    "relative_attention_max_distance": (None,), "relative_attention_num_buckets": (None,),
    "use_normalization_before_and_after": (False,), "attn_scores_soft_cap": (-1.0, None),
    "output_logits_soft_cap": (-1.0, None), "use_NTK_by_parts_rope": (False,), "use_yarn_rope": (False,),
    "use_attention_sinks": (False,), "init_mode": tuple(INIT_MODES),
}  # fmt: skip
TOY_HAS: dict[str, tuple] = {
    "normalization_type": ("LN", "LNPre", "RMS", "RMSPre", None),
    "positional_embedding_type": ("standard", "shortformer"),
    "attention_dir": ("causal", "bidirectional"),
    "n_key_value_heads": (None,),
    "use_local_attn": (False,),
}
LLAMA_HAS: dict[str, tuple] = {
    "normalization_type": ("RMS", "RMSPre"),
    "positional_embedding_type": ("rotary",),
    "attention_dir": ("causal",),
    "attn_only": (False,),
    "gated_mlp": (True,),
    "act_fn": ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
    "use_attn_scale": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}


def build_native(cfg: HookedTransformerConfig) -> HookedModel:
    """A model of a config. Raises NotImplementedError, by name, for what none has."""
    if cfg.d_vocab == -1:
        raise ValueError("d_vocab is not said, and there is no tokenizer that says it")
    _require(cfg, "nnzoo's models", UNKNOWN)
    with torch.random.fork_rng(devices=[]):  # its own weights are drawn anew: a seed gives those of TransformerLens
        model = _llama(cfg) if cfg.gated_mlp or cfg.positional_embedding_type == "rotary" else _toy(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model.to(dtype=cfg.dtype)


def _sizes(cfg: HookedTransformerConfig) -> dict[str, Any]:
    names = ("d_model", "n_layers", "n_ctx", "n_heads", "d_head", "d_mlp", "d_vocab", "eps")
    return {**{name: getattr(cfg, name) for name in names}, "activation": cfg.act_fn, "tied": False}


def _toy(cfg: HookedTransformerConfig) -> HookedModel:
    of_norm = {"final_rms": (False,)} if str(cfg.normalization_type).startswith("LN") else {}
    activations = {} if cfg.attn_only else {"act_fn": tuple(TOY_ACTIVATIONS)}
    _require(cfg, "a model without gates and rotary positions", {**TOY_HAS, **of_norm, **activations})
    choices: dict[str, Any] = {
        "d_mlp": None if cfg.attn_only else cfg.d_mlp,
        "norm": cfg.normalization_type and cfg.normalization_type.removesuffix("Pre"),
        "shortformer": cfg.positional_embedding_type == "shortformer",
        "causal": cfg.attention_dir == "causal",
        "scale": cfg.attn_scale if cfg.use_attn_scale else 1.0,
        "scale_by_layer": cfg.scale_attn_by_inverse_layer_idx,
    }
    return Toy(ToyConfig(**{**_sizes(cfg), **choices}, d_vocab_out=cfg.d_vocab_out))


def _llama(cfg: HookedTransformerConfig) -> HookedModel:
    of_sizes = {"rotary_dim": (cfg.d_head,), "d_vocab_out": (cfg.d_vocab,), "attn_scale": (cfg.d_head**0.5,)}
    _require(cfg, "a model with rotary positions or gates (LLaMA, Mistral)", {**LLAMA_HAS, **of_sizes})
    heads = {"n_kv_heads": cfg.n_key_value_heads or cfg.n_heads, "attn_bias": True, "mlp_bias": False}
    settings: dict[str, Any] = {**_sizes(cfg), **heads, "rope": Rope(theta=float(cfg.rotary_base))}
    if not cfg.use_local_attn:
        return build(LlamaConfig(**settings))
    _require(cfg, "a model with local attention (Mistral)", {"attn_types": (["local"] * cfg.n_layers,)})
    return build(MistralConfig(**settings, window=cfg.window_size))


def _require(cfg: HookedTransformerConfig, which: str, wanted: Mapping[str, tuple]) -> None:
    for name, allowed in wanted.items():
        if getattr(cfg, name) not in allowed:
            can = " or ".join(map(repr, allowed))
            raise NotImplementedError(
                f"{name}={getattr(cfg, name)!r} is not implemented: {which} can have {can}. "
                "A model with other equations is a HookedRootModule of your own"
            )
