"""The scripts in examples/ run, and what they print is so."""

import re
import runpy

import pytest

from layout import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


FAMILIES = ["nnzoo/tiny-gpt2", "nnzoo/tiny-llama", "nnzoo/tiny-mistral"]


@pytest.fixture
def printed(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_has_a_test():
    assert [file.stem for file in EXAMPLES] == [
        "activation_patching",
        "first_trace",
        "indirect_objects",
        "induction_heads",
        "logit_lens",
        "pictures",
    ]


@pytest.mark.parametrize("file", [pytest.param(file, id=file.stem) for file in EXAMPLES])
def test_an_example_takes_any_family_by_name(file, printed):
    outs = {name: printed(file.name, name) for name in FAMILIES}
    assert all(outs.values())
    default = re.search(r'else "(nnzoo/tiny-\w+)"', file.read_text())[1]
    assert printed(file.name) == outs[default]


def test_the_induction_study_finds_heads_that_are_needed(printed):
    usual, without, others = map(float, re.findall(r": ([\d.]+)$", printed("induction_heads.py"), re.MULTILINE))
    assert without > usual + 2 and others < (usual + without) / 2


STUDIES = ["indirect_objects", "induction_heads"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_shorter_than_forty_lines(name):
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 40


@pytest.mark.parametrize("family", FAMILIES)
def test_the_study_of_indirect_objects_finds_heads_that_are_needed_and_where_they_look(family, printed):
    out = printed("indirect_objects.py", family)
    usual, movers, givers, others = map(float, re.findall(r": (-?[\d.]+)$", out, re.MULTILINE))
    assert usual > 5 and movers < usual / 2 and others > usual * 0.9
    looks = re.findall(r"takes the name from '(.*?)' \((.*?)\)", out)
    assert len(looks) == 2 and all(float(weight) > 0.8 for _, weight in looks)
    if family != "nnzoo/tiny-mistral":  # there the heads that say the name take it from the names themselves
        assert givers < usual / 2 and {token for token, _ in looks} == {" gave"}
    else:
        assert {token for token, _ in looks} == {" John", " Mary"}


def test_pictures_are_pages(printed, tmp_path):
    files = printed("pictures.py").split()
    assert len(files) == 6
    assert all((tmp_path / file).read_text().startswith("<!DOCTYPE html>") for file in files)


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
