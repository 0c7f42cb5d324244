"""A checkpoint: config and tokenizer at once, weights when asked."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.weights.config import FAMILIES, Config, Origin, read_config, read_origin
from nnzoo.weights.hub import TOKENIZER_FILES, Access, download, download_weights, local_folder
from nnzoo.weights.tensors import dtype_of, has_weights, load_weights, stored_tensors


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder, read as far as config and tokenizer; `load` reads the weights.

    >>> checkpoint = open_checkpoint("nnzoo/tiny-gpt2")
    >>> checkpoint.config.tied
    True
    >>> checkpoint.load().device
    device(type='cpu')
    """

    name: str  # what was asked for
    folder: Path
    access: Access | None  # None: a folder of this machine, which has its weights
    config: Config
    origin: Origin

    @property
    def tokenizer(self) -> Callable[[], Any] | None:
        """What gives the tokenizer when called, importing transformers only then; None where the folder has none."""
        if not any((self.folder / file).is_file() for file in TOKENIZER_FILES):
            return None
        return partial(load_tokenizer, self.folder)  # a model that has it can be pickled

    def dtype(self, asked: torch.dtype | str | None = None) -> torch.dtype:
        """The dtype in which `load(dtype=asked)` will give the model, as far as the files that are here tell."""
        stored = stored_tensors(self.folder) if self.access is None and has_weights(self.folder) else {}
        return dtype_of(self.folder, asked, stored)

    def load(self, *, dtype: torch.dtype | str | None = None, device: torch.device | str | int = "cpu") -> HookedModel:
        """The model with its weights, downloaded now if they were not yet; arguments are those of `load`."""
        folder = self.folder if self.access is None else download_weights(self.name, self.folder, self.access)
        model = load_weights(folder, self.config, dtype=dtype, device=device)
        model.tokenizer, model.origin = self.tokenizer, self.origin
        return model


def open_checkpoint(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool | None = None,
) -> Checkpoint:
    """Read config and tokenizer of a folder, an embedded checkpoint or an id of the Hub; errors as in `resolve`.

    The weights that `Checkpoint.load` fetches later are of the commit that was read here.
    """
    access = Access(revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    folder = local_folder(path_or_id, revision)
    if folder is not None:
        folder = folder.absolute()  # weights are read later, maybe from another working directory
        return Checkpoint(str(path_or_id), folder, None, read_config(folder), read_origin(folder))
    folder = download(str(path_or_id), access, weights=False)
    return Checkpoint(str(path_or_id), folder, access, read_config(folder), read_origin(folder))


def load(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int = "cpu",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool | None = None,
) -> HookedModel:
    """A model with its weights, from a folder, an embedded checkpoint or an id of the Hub (see `resolve`).

    Weights are mapped from safetensors, not copied, unless `dtype` or `device` asks for another than the files'.
    `dtype` None or "auto" is what config.json names, else that of the files. The tokenizer is loaded when text is first
    used.

    Raises ConfigError for a setting, and CheckpointError for a tensor, that nnzoo cannot account for, by its name.

    >>> model = load("nnzoo/tiny-llama", dtype=torch.bfloat16)
    >>> model(torch.tensor([[3, 1, 4]])).dtype
    torch.bfloat16
    """
    checkpoint = open_checkpoint(
        path_or_id, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    return checkpoint.load(dtype=dtype, device=device)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a local folder, as transformers' AutoTokenizer gives it; the network is not asked."""
    if _is_generic(Path(folder)):  # the same without AutoTokenizer, whose import and search take some seconds
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _is_generic(folder: Path) -> bool:
    """Whether a folder says that its tokenizer is tokenizer.json and no class of its own."""
    if not (folder / "tokenizer.json").is_file() or (folder / "tekken.json").is_file():  # Mistral's own format
        return False
    try:
        config, settings = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "tokenizer_config.json")
        )
        known = config["model_type"] in FAMILIES  # for some others AutoTokenizer does not believe the folder
        return known and settings["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in settings
    except (OSError, ValueError, LookupError, TypeError):
        return False  # AutoTokenizer says what is wrong
