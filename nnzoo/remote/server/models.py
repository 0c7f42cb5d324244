"""What a server says of its models, which it knows from their configs: the weights are the workers'."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnzoo.weights.checkpoint import open_checkpoint


@dataclass(frozen=True)
class Served:
    """A model as GET /models lists it."""

    name: str
    kind: str
    n_layers: int
    d_model: int
    d_vocab: int
    dtype: str


def look_up(path: str, name: str | None = None) -> Served:
    """A model by its path or id, which is its name too if it has no other; errors are those of `nnzoo.weights.load`.

    >>> look_up("nnzoo/tiny-gpt2").kind
    'gpt2'
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    return Served(
        name=name or path,
        kind=str(checkpoint.origin.settings["model_type"]),
        n_layers=config.n_layers,
        d_model=config.d_model,
        d_vocab=config.d_vocab,
        dtype=str(checkpoint.dtype()).removeprefix("torch."),
    )


def split(text: str) -> tuple[str, str]:
    """A model as the command line has it: its name, and the path or id of what is loaded.

    >>> split("llama=/models/Llama-3.1-8B"), split("nnzoo/tiny-gpt2")
    (('llama', '/models/Llama-3.1-8B'), ('nnzoo/tiny-gpt2', 'nnzoo/tiny-gpt2'))
    """
    name, equals, path = text.partition("=")
    return (name, path) if equals and name and path and not Path(text).exists() else (text, text)


def names(models: Mapping[str, str]) -> dict[str, str]:
    """All names by which models, which are names and paths, are asked for, and whose they are: their own, and folders'.

    Raises ValueError where two models would answer to one.
    """
    own = [(name, name) for name in models]
    of_folders = [
        (Path(path).resolve().name, path) for name, path in models.items() if name == path and Path(path).is_dir()
    ]
    found: dict[str, str] = {}
    for word, name in [*own, *of_folders]:
        if found.setdefault(word, name) != name:
            raise ValueError(
                f"{word} would be {found[word]} and {name} alike: name one of them yourself, nnzoo serve NAME={name}"
            )
    return found
