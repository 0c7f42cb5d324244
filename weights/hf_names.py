"""Settings by Hugging Face's names on our config: `model.config.num_hidden_layers` beside `model.config.n_layers`."""

from collections.abc import Mapping
from typing import Any, TypeVar

from nnzoo.weights.config import Config, config_to_hf, family_of
from nnzoo.weights.gpt2 import ALIASES

ConfigT = TypeVar("ConfigT", bound=Config)


def with_hf_names(config: ConfigT, settings: Mapping[str, Any]) -> ConfigT:
    """The same config, which from now on answers to config.json's names too, `settings` among them.

    Its fields stay what they are: it is equal to what it was, prints the same, and `dataclasses.replace` leaves the
    further names out.

    >>> from nnzoo.weights.config import parse_config
    >>> config, rest = parse_config({"model_type": "gpt2", "n_layer": 2})
    >>> with_hf_names(config, rest).num_hidden_layers, config.n_layer, config.n_layers, config.model_type
    (2, 2, 2, 'gpt2')
    """
    names = {**settings, **config_to_hf(config)}
    if family_of(config).name == "gpt2":
        names |= {alias: names[name] for name, alias in ALIASES.items()}
    for name, value in names.items():
        if not hasattr(config, name):
            object.__setattr__(config, name, value)  # it is frozen, for its users
    return config
