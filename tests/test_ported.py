"""Tutorials of nnsight, written anew with the same calls, run with another import and give the values of nnsight."""

import json
import re

import pytest

from layout import ROOT
from lens_reference import PROGRAMS
from ported_reference import PORTED, VALUES, run, with_folders, with_nnzoo
from test_lens_programs import assert_same

EXPECTED = json.loads(VALUES.read_text())


@pytest.mark.parametrize("name", PORTED)
def test_a_tutorial_gives_the_values_of_nnsight(name):
    assert_same(run(name, with_nnzoo), EXPECTED[name], name)


@pytest.mark.parametrize("name", PORTED)
def test_nothing_but_imports_of_a_tutorial_changes(name):
    script = PORTED[name].read_text()
    pairs = zip(script.splitlines(), with_nnzoo(script).splitlines(), strict=True)
    changed = [line for line, other in pairs if line != other]
    assert changed and all(re.match(r"(from nnsight|import nnsight$)", line) for line in changed)


def test_there_is_a_recorded_value_for_each_tutorial():
    assert EXPECTED.keys() == PORTED.keys()


@pytest.mark.parametrize("name", PORTED)
def test_what_is_recorded_is_what_the_installed_nnsight_gives(name):
    pytest.importorskip("nnsight")
    assert_same(run(name, with_folders), EXPECTED[name], name)


@pytest.mark.parametrize(
    ("page", "programs"), [("coming-from-nnsight", PORTED), ("coming-from-transformer-lens", PROGRAMS)]
)
def test_the_pages_list_every_program_with_its_length(page, programs):
    rows = re.findall(r"^\| .* \| `(\w+)` \| (\d+) \| 0 \|$", (ROOT / "docs" / f"{page}.md").read_text(), re.M)
    assert dict(rows) == {name: str(len(file.read_text().splitlines())) for name, file in programs.items()}
