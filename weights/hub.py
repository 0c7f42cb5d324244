"""From what a user calls a model to a folder on this machine: a folder, an embedded checkpoint, or an id of the Hub."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnzoo.weights.config import contents
from nnzoo.weights.tensors import INDEX, PICKLES, SINGLE, pickle_error, read_index

EMBEDDED = {f"nnzoo/tiny-{family}": Path(__file__).parent / "tiny" / family for family in ("gpt2", "llama", "mistral")}

# Named one by one: repositories hold the same weights in other formats too, of tens of gigabytes
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
SMALL_FILES = ("config.json", "generation_config.json", INDEX, *TOKENIZER_FILES)

ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the Hub is asked; what is None is left to huggingface_hub and its HF_* environment variables."""

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: no secret."""
        return {**vars(self), "token": None if isinstance(self.token, str) else self.token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def resolve(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool | None = None,
    weights: bool = True,
) -> Path:
    """The folder of a checkpoint: a local one as it is, an embedded one, or one of the Hub, downloaded once.

    Embedded are "nnzoo/tiny-gpt2", "nnzoo/tiny-llama" and "nnzoo/tiny-mistral". For ids of the Hub, huggingface_hub
    does the work: HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count. Without `weights` only config and
    tokenizer are fetched; the name of a snapshot's folder is its commit, and as `revision` gives its weights later.

    Raises FileNotFoundError (nothing there, or nothing cached while offline), PermissionError (a gated model),
    CheckpointError (weights only as pickle; they are not downloaded).

    >>> resolve("nnzoo/tiny-gpt2").name
    'gpt2'
    """
    access = Access(revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    folder = local_folder(path_or_id, revision)
    return download(str(path_or_id), access, weights=weights) if folder is None else folder


def local_folder(path_or_id: str | Path, revision: str | None = None) -> Path | None:
    """The folder that is meant, embedded or the user's; None for an id of the Hub. FileNotFoundError for neither."""
    name = str(path_or_id)
    folder = EMBEDDED.get(name, Path(path_or_id).expanduser())
    if name and folder.is_dir():  # Path("") is the current folder
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"the folder {folder} has no config.json, so it is no checkpoint; {contents(folder)}"
            )
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is for models on the Hub, and {name!r} is a folder of this machine"
            )
        return folder
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; give the folder it is in, which has config.json too")
    if name.startswith("nnzoo/"):
        raise FileNotFoundError(f"{name!r} is none of the embedded checkpoints: {', '.join(EMBEDDED)}")
    if isinstance(path_or_id, Path) or not ID.fullmatch(name):
        raise FileNotFoundError(
            f"{name!r} is no folder here, and cannot be an id of the Hub such as 'openai-community/gpt2'"
        )
    return None


def download(repo: str, access: Access, *, weights: bool) -> Path:
    """A snapshot of a model on the Hub: the small files first, then, of the same commit, the weights they name."""
    folder = _snapshot(repo, access, SMALL_FILES)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{repo!r} has no config.json, so transformers could not load it either; {contents(folder)}"
        )
    return download_weights(repo, folder, access) if weights else folder


def download_weights(repo: str, folder: Path, access: Access) -> Path:
    """Complete a snapshot that has the small files only; `folder` says which commit."""
    index = read_index(folder) if (folder / INDEX).is_file() else {}
    wanted = sorted(set(index.values())) or [SINGLE]
    commit = replace(access, revision=folder.name)
    if not all((folder / file).is_file() for file in wanted):
        with suppress(FileNotFoundError):  # what is missing is named below
            folder = _snapshot(repo, commit, [*SMALL_FILES, *wanted])
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        raise _no_weights(repo, commit, missing)
    return folder


def _snapshot(repo: str, access: Access, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repo,
            revision=access.revision,
            cache_dir=access.cache_dir,
            token=access.token,
            local_files_only=bool(access.local_files_only),
            allow_patterns=list(files),
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        if not hasattr(error, "snapshot_path"):
            raise _explained(error, repo, access.revision) from error
        folder = error.snapshot_path  # offline, and not all cached: what is there may be enough
    return Path(folder)


def _explained(error: Exception, repo: str, revision: str | None) -> Exception:
    """What the user can do about an error of huggingface_hub."""
    from huggingface_hub import errors

    if f"nnzoo/{repo}" in EMBEDDED and not isinstance(error, errors.GatedRepoError):
        return FileNotFoundError(f"{repo!r} is no folder here, and no model of the Hub; did you mean 'nnzoo/{repo}'?")
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{repo!r} is gated: ask for access on its page, then pass token= or set HF_TOKEN. {error}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{repo!r} has no revision {revision!r}. {error}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{repo!r} is neither a folder here nor a model on the Hub that this token may see. {error}"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return FileNotFoundError(
            f"{repo!r} is not in the cache{f' at revision {revision!r}' if revision else ''}, and the Hub was not "
            f"asked or did not answer: check the name, the connection, HF_HUB_OFFLINE and local_files_only. {error}"
        )
    return OSError(f"{repo!r} is no folder here, and the Hub does not give it. {error}")


def _no_weights(repo: str, access: Access, missing: list[str]) -> Exception:
    """Why the snapshot has no safetensors: the Hub has none, or could not be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    offline = FileNotFoundError(
        f"{', '.join(missing)} of {repo!r} is not in the cache, and the Hub was not asked or did not answer: load the "
        "model once with a connection, and without HF_HUB_OFFLINE and local_files_only."
    )
    if access.local_files_only:
        return offline
    try:
        names = HfApi(token=access.token).list_repo_files(repo, revision=access.revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return offline
    if set(missing) <= set(names):
        return offline
    pickles = [name for name in names if any(Path(name).match(pattern) for pattern in PICKLES)]
    if pickles:
        return pickle_error(repo, pickles)
    return FileNotFoundError(f"{repo!r} has no {', '.join(missing)} on the Hub. It has {', '.join(names[:12])}")
