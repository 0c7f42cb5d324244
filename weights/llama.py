"""LLaMA's checkpoints: settings and tensors.

Defaults are those of transformers' LlamaConfig, whose configs leave out what equals them.
"""

from typing import Any

from nnzoo.architectures.llama import Llama, LlamaConfig
from nnzoo.weights.families import Family
from nnzoo.weights.ropes import read_rope, write_rope
from nnzoo.weights.settings import FIXED, WITHOUT_EFFECT, Settings, reasons


def read(settings: Settings) -> LlamaConfig:
    read_layer_types(settings, "full_attention")
    return LlamaConfig(
        **read_shared(settings, n_ctx=2048, d_mlp=11008, n_kv_heads=None),
        attn_bias=settings.flag("attention_bias", False),
        mlp_bias=settings.flag("mlp_bias", False),
    )


def read_shared(settings: Settings, *, n_ctx: int, d_mlp: int, n_kv_heads: int | None) -> dict[str, Any]:
    """The fields that Mistral has too; the arguments are the defaults in which the two differ."""
    d_model = settings.integer("hidden_size", 4096)
    n_heads = settings.integer("num_attention_heads", 32)
    n_kv_heads = settings.optional_integer("num_key_value_heads", n_kv_heads) or n_heads
    n_ctx = settings.integer("max_position_embeddings", n_ctx)
    d_head = settings.optional_integer("head_dim") or d_model // n_heads
    if n_heads % n_kv_heads:
        raise settings.error(
            "num_attention_heads", n_heads, f"is not a multiple of 'num_key_value_heads' = {n_kv_heads}"
        )
    if d_head % 2 or not d_head:
        raise settings.error("head_dim", d_head, "is odd; rotary embedding turns pairs")
    return {
        "d_vocab": settings.integer("vocab_size", 32000),
        "n_ctx": n_ctx,
        "d_model": d_model,
        "n_layers": settings.integer("num_hidden_layers", 32),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_head": d_head,
        "d_mlp": settings.integer("intermediate_size", d_mlp),
        "activation": settings.activation("hidden_act", "silu"),
        "eps": settings.number("rms_norm_eps", 1e-6, positive=True),
        "rope": read_rope(settings, n_ctx),
        "tied": settings.flag("tie_word_embeddings", False),
    }


def read_layer_types(settings: Settings, expected: str) -> None:
    """Refuse blocks whose attention is not all of the kind that the other settings make it."""
    kinds = settings.words("layer_types")
    if any(kind != expected for kind in kinds):
        raise settings.error(
            "layer_types", kinds, f"is not implemented; the other settings make every layer {expected!r}"
        )


def write(config: LlamaConfig) -> dict[str, Any]:
    return write_shared(config) | {"attention_bias": config.attn_bias, "mlp_bias": config.mlp_bias}


def write_shared(config: LlamaConfig) -> dict[str, Any]:
    """The settings that Mistral has too."""
    return {
        "vocab_size": config.d_vocab,
        "max_position_embeddings": config.n_ctx,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_mlp,
        "hidden_act": config.activation,
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tied,
        **write_rope(config.rope),
    }


LLAMA_WITHOUT_EFFECT = WITHOUT_EFFECT | reasons(
    # Megatron's way of summing a product in slices; transformers 5 has dropped it
    {"the same sums in another order": "pretraining_tp"}
)

LLAMA_TENSORS = {
    "model.embed_tokens.weight": "embed.weight",
    "model.layers.{i}.input_layernorm.weight": "blocks.{i}.ln1.weight",
    "model.layers.{i}.self_attn.q_proj.weight": "blocks.{i}.attn.q.weight",
    "model.layers.{i}.self_attn.q_proj.bias": "blocks.{i}.attn.q.bias",
    "model.layers.{i}.self_attn.k_proj.weight": "blocks.{i}.attn.k.weight",
    "model.layers.{i}.self_attn.k_proj.bias": "blocks.{i}.attn.k.bias",
    "model.layers.{i}.self_attn.v_proj.weight": "blocks.{i}.attn.v.weight",
    "model.layers.{i}.self_attn.v_proj.bias": "blocks.{i}.attn.v.bias",
    "model.layers.{i}.self_attn.o_proj.weight": "blocks.{i}.attn.out.weight",
    "model.layers.{i}.self_attn.o_proj.bias": "blocks.{i}.attn.out.bias",
    "model.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.ln2.weight",
    "model.layers.{i}.mlp.gate_proj.weight": "blocks.{i}.mlp.gate.weight",
    "model.layers.{i}.mlp.gate_proj.bias": "blocks.{i}.mlp.gate.bias",
    "model.layers.{i}.mlp.up_proj.weight": "blocks.{i}.mlp.up.weight",
    "model.layers.{i}.mlp.up_proj.bias": "blocks.{i}.mlp.up.bias",
    "model.layers.{i}.mlp.down_proj.weight": "blocks.{i}.mlp.down.weight",
    "model.layers.{i}.mlp.down_proj.bias": "blocks.{i}.mlp.down.bias",
    "model.norm.weight": "ln_final.weight",
    "lm_head.weight": "unembed.weight",
}

LLAMA_NO_WEIGHTS = {
    "model.layers.{i}.self_attn.rotary_emb.inv_freq": "rotary frequencies, which config.json decides",
    "model.rotary_emb.inv_freq": "rotary frequencies, which config.json decides",
}

LLAMA_FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    model=Llama,
    config=LlamaConfig,
    read=read,
    write=write,
    without_effect=LLAMA_WITHOUT_EFFECT,
    fixed=FIXED | {"sliding_window": (None, "that is Mistral's: its model_type is 'mistral'")},
    prefix="model.",
    tensors=LLAMA_TENSORS,
    no_weights=LLAMA_NO_WEIGHTS,
)
