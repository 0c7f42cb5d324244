"""Planted mistakes are noticed. All of them: `make mutants`; here a few, and that the list is up to date."""

import re
import subprocess
import sys

import pytest

from layout import ROOT
from mutations import ALL, MUTATIONS, TESTS

EVERY_TIME = [
    "rms_norm_eps",
    "exact_gelu_for_tanh",
    "llama_q_bias",
    "mask_sees_the_next_token",
    "gpt2_ln1_for_ln2",
    "llama3_blend_reversed",
    "window_too_wide",
    "tape_epsilon_of_before",
]


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_what_a_mutation_replaces_is_in_the_code(mutation):
    assert mutation.old in mutation.source.read_text()
    assert mutation.new != mutation.old


def test_no_two_mutations_have_the_same_name():
    assert len(MUTATIONS) == len(ALL)


def test_mutations_run_the_tests_that_are_there():
    assert all((ROOT / "tests" / f"{name}.py").exists() for names in TESTS.values() for name in names)


def test_planted_mistakes_are_noticed():
    command = [sys.executable, ROOT / "tests" / "mutations.py", *EVERY_TIME]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(EVERY_TIME)} of {len(EVERY_TIME)} caught" in run.stdout
    # by the test that is meant to, all before it having passed: a copy that is broken in itself catches nothing
    assert re.search(r"^rms_norm_eps .*\[llama-eps=0\.3-torch\.float64-fused\]$", run.stdout, re.MULTILINE)
