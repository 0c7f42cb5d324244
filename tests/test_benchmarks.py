"""The benchmarks run, on models of a few kilobytes, and write their page. No test says how fast anything is."""

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import generating, patching
from benchmarks.ceilings import Products
from benchmarks.folders import MINIATURES
from benchmarks.measure import ONCE
from benchmarks.models import Pair
from benchmarks.setup import Setup
from layout import ROOT

SECTIONS = {
    "The machine": 2,
    "Forward pass, nobody listening": 2 * (2 + 1),  # two figures for each shape of a miniature
    "Forward pass with a full cache": 2 * (2 + 1),
    "Trace that saves the middle layer": 2 + 2,
    "Trace that reads only the last position's logits": 2 * 2,
    "Many prompts in one trace": 2,
    "Greedy generation": 2 * (2 + 1),
    "Patching all layers and positions, and all heads": 2 * 2,
    "Memory of a trace that saves one layer": 2,
    "Loading a checkpoint": 3,
    "Importing": 2,
    "Remote trace that saves one layer, loopback": 2,
    "How cost grows": 8,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run keeps things."""
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def page(home: Path) -> str:
    """What a run of everything writes."""
    results = home / "RESULTS.md"
    command = [sys.executable, "-m", "benchmarks.run", "--miniature", "--threads", "1"]
    command += ["--home", str(home), "--results", str(results)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    return results.read_text()


def section(page: str, title: str) -> list[list[str]]:
    """The cells of a section's table, row by row."""
    text = page.split(f"## {title}\n")[1].split("## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


@pytest.mark.parametrize("title", SECTIONS)
def test_every_subject_has_its_rows(page, title):
    header, *rows = section(page, title)
    assert header == ["work", "nnzoo", "other", "ratio", "target", "met"]
    assert len(rows) == SECTIONS[title]


@pytest.mark.parametrize("title", SECTIONS)
def test_every_row_has_a_figure_and_a_verdict_where_there_is_a_target(page, title):
    for work, ours, other, ratio, target, met in section(page, title)[1:]:
        assert re.search(r"\d", ours + other), work
        assert bool(ratio) == (target.endswith("x") or (bool(ours) and not target)), work
        assert (met in ("yes", "**no**")) == bool(target), work


def test_the_picture_has_a_panel_for_each_way_to_grow(page, home):
    assert "](growth.svg)" in page
    drawn = ElementTree.parse(home / "growth.svg").getroot()
    titles = [text.text for text in drawn.findall(".//{*}text") if text.get("class") == "title"]
    assert len(titles) == SECTIONS["How cost grows"]
    assert {line.get("class") for line in drawn.findall(".//{*}path")} == {"a", "b"}
    assert "nan" not in ElementTree.tostring(drawn, encoding="unicode")


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_sweeps_that_give_other_numbers_are_no_comparison(offset):
    ours = torch.randn(3, 4)
    others = {"somebody": ours.flatten() + 1e-5, "a peer": ours.flatten() + offset}
    with pytest.raises(ValueError, match="a peer gives other numbers") if offset else nullcontext():
        patching.agree(ours, others)


def test_the_page_has_no_other_sections(page):
    assert re.findall(r"^## (.*)$", page, flags=re.MULTILINE) == list(SECTIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_further_token_is_compared_with_reading_the_weights(home, dtype):
    setup = Setup(home, effort=ONCE, dtype=dtype)
    row = generating.of_reading(Pair(MINIATURES[0], setup), 1, setup)
    weights = 2 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 16 * 100
    assert Products(Pair(MINIATURES[0], setup).ours, 1).n_bytes == weights * dtype.itemsize
    assert "weights read once" in row.other and row.target == "<= 1.5x"
