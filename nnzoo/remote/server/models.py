"""What a server says of its models, which it knows from their configs: the weights are the workers'."""

from dataclasses import dataclass

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


def look_up(name: str) -> Served:
    """A model by its path or id; errors are those of `nnzoo.weights.load`.

    >>> look_up("nnzoo/tiny-gpt2").kind
    'gpt2'
    """
    checkpoint = open_checkpoint(name)
    config = checkpoint.config
    return Served(
        name=name,
        kind=str(checkpoint.origin.settings["model_type"]),
        n_layers=config.n_layers,
        d_model=config.d_model,
        d_vocab=config.d_vocab,
        dtype=str(checkpoint.dtype()).removeprefix("torch."),
    )
