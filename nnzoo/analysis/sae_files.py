"""Autoencoders from folders in the layout of SAELens: cfg.json and sae_weights.safetensors.

Every setting and every tensor is accounted for; what is not implemented is refused by name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nnzoo.analysis.sae import SAE, SAEConfig

PLAIN = {"W_enc", "b_enc", "W_dec", "b_dec"}
ARCHITECTURES = {  # by SAELens's names, with the tensors that each has
    "standard": PLAIN,
    "gated": {"W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"},
    "jumprelu": PLAIN | {"threshold"},
    "topk": PLAIN,
    "transcoder": PLAIN,
    "skip_transcoder": PLAIN | {"W_skip"},
    "jumprelu_transcoder": PLAIN | {"threshold"},
}
NORMALIZED = ("none", "layer_norm", "constant_norm_rescale")
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def load_sae(folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """An autoencoder or transcoder that SAELens saved, of version 6 or before.

    Architectures "standard", "gated", "jumprelu", "topk", "transcoder", "skip_transcoder" and "jumprelu_transcoder".
    Raises FileNotFoundError for a folder without the two files, ValueError for a setting or a tensor that is not known.

    >>> load_sae("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: no/such/folder has no cfg.json and no sae_weights.safetensors: it is no autoencoder ...
    """
    folder = Path(folder)
    missing = [name for name in (CFG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {' and no '.join(missing)}: it is no autoencoder saved by SAELens")
    config = config_of(json.loads((folder / CFG).read_text()))
    weights = load_file(folder / WEIGHTS, device=str(device))
    if "scaling_factor" in weights and bool((weights["scaling_factor"] == 1).all()):
        del weights["scaling_factor"]  # old folders have one that scales nothing
    _check(config, weights)
    return SAE(config, {name: value.to(dtype) if dtype else value for name, value in weights.items()})


def config_of(given: Mapping[str, Any]) -> SAEConfig:
    """A cfg.json, of version 6 (with a "metadata" part) or before."""
    cfg = {**given, **given.get("metadata", {})}
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    k = cfg.get("k", (cfg.get("activation_fn_kwargs") or {}).get("k"))
    architecture = "topk" if activation == "topk" else cfg.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is not implemented; nnzoo knows {', '.join(ARCHITECTURES)}")
    if activation not in ("relu", "topk") or (architecture == "topk") != (k is not None):
        raise ValueError(f"activation {activation!r} with k={k} is not implemented for {architecture!r}")
    if cfg.get("finetuning_scaling_factor"):
        raise ValueError("finetuning_scaling_factor is not implemented")
    hook_in = cfg.get("hook_name", cfg.get("hook_point"))
    if hook_in is None:
        raise ValueError("cfg.json has no hook_name: it does not say what the autoencoder reads")
    transcoder = architecture.endswith("transcoder")
    return SAEConfig(
        architecture=architecture,
        d_in=cfg["d_in"],
        d_sae=cfg["d_sae"],
        d_out=cfg.get("d_out", cfg["d_in"]),
        hook_in=hook_in,
        hook_out=_hook_out(cfg, hook_in, transcoder),
        subtract_b_dec=bool(cfg.get("apply_b_dec_to_input", not transcoder)),
        normalize=_normalize(cfg.get("normalize_activations")),
        merge_heads=cfg.get("reshape_activations", "hook_z" if "hook_z" in hook_in else "none") == "hook_z",
        k=k,
        rescale_by_decoder=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
    )


def _hook_out(cfg: Mapping[str, Any], hook_in: str, transcoder: bool) -> str:
    if not transcoder:
        return hook_in
    if not cfg.get("hook_name_out"):
        raise ValueError("cfg.json has no hook_name_out: it does not say what the transcoder writes")
    if _normalize(cfg.get("normalize_activations")) != "none" or cfg.get("apply_b_dec_to_input"):
        raise ValueError("a transcoder with normalize_activations or apply_b_dec_to_input is not implemented")
    return str(cfg["hook_name_out"])


def _normalize(given: str | bool | None) -> str:
    name = given or "none"
    if name not in NORMALIZED:
        raise ValueError(
            f"normalize_activations {given!r} is not implemented; nnzoo knows {', '.join(NORMALIZED)}. A fixed scale "
            "can be folded into the weights: SAELens's fold_activation_norm_scaling_factor, and save again"
        )
    return str(name)


def _check(config: SAEConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the tensors are those of the architecture, of the sizes that the config says."""
    expected = ARCHITECTURES[config.architecture]
    if weights.keys() != expected:
        extra, missing = sorted(weights.keys() - expected), sorted(expected - weights.keys())
        raise ValueError(f"{WEIGHTS} of {config.architecture!r}: missing {missing}, not known {extra}")
    sizes = {"W_enc": (config.d_in, config.d_sae), "W_dec": (config.d_sae, config.d_out), "b_dec": (config.d_out,)}
    sizes["W_skip"] = (config.d_out, config.d_in)
    for name, value in weights.items():
        size = sizes.get(name, (config.d_sae,))
        if tuple(value.shape) != size:
            raise ValueError(f"{name} is {list(value.shape)}, but cfg.json says {list(size)}")
