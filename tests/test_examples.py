"""The scripts in examples/ run, and what they print is so."""

import re
import runpy

import pytest

from layout import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def printed(capsys):
    def run(name: str) -> str:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_has_a_test():
    assert [file.name for file in EXAMPLES] == ["activation_patching.py", "first_trace.py", "logit_lens.py"]


def test_the_first_trace_reads_and_changes_the_model(printed):
    out = printed("first_trace.py")
    assert re.search(r"after block 2: \[1, 5, \d+\]", out)
    assert "The capital of France is Paris\n" in out
    before, after = map(float, re.search(r"goes from (\S+) to (\S+)", out).groups())
    assert before > 0.5
    assert after < before


def test_the_logit_lens_ends_with_what_the_model_predicts(printed):
    last = printed("logit_lens.py").splitlines()[-1]
    assert "' Paris'" in last


def test_patching_finds_the_second_name_first_and_a_later_token_last(printed):
    header, *lines = printed("activation_patching.py").splitlines()
    n_layers = len(header.removeprefix("before block").split())
    rows = [line.split() for line in lines]
    scores = [[float(score) for score in row[-n_layers:]] for row in rows]
    tokens = [row[0] for row in rows]
    second_john = len(tokens) - 1 - tokens[::-1].index("John")
    assert scores[second_john][0] == pytest.approx(1, abs=0.01)
    carrier = max(range(len(rows)), key=lambda row: scores[row][-1])
    assert carrier > second_john and scores[carrier][-1] > 0.9
    assert scores[second_john][-1] < 0.5
    assert all(abs(score) < 0.01 for row in scores[:second_john] for score in row)
