"""safetensors files into a model: memory-mapped, every tensor accounted for, nothing copied unless converted.

The pages of a file are read when they are used, and a parameter edited in place leaves the file as it was (the
mapping is copy-on-write).
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.weights.config import Config, contents, family_of, read_json, skeleton
from nnzoo.weights.devices import usable
from nnzoo.weights.families import Family
from nnzoo.weights.settings import listed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT = (
    "convert it once with transformers, where you trust it: "
    'AutoModelForCausalLM.from_pretrained("{folder}").save_pretrained("NEW"); '
    'AutoTokenizer.from_pretrained("{folder}").save_pretrained("NEW")'
)


class CheckpointError(ValueError):
    """Weights that do not fit the model, or cannot be read: which, where, and what to do instead."""


@dataclass(frozen=True)
class Stored:
    """A tensor as its file declares it."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str


def load_weights(
    folder: Path,
    config: Config,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int = "cpu",
) -> HookedModel:
    """The model of a config with a folder's weights; CheckpointError names every tensor that does not fit.

    `dtype` None is what config.json names, else what the first tensor is stored in, as in transformers 5.
    """
    stored = stored_tensors(folder)
    head, embedding = _tied_names(config, stored)
    if config.tied and head and embedding and not _equal(head, embedding):
        warnings.warn(
            f"{folder}: config.json ties the unembedding to the embedding, but {head.name} and {embedding.name} "
            "differ: they are not tied (transformers 5 does so too). Set tie_word_embeddings to false.",
            stacklevel=3,
        )
        config = replace(config, tied=False)
    model = skeleton(config)
    sources = _match(folder, config, model, stored)
    _fill(model, sources, dtype_of(folder, dtype, stored), usable(device))
    return model.eval()


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights, of any format; one with a config alone does for a model that runs elsewhere."""
    return any(any(folder.glob(pattern)) for pattern in (SINGLE, INDEX, *PICKLES))


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder by their names, from the headers of its files; no weight is read."""
    index = _index(folder)
    files = sorted({folder / file for file in index.values()}) if index is not None else [folder / SINGLE]
    stored = {name: tensor for file in files for name, tensor in _header(file).items()}
    if index is not None:
        _check_index(folder, index, stored)
    return stored


def _index(folder: Path) -> Mapping[str, str] | None:
    """Which file each tensor is in; None where one file has them all."""
    if (folder / SINGLE).is_file():  # transformers prefers it to the index too
        return None
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    index = read_index(folder)
    missing = sorted(file for file in set(index.values()) if not (folder / file).is_file())
    if missing:
        raise CheckpointError(f"{folder} lacks {_some(missing)}, which {INDEX} names: download or copy it again")
    return index


def read_index(folder: Path) -> dict[str, str]:
    """The index of a folder in shards: which file each tensor is in, always one of that folder itself."""
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{folder / INDEX} has no 'weight_map', which says where each tensor is")
    for name, file in index.items():
        if not isinstance(file, str) or file in ("", ".", "..") or any(mark in file for mark in "/\\:"):
            raise CheckpointError(f"{folder / INDEX} has {name} in {file!r}, which is no name of a file beside it")
    return index


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return pickle_error(str(folder), pickles)
    return CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}; {contents(folder)}")


def pickle_error(folder: str, pickles: list[str]) -> CheckpointError:
    """The refusal of a checkpoint that has no safetensors."""
    return CheckpointError(
        f"{folder} has its weights in {_some(pickles)}: a pickle, which can run any code when it is read, so nnzoo "
        f"does not. {CONVERT.format(folder=folder)}"
    )


def _header(file: Path) -> dict[str, Stored]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return {n: Stored(file, n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{file} is no whole safetensors file ({error}): download or copy it again") from error


def _check_index(folder: Path, index: Mapping[str, str], stored: Mapping[str, Stored]) -> None:
    wrong = [name for name, file in index.items() if name not in stored or stored[name].file.name != file]
    extra = sorted(stored.keys() - index.keys())
    stray = sorted({f.name for f in folder.glob("model-*-of-*.safetensors")} - set(index.values()))
    complaints = {
        "not in the shard that the index names": wrong,
        "in a shard but not in the index": extra,
        "shards that the index does not name": stray,
    }
    found = [f"{what}: {_some(names)}" for what, names in complaints.items() if names]
    if found:
        raise CheckpointError(f"{folder}: {INDEX} and the shards disagree. {'; '.join(found)}. Copy all files again.")


# --- which tensor is which parameter ---------------------------------------------------------------------------


def _match(folder: Path, config: Config, model: HookedModel, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The source of each parameter; CheckpointError names all that is missing, extra or misshapen."""
    family = family_of(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    table = {theirs: ours for theirs, ours in family.parameters(config.n_layers).items() if ours in shapes}
    sources, extra = _sources(family, table, family.ignored(config.n_layers), stored)
    if config.tied:  # either name will do
        head = sources.pop("unembed.weight", None)
        if head is not None:
            sources.setdefault("embed.weight", head)
        shapes.pop("unembed.weight")
    misshapen = [
        f"{s.name} is {list(s.shape)} where config.json asks for {list(shapes[ours])}"
        for ours, s in sources.items()
        if s.shape != shapes[ours]
    ]
    complaints = {
        "missing": [
            f"{theirs} {list(shapes[ours])}" for theirs, ours in table.items() if ours in shapes.keys() - sources.keys()
        ],
        "not known": [f"{s.name} {list(s.shape)}" for s in extra],
        "of another shape": misshapen,
        f"in a format that is none of {', '.join(DTYPES)}": [
            f"{s.name} is {s.dtype}" for s in sources.values() if s.dtype not in DTYPES
        ],
    }
    found = [f"{what}: {_some(names)}" for what, names in complaints.items() if names]
    if found:
        raise CheckpointError(
            f"the tensors of {folder} are not those of its config.json ({family.name}). {'; '.join(found)}."
        )
    return sources


def _sources(
    family: Family, table: Mapping[str, str], ignored: set[str], stored: Mapping[str, Stored]
) -> tuple[dict[str, Stored], list[Stored]]:
    """The tensor for each parameter's name, and those for none."""
    sources: dict[str, Stored] = {}
    extra = []
    for name, tensor in stored.items():
        full = name if name in table or name in ignored else family.prefix + name
        if full in table and table[full] not in sources:
            sources[table[full]] = tensor
        elif full not in ignored:
            extra.append(tensor)
    return sources, extra


def _tied_names(config: Config, stored: Mapping[str, Stored]) -> tuple[Stored | None, Stored | None]:
    """What the file has as unembedding and embedding."""
    family = family_of(config)
    theirs = {ours: theirs for theirs, ours in family.tensors.items()}
    head, embedding = theirs["unembed.weight"], theirs["embed.weight"]
    return stored.get(head), stored.get(embedding) or stored.get(embedding.removeprefix(family.prefix))


def _equal(a: Stored, b: Stored) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(*_read([a, b])))


def _some(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# --- reading ----------------------------------------------------------------------------------------------------


def dtype_of(folder: Path, asked: torch.dtype | str | None, stored: Mapping[str, Stored]) -> torch.dtype:
    """What is asked for, else (None or "auto") what config.json names, else what the first tensor is stored in."""
    if asked is None or asked == "auto":
        config = read_json(folder / "config.json")
        asked = config.get("dtype") or config.get("torch_dtype")
    if asked is None:
        asked = next((DTYPES[tensor.dtype] for tensor in stored.values() if tensor.dtype in DTYPES), torch.float32)
    known = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    name = str(asked).removeprefix("torch.")
    if name not in known:
        raise ValueError(f"dtype {name!r} is none that the models run in; nnzoo knows {listed(known)}")
    return known[name]


def _fill(model: HookedModel, sources: Mapping[str, Stored], dtype: torch.dtype, device: torch.device) -> None:
    """Put the tensors in the place of the meta parameters."""
    by_file: dict[Path, list[str]] = {}
    for ours, tensor in sources.items():
        by_file.setdefault(tensor.file, []).append(ours)
    for names in by_file.values():
        for ours, value in zip(names, _read([sources[ours] for ours in names]), strict=True):
            _put(model, ours, value.to(device=device, dtype=dtype))
    if model.config.tied:
        model.get_submodule("unembed").register_parameter("weight", model.get_parameter("embed.weight"))


def _read(tensors: Iterable[Stored]) -> Iterable[Tensor]:
    """Tensors one by one, mapped and not copied; neighbours in the list share an open file."""
    opened: Any = None
    file = None
    for tensor in tensors:
        if tensor.file != file:
            file, opened = tensor.file, safe_open(tensor.file, framework="pt")
        yield opened.get_tensor(tensor.name)


def _put(model: HookedModel, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path).register_parameter(leaf, nn.Parameter(value))
