"""What TransformerLens's users wrote runs with another import, and gives the values of TransformerLens 3.9."""

import json
import math
import re
from typing import Any

import pytest
import torch

import lens_reference
from lens_reference import PROGRAMS, SIGNATURES, VALUES, rounded, run, signatures, with_nnzoo
from nnzoo.transformer_lens import HookedTransformer

EXPECTED = json.loads(VALUES.read_text())
THEIRS = json.loads(SIGNATURES.read_text())
BRIDGE = {"alias_names"}  # an argument for TransformerLens's other class
pytestmark = pytest.mark.filterwarnings("ignore:.*sequence length is longer.*")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gives_the_values_of_transformer_lens(name):
    assert_same(run(with_nnzoo(PROGRAMS[name].read_text()), name), EXPECTED[name], name)


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_but_imports_of_a_program_changes(name):
    script = PROGRAMS[name].read_text()
    changed = [
        line for line, other in zip(script.splitlines(), with_nnzoo(script).splitlines(), strict=True) if line != other
    ]
    assert changed and all(re.match(r"(from|import) transformer_lens\b", line) for line in changed)


def test_there_is_a_recorded_value_for_each_program():
    assert EXPECTED.keys() == PROGRAMS.keys()


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_recorded_is_what_the_installed_transformer_lens_gives(name, monkeypatch):
    theirs = pytest.importorskip("transformer_lens")
    monkeypatch.setattr(theirs.HookedTransformer, "from_pretrained", classmethod(lens_reference.from_embedded))
    assert_same(rounded(run(PROGRAMS[name].read_text(), name)), EXPECTED[name], name)


@pytest.mark.parametrize("name", THEIRS)
def test_a_signature_is_that_of_transformer_lens(name):
    """Names, order, kinds and defaults; more arguments may follow."""
    theirs = [one for one in THEIRS[name] if one[0] not in BRIDGE]
    ours = OURS[name]
    assert ours[: len(theirs)] == theirs
    assert all(default != "required" for _, _, default in ours[len(theirs) :])


OURS = signatures("nnzoo.transformer_lens")


def test_the_recorded_signatures_are_those_of_the_installed_transformer_lens():
    pytest.importorskip("transformer_lens")
    assert signatures("transformer_lens") == THEIRS


def test_a_program_that_changes_nothing_is_told_from_one_that_does(monkeypatch):
    """Or the values above would be those of models whose hooks do nothing."""
    plain = HookedTransformer.points_named
    monkeypatch.setattr(HookedTransformer, "points_named", lambda self, names: plain(self, names) if not names else [])
    script = with_nnzoo(PROGRAMS["ablating_heads"].read_text())
    with pytest.raises(AssertionError):
        assert_same(run(script, "ablating_heads"), EXPECTED["ablating_heads"], "ablating_heads")


def assert_same(ours: Any, theirs: Any, place: str) -> None:
    """Equal all the way down; numbers to 1e-4 of the largest beside them."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), place
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{place}[{key!r}]")
    elif isinstance(theirs, list) and not numbers(theirs):
        assert len(ours) == len(theirs), place
        for i, (own, value) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(own, value, f"{place}[{i}]")
    elif numbers(theirs):
        own, value = torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)
        assert own.shape == value.shape, place
        largest = max(value.abs().max().item(), 1e-2) if value.numel() else 1.0
        assert math.isfinite(largest) and ((own - value).abs() <= 1e-4 * largest).all(), (place, ours, theirs)
    else:
        assert ours == theirs, place


def numbers(value: Any) -> bool:
    """Whether a value holds numbers and lists of them alone."""
    if isinstance(value, list):
        return all(map(numbers, value)) and len({len(one) if isinstance(one, list) else -1 for one in value}) <= 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)
