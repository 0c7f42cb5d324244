"""Everything that knows Hugging Face: config.json, tensor names, module paths, and checkpoints from disk and Hub."""

from nnzoo.weights.checkpoint import Checkpoint, load, load_tokenizer, open_checkpoint
from nnzoo.weights.config import Origin, build, config_to_hf, parse_config, read_config, read_origin, skeleton
from nnzoo.weights.hub import EMBEDDED, resolve
from nnzoo.weights.paths import PATHS, ModulePath, Value, paths_of
from nnzoo.weights.saving import save
from nnzoo.weights.settings import ConfigError
from nnzoo.weights.tensors import CheckpointError

__all__ = [
    "EMBEDDED",
    "PATHS",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "ModulePath",
    "Origin",
    "Value",
    "build",
    "config_to_hf",
    "load",
    "load_tokenizer",
    "open_checkpoint",
    "parse_config",
    "paths_of",
    "read_config",
    "read_origin",
    "resolve",
    "save",
    "skeleton",
]
