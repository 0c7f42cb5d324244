"""What TransformerLens has and nnzoo has not: it can be imported, and says what to do when it is used."""

from typing import Any, NoReturn


class Refused:
    """Stands where a class or function of TransformerLens would.

    >>> Refused("HookedEncoder", "nnzoo has no BERT").from_pretrained("bert-base-cased")
    Traceback (most recent call last):
    NotImplementedError: HookedEncoder is not here: nnzoo has no BERT
    """

    def __init__(self, name: str, why: str) -> None:
        vars(self).update(_name=name, _why=why)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{self._name} is not here: {self._why}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_name", "_why"):
            raise AttributeError(name)
        return self()

    def __repr__(self) -> str:
        return f"<{self._name}, which is not here>"
