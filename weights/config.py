"""From config.json to our config and back, and from our config to a model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nnzoo.architectures.gpt2 import GPT2Config
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.llama import LlamaConfig
from nnzoo.architectures.mistral import MistralConfig
from nnzoo.weights.families import Family
from nnzoo.weights.gpt2 import GPT2_FAMILY
from nnzoo.weights.llama import LLAMA_FAMILY
from nnzoo.weights.mistral import MISTRAL_FAMILY
from nnzoo.weights.settings import GENERATION, TOKEN_IDS, ConfigError, Settings, listed

Config = GPT2Config | LlamaConfig | MistralConfig

FAMILIES: dict[str, Family] = {family.name: family for family in (GPT2_FAMILY, LLAMA_FAMILY, MISTRAL_FAMILY)}


@dataclass(frozen=True)
class Origin:
    """What a checkpoint says beside the equations: kept for generation, and for saving the model again."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # of config.json, those without effect on the logits
    generation: Mapping[str, Any] = field(default_factory=dict)  # eos_token_id, temperature, ...


def read_config(folder: str | Path) -> Config:
    """The config of a checkpoint in a local folder.

    Every key of config.json is read, known to leave the forward pass as it is, or refused by name: ConfigError.
    FileNotFoundError where there is no config.json.

    >>> from nnzoo.weights import resolve
    >>> read_config(resolve("nnzoo/tiny-gpt2")).activation
    'gelu_new'
    """
    return parse_config(read_json(Path(folder) / "config.json"), f"config.json of {folder}")[0]


def parse_config(values: Mapping[str, Any], where: str = "config.json") -> tuple[Config, dict[str, Any]]:
    """Our config, and the settings that have no effect on the logits; `where` is what errors call the file.

    >>> config, rest = parse_config({"model_type": "gpt2", "n_layer": 2, "attn_pdrop": 0.1})
    >>> config.n_layers, config.d_model, rest
    (2, 768, {'model_type': 'gpt2', 'attn_pdrop': 0.1})
    """
    settings = Settings(values, where)
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise settings.error("model_type", name, f"is not implemented; nnzoo knows {listed(FAMILIES)}")
    settings.same("dtype", "torch_dtype")
    family = FAMILIES[name]
    config = family.read(settings)
    return config, settings.finish(family.without_effect, family.fixed)


def read_origin(folder: str | Path) -> Origin:
    """What a checkpoint in a local folder says beside the equations.

    `generation` is generation_config.json's, or, as in transformers, config.json's where there is no such file.
    ConfigError where what ends generation, or pads it, is no token id.
    """
    folder = Path(folder)
    _, settings = parse_config(read_json(folder / "config.json"), f"config.json of {folder}")
    if (folder / "generation_config.json").is_file():
        generation, file = read_json(folder / "generation_config.json"), "generation_config.json"
    else:
        reasons, kinds = FAMILIES[settings["model_type"]].without_effect, (TOKEN_IDS, GENERATION)
        generation, file = {key: value for key, value in settings.items() if reasons[key] in kinds}, "config.json"
    _check_ids(Settings(generation, f"{file} of {folder}"), generation)
    return Origin(settings, generation)


def _check_ids(settings: Settings, values: Mapping[str, Any]) -> None:
    """Refuse an end or a padding that is no token id; only the end may be several."""
    for key, complaint in (("eos_token_id", "is no token id, nor a list of them"), ("pad_token_id", "is no token id")):
        value = values.get(key)
        ids = value if key == "eos_token_id" and isinstance(value, list) else [] if value is None else [value]
        if any(type(each) is not int for each in ids):  # a bool is an int too
            raise settings.error(key, value, complaint)


def config_to_hf(config: Config) -> dict[str, Any]:
    """The config as config.json has it, in the spelling of transformers 5 and of those before.

    >>> config, _ = parse_config({"model_type": "llama"})
    >>> config_to_hf(config)["num_hidden_layers"], config_to_hf(config)["rope_parameters"]
    (32, {'rope_type': 'default', 'rope_theta': 10000.0})
    """
    family = family_of(config)
    return {"model_type": family.name, "architectures": [family.architecture], **family.write(config)}


def family_of(config: Config) -> Family:
    """The family that a config belongs to; TypeError for another object."""
    for family in FAMILIES.values():
        if type(config) is family.config:
            return family
    raise TypeError(f"{type(config).__name__} is no config of {listed(FAMILIES)}")


def build(config: Config) -> HookedModel:
    """The model of a config, with random weights, on the current default device.

    >>> config, _ = parse_config({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 50})
    >>> build(config)(torch.tensor([[3, 1, 4]])).shape
    torch.Size([1, 3, 50])
    """
    return family_of(config).model(config)


def skeleton(config: Config) -> HookedModel:
    """The model of a config without weights: its parameters are on meta, and have shapes only.

    >>> config, _ = parse_config({"model_type": "llama"})
    >>> sum(parameter.numel() for parameter in skeleton(config).parameters())  # nothing is allocated
    6738415616
    """
    with torch.device("meta"), _NoInitialisation():
        return build(config)


class _NoInitialisation(TorchFunctionMode):
    """Leaves tensors as they are: drawing random numbers on meta takes a second to import 70 MB of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; ConfigError where the file holds something else, FileNotFoundError where it is missing."""
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} has no {file.name}; {contents(file.parent)}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # brackets nested too deep
        raise ConfigError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds {type(values).__name__}, not a JSON object")
    return values


def contents(folder: Path) -> str:
    """What a folder holds, for an error message."""
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(file.name for file in folder.iterdir())
    return f"it holds {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else "it is empty"
