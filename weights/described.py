"""What transformers prints behind a module's class name: sizes, eps, the dropout of training."""

from collections.abc import Mapping
from typing import Any

from nnzoo.weights.config import Config

# the settings that hold each dropout's probability, and what transformers takes where config.json is silent
DROPOUTS = {
    "transformer.drop": ("embd_pdrop", 0.1),
    "transformer.h.{i}.attn.attn_dropout": ("attn_pdrop", 0.1),
    "transformer.h.{i}.attn.resid_dropout": ("resid_pdrop", 0.1),
    "transformer.h.{i}.mlp.dropout": ("resid_pdrop", 0.1),
}
ATTENTION_DROPOUT = ("attention_dropout", 0.0)  # of LLaMA and Mistral: a number, and no module


def extra_repr(
    path: str, kind: str, shapes: Mapping[str, tuple[int, ...]], config: Config, settings: Mapping[str, Any]
) -> str:
    """The text between the brackets of a module that has none of its own inside.

    `path` has "{i}" for the layer, `shapes` are those of its parameters, `settings` what config.json has beside the
    equations.

    >>> from nnzoo.weights.config import parse_config
    >>> config, settings = parse_config({"model_type": "gpt2", "embd_pdrop": 0.3})
    >>> extra_repr("lm_head", "Linear", {"weight": (97, 48)}, config, settings)
    'in_features=48, out_features=97, bias=False'
    >>> extra_repr("transformer.drop", "Dropout", {}, config, settings)
    'p=0.3, inplace=False'
    """
    match kind:
        case "Embedding":
            padding = None if path.startswith("transformer.") else settings.get("pad_token_id")
            n, d = shapes["weight"]
            return f"{n}, {d}" + (f", padding_idx={padding}" if padding is not None else "")
        case "Conv1D":
            return f"nf={shapes['weight'][1]}, nx={shapes['weight'][0]}"
        case "Linear":
            return f"in_features={shapes['weight'][1]}, out_features={shapes['weight'][0]}, bias={'bias' in shapes}"
        case "LayerNorm":
            return f"{shapes['weight']}, eps={config.eps}, elementwise_affine=True, bias=True"
        case "Dropout":
            return f"p={probability(*DROPOUTS[path], settings)}, inplace=False"
    return f"{shapes['weight']}, eps={config.eps}" if kind.endswith("RMSNorm") else ""


def sizes(kind: str, shapes: Mapping[str, tuple[int, ...]], config: Config, layer: int | None) -> dict[str, Any]:
    """The numbers that transformers keeps at a module as attributes: `lm_head.out_features`, `self_attn.head_dim`.

    >>> from nnzoo.weights.config import parse_config
    >>> config, _ = parse_config({"model_type": "gpt2", "n_embd": 48, "n_head": 4})
    >>> sizes("GPT2Attention", {}, config, layer=2)["head_dim"]
    12
    """
    if kind == "GPT2Model":
        return {"embed_dim": config.d_model}
    if kind.endswith("RMSNorm"):
        return {"variance_epsilon": config.eps}
    if kind.endswith("Attention"):
        at = {"layer_idx": layer, "head_dim": config.d_head}
        if kind == "GPT2Attention":
            return {**at, "num_heads": config.n_heads, "embed_dim": config.d_model, "split_size": config.d_model}
        return {**at, "num_key_value_groups": config.n_heads // config.n_kv_heads}
    names = {
        "Linear": ("out_features", "in_features"),
        "Conv1D": ("nx", "nf"),
        "Embedding": ("num_embeddings", "embedding_dim"),
    }
    found: dict[str, Any] = dict(zip(names.get(kind, ()), shapes.get("weight", ()), strict=False))
    return found | {"eps": config.eps, "normalized_shape": shapes["weight"]} if kind == "LayerNorm" else found


def probability(name: str, default: float, settings: Mapping[str, Any]) -> float:
    """One dropout's probability."""
    return settings.get(name, default)


def training_dropout(family: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """The dropouts that transformers applies when it trains such a checkpoint, by their settings; none: {}.

    >>> training_dropout("gpt2", {"embd_pdrop": 0.0}), training_dropout("llama", {})
    ({'attn_pdrop': 0.1, 'resid_pdrop': 0.1}, {})
    """
    asked = dict(DROPOUTS.values()) if family == "gpt2" else dict([ATTENTION_DROPOUT])
    found = {name: probability(name, default, settings) for name, default in asked.items()}
    return {name: p for name, p in found.items() if p}
