"""Programs of nnsight's users through the wire, where conftest.py sends tests too; `pytest --remote` takes any there.

What differs there by its nature: values that shared memory come back as tensors of their own, the model's weights get
no gradients, a function that is not PyTorch's cannot be sent, and after a session that failed nothing is there.
"""

import importlib
import pkgutil
from typing import Any

import pytest

import nnzoo
import programs
import speaking
from nnzoo import LanguageModel
from programs import N_LAYERS, PROGRAMS, Program
from test_nnsight_programs import assert_same

for module in pkgutil.iter_modules(programs.__path__):
    importlib.import_module(f"programs.{module.name}")

pytestmark = pytest.mark.usefixtures("through_the_wire")


def run(program: Program) -> dict[str, Any]:
    return program(LanguageModel(speaking.folder(program.families[0], N_LAYERS), **program.options), nnzoo)


@pytest.mark.parametrize("program", [pytest.param(one, id=one.name) for one in PROGRAMS])
def test_a_program_gives_what_it_gives_here(program: Program, through_the_wire: Any) -> None:
    ours = run(program)
    through_the_wire.is_left_out = True
    theirs = run(program)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_same(ours[name], value, name)


def test_everything_is_sent(through_the_wire: Any) -> None:
    model = LanguageModel("nnzoo/tiny-gpt2")
    with model.trace("The keys"):
        norm = model.output.norm()
    assert through_the_wire.runs == 1 and norm > 0
