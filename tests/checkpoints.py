"""Copies of the folders of families.py, for tests that change them."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from families import folder

DEFAULT = {"gpt2": "default", "llama": "default", "mistral": "window=7"}


def copied(to: Path, family: str, setting: str | None = None, remove: Iterable[str] = (), **changes: Any) -> Path:
    """A folder's copy, with settings of its config.json changed or removed."""
    shutil.copytree(folder(family, setting or DEFAULT[family]), to, dirs_exist_ok=True)
    values = config_of(to) | changes
    (to / "config.json").write_text(json.dumps({key: value for key, value in values.items() if key not in remove}))
    return to


def config_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "config.json").read_text())


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "model.safetensors")


def write_tensors(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, checkpoint / "model.safetensors")
