"""Programs in the idioms of nnsight's users give what hooks on transformers' model give."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import nnzoo
import programs
import reference_values
import speaking
from families import error
from nnzoo import LanguageModel
from programs import N_LAYERS, PROGRAMS, Program
from reference_values import Theirs

for module in pkgutil.iter_modules(programs.__path__):
    importlib.import_module(f"programs.{module.name}")

CASES = [pytest.param(one, family, id=f"{one.name}-{family}") for one in PROGRAMS for family in one.families]


@pytest.mark.parametrize(("program", "family"), CASES)
def test_a_program_gives_the_values_of_transformers(program: Program, family: str) -> None:
    model = LanguageModel(speaking.folder(family, N_LAYERS), **program.options)
    ours, theirs = program(model, nnzoo), expected(program.name, family)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_same(ours[name], value, name)


@pytest.mark.parametrize(("program", "family"), CASES)
def test_what_a_program_changes_is_seen_in_its_values(
    program: Program, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a model that ignores the change would pass: small edits leave greedy tokens as they are."""
    hooked, edited, changed = reference_values.hooked, [], expected(program.name, family)

    def without_edits(model: Any, read: Any, edits: Mapping, **options: Any) -> Any:
        edited.extend(edits)
        return hooked(model, read, {}, **options)

    monkeypatch.setattr(reference_values, "hooked", without_edits)
    assert program.values is not None
    plain = program.values(Theirs(family, N_LAYERS))
    if edited:
        with pytest.raises(AssertionError):
            for name, value in changed.items():
                assert_same(plain[name], value, name)


@cache
def expected(name: str, family: str) -> dict[str, Any]:
    (program,) = [one for one in PROGRAMS if one.name == name]
    assert program.values is not None
    return program.values(Theirs(family, N_LAYERS))


def assert_same(ours: Any, theirs: Any, name: str) -> None:
    """Tensors of the same numbers, element by element in lists; anything else is equal."""
    if isinstance(theirs, (list, tuple)) and any(isinstance(one, Tensor) for one in theirs):
        assert len(ours) == len(theirs), name
        for one, value in zip(ours, theirs, strict=True):
            assert_same(one, value, name)
    elif isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor) and ours.shape == theirs.shape, name  # asked for: ids are made by then
        assert type(ours) in (Tensor, torch.nn.Parameter), f"{name}: a plain tensor, once the trace has run"
        assert ours.dtype == theirs.dtype, name
        assert error(ours.detach(), theirs.detach()) < 1e-9, name
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-9), name
    else:
        assert ours == theirs, name
