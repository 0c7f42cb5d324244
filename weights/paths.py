"""Hugging Face's module paths: for each, which hook points hold what goes into the module and what comes out.

One table a family, in the order of transformers' `named_modules()`; "{i}" stands for the layer.
"""

from dataclasses import dataclass, replace
from typing import Literal

from nnzoo.weights.config import Config, family_of

Record = Literal["tensor", "block", "tuple", "base", "logits"]


@dataclass(frozen=True)
class Value:
    """One tensor of a module's input or output."""

    hook: str  # "blocks.{i}.attn.hook_z", "{i}" for the layer
    view: str | None = None  # einops pattern from the hook point's shape to Hugging Face's


@dataclass(frozen=True)
class ModulePath:
    """A module of transformers' model, and where its values are in ours.

    `record` says how `.output` answers: "tensor"; "block", a tuple (hidden,) or the bare tensor, by LanguageModel's
    `block_output`; "tuple"; "base", which has `.last_hidden_state`; "logits", a tensor that also answers `.logits`.
    Containers that are never called have neither input nor output. `keyword` is the name under which transformers
    passes the input, where it does not pass it by position.
    """

    kind: str  # Hugging Face's class name, for print(model)
    input: Value | None
    output: Value | tuple[Value, ...] | None
    record: Record = "tensor"
    keyword: str | None = None


def at(hook: str, view: str | None = None) -> Value:
    """A value at a hook point; one that starts with a dot is in the block."""
    return Value(f"blocks.{{i}}{hook}" if hook.startswith(".") else hook, view)


def same(kind: str, hook: str) -> ModulePath:
    """A module that does nothing here: dropout, when nobody trains."""
    return ModulePath(kind, at(hook), at(hook))


MERGED = "b p h d_head -> b p (h d_head)"

# The pattern stands in `attn_dropout`'s place; transformers calls that module only under reorder_and_upcast_attn.
GPT2_PATHS = {
    "": ModulePath("GPT2LMHeadModel", at("hook_tokens"), at("unembed.hook_out"), "logits", keyword="input_ids"),
    "transformer": ModulePath("GPT2Model", at("hook_tokens"), at("ln_final.hook_out"), "base"),
    "transformer.wte": ModulePath("Embedding", at("hook_tokens"), at("hook_embed")),
    "transformer.wpe": ModulePath("Embedding", at("hook_positions"), at("hook_pos_embed")),
    "transformer.drop": same("Dropout", "blocks.0.hook_resid_pre"),
    "transformer.h": ModulePath("ModuleList", None, None),
    "transformer.h.{i}": ModulePath("GPT2Block", at(".hook_resid_pre"), at(".hook_resid_post"), "block"),
    "transformer.h.{i}.ln_1": ModulePath("LayerNorm", at(".ln1.hook_in"), at(".ln1.hook_out")),
    "transformer.h.{i}.attn": ModulePath(
        "GPT2Attention", at(".ln1.hook_out"), (at(".hook_attn_out"), at(".attn.hook_pattern")), "tuple"
    ),
    "transformer.h.{i}.attn.c_attn": ModulePath("Conv1D", at(".ln1.hook_out"), at(".attn.hook_qkv")),
    "transformer.h.{i}.attn.c_proj": ModulePath("Conv1D", at(".attn.hook_z", MERGED), at(".hook_attn_out")),
    "transformer.h.{i}.attn.attn_dropout": same("Dropout", ".attn.hook_pattern"),
    "transformer.h.{i}.attn.resid_dropout": same("Dropout", ".hook_attn_out"),
    "transformer.h.{i}.ln_2": ModulePath("LayerNorm", at(".ln2.hook_in"), at(".ln2.hook_out")),
    "transformer.h.{i}.mlp": ModulePath("GPT2MLP", at(".ln2.hook_out"), at(".hook_mlp_out")),
    "transformer.h.{i}.mlp.c_fc": ModulePath("Conv1D", at(".ln2.hook_out"), at(".mlp.hook_pre")),
    "transformer.h.{i}.mlp.c_proj": ModulePath("Conv1D", at(".mlp.hook_post"), at(".hook_mlp_out")),
    "transformer.h.{i}.mlp.act": ModulePath("NewGELUActivation", at(".mlp.hook_pre"), at(".mlp.hook_post")),
    "transformer.h.{i}.mlp.dropout": same("Dropout", ".hook_mlp_out"),
    "transformer.ln_f": ModulePath("LayerNorm", at("ln_final.hook_in"), at("ln_final.hook_out")),
    "lm_head": ModulePath("Linear", at("unembed.hook_in"), at("unembed.hook_out")),
}


def llama_paths(name: str) -> dict[str, ModulePath]:
    """The table of LLaMA, or of a family whose classes have other names only.

    >>> llama_paths("Mistral")["model.layers.{i}.mlp"].kind
    'MistralMLP'
    """
    return {
        "": ModulePath(f"{name}ForCausalLM", at("hook_tokens"), at("unembed.hook_out"), "logits", keyword="input_ids"),
        "model": ModulePath(f"{name}Model", at("hook_tokens"), at("ln_final.hook_out"), "base", keyword="input_ids"),
        "model.embed_tokens": ModulePath("Embedding", at("hook_tokens"), at("hook_embed")),
        "model.layers": ModulePath("ModuleList", None, None),
        "model.layers.{i}": ModulePath(f"{name}DecoderLayer", at(".hook_resid_pre"), at(".hook_resid_post"), "block"),
        "model.layers.{i}.self_attn": ModulePath(
            f"{name}Attention",
            at(".ln1.hook_out"),
            (at(".hook_attn_out"), at(".attn.hook_pattern")),
            "tuple",
            keyword="hidden_states",
        ),
        "model.layers.{i}.self_attn.q_proj": ModulePath("Linear", at(".attn.hook_q_in"), at(".attn.hook_q", MERGED)),
        "model.layers.{i}.self_attn.k_proj": ModulePath("Linear", at(".attn.hook_k_in"), at(".attn.hook_k", MERGED)),
        "model.layers.{i}.self_attn.v_proj": ModulePath("Linear", at(".attn.hook_v_in"), at(".attn.hook_v", MERGED)),
        "model.layers.{i}.self_attn.o_proj": ModulePath("Linear", at(".attn.hook_z", MERGED), at(".hook_attn_out")),
        "model.layers.{i}.mlp": ModulePath(f"{name}MLP", at(".ln2.hook_out"), at(".hook_mlp_out")),
        "model.layers.{i}.mlp.gate_proj": ModulePath("Linear", at(".mlp.hook_gate_in"), at(".mlp.hook_pre")),
        "model.layers.{i}.mlp.up_proj": ModulePath("Linear", at(".mlp.hook_up_in"), at(".mlp.hook_pre_linear")),
        "model.layers.{i}.mlp.down_proj": ModulePath("Linear", at(".mlp.hook_post"), at(".hook_mlp_out")),
        "model.layers.{i}.mlp.act_fn": ModulePath("SiLUActivation", at(".mlp.hook_pre"), at(".mlp.hook_act")),
        "model.layers.{i}.input_layernorm": ModulePath(f"{name}RMSNorm", at(".ln1.hook_in"), at(".ln1.hook_out")),
        "model.layers.{i}.post_attention_layernorm": ModulePath(
            f"{name}RMSNorm", at(".ln2.hook_in"), at(".ln2.hook_out")
        ),
        "model.norm": ModulePath(f"{name}RMSNorm", at("ln_final.hook_in"), at("ln_final.hook_out")),
        "model.rotary_emb": ModulePath(
            f"{name}RotaryEmbedding", at("hook_embed"), (at("rotary.hook_cos"), at("rotary.hook_sin")), "tuple"
        ),
        "lm_head": ModulePath("Linear", at("unembed.hook_in"), at("unembed.hook_out")),
    }


PATHS: dict[str, dict[str, ModulePath]] = {
    "gpt2": GPT2_PATHS,
    "llama": llama_paths("Llama"),
    "mistral": llama_paths("Mistral"),
}

# Which module of ours a Hugging Face path is: those without tensors of their own, which the family's table has
LLAMA_MODULES = {
    "": "",
    "model.layers": "blocks",
    "model.layers.{i}": "blocks.{i}",
    "model.layers.{i}.self_attn": "blocks.{i}.attn",
    "model.layers.{i}.mlp": "blocks.{i}.mlp",
    "model.rotary_emb": "rotary",
}
MODULES: dict[str, dict[str, str]] = {
    "gpt2": {
        "": "",
        "transformer.h": "blocks",
        "transformer.h.{i}": "blocks.{i}",
        "transformer.h.{i}.attn": "blocks.{i}.attn",
        "transformer.h.{i}.mlp": "blocks.{i}.mlp",
    },
    "llama": LLAMA_MODULES,
    "mistral": LLAMA_MODULES,
}

# transformers' classes of the activation functions
ACTIVATION_KINDS = {
    "gelu": "GELUActivation",
    "gelu_new": "NewGELUActivation",
    "gelu_pytorch_tanh": "GELUTanh",
    "relu": "ReLU",
    "silu": "SiLUActivation",
    "swish": "SiLU",
}


def paths_of(config: Config) -> dict[str, ModulePath]:
    """The family's table, with the class name of the activation function that the config names.

    >>> from nnzoo.weights.config import parse_config
    >>> config, _ = parse_config({"model_type": "gpt2", "activation_function": "relu"})
    >>> paths_of(config)["transformer.h.{i}.mlp.act"].kind
    'ReLU'
    """
    act = ACTIVATION_KINDS[config.activation]
    return {
        path: replace(module, kind=act) if path.endswith((".act", ".act_fn")) else module
        for path, module in PATHS[family_of(config).name].items()
    }


def modules_of(config: Config) -> dict[str, str]:
    """The module of ours that each Hugging Face path is; the base model, dropout and activations are none.

    >>> from nnzoo.weights.config import parse_config
    >>> config, _ = parse_config({"model_type": "gpt2"})
    >>> modules_of(config)["transformer.h.{i}.attn.c_attn"]
    'blocks.{i}.attn.qkv'
    """
    family = family_of(config)
    leaves = {theirs.rpartition(".")[0]: ours.rpartition(".")[0] for theirs, ours in family.tensors.items()}
    return MODULES[family.name] | leaves
