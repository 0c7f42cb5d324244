"""GPT-2's checkpoints: settings and tensors.

Defaults are those of transformers' GPT2Config, whose configs leave out what equals them.
"""

from typing import Any

from nnzoo.architectures.gpt2 import GPT2, GPT2Config
from nnzoo.weights.families import Family
from nnzoo.weights.settings import FIXED, WITHOUT_EFFECT, Settings, reasons

# transformers lets a GPT-2 config use LLaMA's names too
ALIASES = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}


def read(settings: Settings) -> GPT2Config:
    d_model = _integer(settings, "n_embd", 768)
    n_heads = _integer(settings, "n_head", 12)
    if d_model % n_heads:
        raise settings.error(
            "n_embd", d_model, f"is not a multiple of 'n_head' = {n_heads}; GPT-2's heads share it out"
        )
    return GPT2Config(
        d_vocab=settings.integer("vocab_size", 50257),
        n_ctx=_integer(settings, "n_positions", 1024),
        d_model=d_model,
        n_layers=_integer(settings, "n_layer", 12),
        n_heads=n_heads,
        d_mlp=settings.optional_integer("n_inner") or 4 * d_model,
        activation=settings.activation("activation_function", "gelu_new"),
        eps=settings.number("layer_norm_epsilon", 1e-5, positive=True),
        scale_scores=settings.flag("scale_attn_weights", True),
        scale_by_layer=settings.flag("scale_attn_by_inverse_layer_idx", False),
        tied=settings.flag("tie_word_embeddings", True),
    )


def write(config: GPT2Config) -> dict[str, Any]:
    return {
        "vocab_size": config.d_vocab,
        "n_positions": config.n_ctx,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.eps,
        "scale_attn_weights": config.scale_scores,
        "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
        "tie_word_embeddings": config.tied,
    }


def _integer(settings: Settings, key: str, default: int) -> int:
    settings.same(key, ALIASES[key])
    return settings.integer(key, settings.integer(ALIASES[key], default))


GPT2_FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    model=GPT2,
    config=GPT2Config,
    read=read,
    write=write,
    without_effect=WITHOUT_EFFECT
    | reasons(
        {
            "only in training": "resid_pdrop embd_pdrop attn_pdrop",
            "another head than the language model's": "summary_type summary_use_proj summary_activation "
            "summary_proj_to_labels summary_first_dropout",
            "n_positions is what counts": "n_ctx",
            # transformers' default kernel leaves it aside too, and our softmax is in float32 at least
            "how scores are rounded in half precision": "reorder_and_upcast_attn",
        }
    ),
    fixed=FIXED,
    prefix="transformer.",
    tensors={
        "transformer.wte.weight": "embed.weight",
        "transformer.wpe.weight": "pos_embed.weight",
        "transformer.h.{i}.ln_1.weight": "blocks.{i}.ln1.weight",
        "transformer.h.{i}.ln_1.bias": "blocks.{i}.ln1.bias",
        "transformer.h.{i}.attn.c_attn.weight": "blocks.{i}.attn.qkv.weight",
        "transformer.h.{i}.attn.c_attn.bias": "blocks.{i}.attn.qkv.bias",
        "transformer.h.{i}.attn.c_proj.weight": "blocks.{i}.attn.out.weight",
        "transformer.h.{i}.attn.c_proj.bias": "blocks.{i}.attn.out.bias",
        "transformer.h.{i}.ln_2.weight": "blocks.{i}.ln2.weight",
        "transformer.h.{i}.ln_2.bias": "blocks.{i}.ln2.bias",
        "transformer.h.{i}.mlp.c_fc.weight": "blocks.{i}.mlp.up.weight",
        "transformer.h.{i}.mlp.c_fc.bias": "blocks.{i}.mlp.up.bias",
        "transformer.h.{i}.mlp.c_proj.weight": "blocks.{i}.mlp.down.weight",
        "transformer.h.{i}.mlp.c_proj.bias": "blocks.{i}.mlp.down.bias",
        "transformer.ln_f.weight": "ln_final.weight",
        "transformer.ln_f.bias": "ln_final.bias",
        "lm_head.weight": "unembed.weight",
    },
    no_weights={
        "transformer.h.{i}.attn.bias": "the causal mask",
        "transformer.h.{i}.attn.masked_bias": "what masked scores were filled with",
    },
)
