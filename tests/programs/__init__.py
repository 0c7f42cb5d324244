"""Programs as nnsight's users write them, and beside each the same values from plain hooks on transformers' model.

A program is a function of a model and of the module it comes from (`api.save`, `api.LanguageModel`), so that one source
runs under nnzoo and under nnsight. It gives named values, and its `expected` gives them again, of `Theirs`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from reference_values import Theirs

N_LAYERS = 4
Values = dict[str, Any]
PROGRAMS: list["Program"] = []


@dataclass
class Program:
    """One program; `differs` says what nnsight 0.8 does instead, where it does not give these values."""

    body: Callable[[Any, Any], Values]
    families: tuple[str, ...]
    options: dict[str, Any]
    differs: str | None
    values: Callable[[Theirs], Values] | None = field(default=None)

    @property
    def name(self) -> str:
        return self.body.__name__

    def __call__(self, model: Any, api: ModuleType) -> Values:
        return self.body(model, api)

    def expected(self, values: Callable[[Theirs], Values]) -> Callable[[Theirs], Values]:
        """Decorates the function that gives the program's values by hooks."""
        self.values = values
        return values


def program(
    *families: str, differs: str | None = None, **options: Any
) -> Callable[[Callable[[Any, Any], Values]], Program]:
    """Decorates a program of some families; further arguments are LanguageModel's."""

    def register(body: Callable[[Any, Any], Values]) -> Program:
        PROGRAMS.append(Program(body, families, options, differs))
        return PROGRAMS[-1]

    return register
