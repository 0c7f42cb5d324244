"""A model into a folder that transformers, and `load`, read."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.weights.config import Origin, config_to_hf, family_of, skeleton
from nnzoo.weights.tensors import INDEX, SINGLE, CheckpointError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def save(model: HookedModel, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
    """Write config.json, weights in safetensors, and the tokenizer where the model has one.

    Weights beyond `max_shard_size` (bytes, or "500MB") go into several files with an index. Everything is written
    beside the folder's old files first and moved over them at the end, so that a full disk or an interrupt leaves
    the old checkpoint whole; other files of the folder stay.

    Raises CheckpointError for a model that Hugging Face's format cannot hold: one whose weights were processed so
    that it has parameters, such as an unembedding bias, without a place there.

    >>> from nnzoo.weights.checkpoint import load
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(load("nnzoo/tiny-gpt2"), folder)
    ...     sorted(os.listdir(folder))[:2]
    ['config.json', 'generation_config.json']
    """
    tensors = hf_tensors(model)
    shards = _shards(tensors, _bytes(max_shard_size))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
        draft = Path(scratch)
        _write_tensors(draft, tensors, shards)
        _write_settings(draft, model)
        _move(draft, folder)


def hf_tensors(model: HookedModel) -> dict[str, Tensor]:
    """The weights under Hugging Face's names; CheckpointError where one has none, or none is there for a name."""
    config = model.config
    ours = dict(model.named_parameters(remove_duplicate=False))
    expected = {name: tuple(p.shape) for name, p in skeleton(config).named_parameters(remove_duplicate=False)}
    wrong = [
        n for n in sorted(ours.keys() | expected.keys()) if n not in ours or tuple(ours[n].shape) != expected.get(n)
    ]
    if wrong:
        raise CheckpointError(
            f"Hugging Face's {family_of(config).architecture} has no such weights as this model's: {', '.join(wrong)}. "
            "Processed weights cannot be saved in its format; save the model as it was loaded."
        )
    if any(tensor.is_meta for tensor in ours.values()):
        raise CheckpointError("the model has no weights yet (they are on meta): load them first")
    if config.tied:
        head = ours.pop("unembed.weight")
        if head is not ours["embed.weight"]:
            raise CheckpointError("config.tied is true, but unembed.weight is not embed.weight: set tied to False")
    table = family_of(config).parameters(config.n_layers)
    return {theirs: ours[name].detach().contiguous() for theirs, name in table.items() if name in ours}


def _shards(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    """Names in groups of at most `limit` bytes; a larger tensor has a group of its own."""
    shards: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= tensor.nbytes
    return shards


def _write_tensors(folder: Path, tensors: dict[str, Tensor], shards: list[list[str]]) -> None:
    n = len(shards)
    files = [SINGLE] if n == 1 else [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    for file, names in zip(files, shards, strict=True):
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    if n > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(tensor.nbytes for tensor in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_settings(folder: Path, model: HookedModel) -> None:
    origin: Origin = getattr(model, "origin", None) or Origin()
    dtype = str(model.dtype).removeprefix("torch.")
    settings: dict[str, Any] = {**_token_ids(model), **origin.settings, **config_to_hf(model.config)}
    settings.pop("transformers_version", None)
    settings |= {"dtype": dtype, "torch_dtype": dtype}  # transformers 5's name for it, and 4's
    _write_json(folder / "config.json", settings)
    if origin.generation:
        _write_json(folder / "generation_config.json", origin.generation)
    if model._tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _token_ids(model: HookedModel) -> dict[str, int | None]:
    """The ids that transformers would otherwise take from the family's own defaults."""
    tokenizer = None if model._tokenizer is None else model.tokenizer
    return {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _move(draft: Path, folder: Path) -> None:
    """Put the new files in place, and take away the old weights that they do not replace."""
    new = {file.name for file in draft.iterdir()}
    old = {file.name for file in folder.glob("model*.safetensors")} | {INDEX}
    for name in sorted(new):
        if (draft / name).is_dir():  # a tokenizer's additional_chat_templates
            shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(draft / name, folder / name)
    for name in old - new:
        (folder / name).unlink(missing_ok=True)


def _write_json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(dict(values), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)", size.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"max_shard_size {size!r} is neither a number of bytes nor like '500MB' or '5GB'")
    return int(float(match[1]) * UNITS[match[2].upper()])
