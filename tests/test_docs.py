"""The Python in README.md and docs/ runs as it stands there, from top to bottom of each page."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import nnzoo
from layout import ROOT
from nnzoo import tracing
from remote_stand_in import StandIn

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of(page: Path) -> str:
    """The page's Python, each statement on the line where the page has it, so that a traceback points there."""
    text = page.read_text()
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


@pytest.mark.parametrize("page", [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in PAGES])
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes stays out of the repository
    with StandIn(**{"nnzoo/tiny-gpt2": nnzoo.LanguageModel("nnzoo/tiny-gpt2")}).configured():
        exec(compile(code_of(page), page, "exec"), {"__name__": "__main__"})


def test_the_readme_has_examples():
    assert len(BLOCK.findall(README)) >= 2


def test_the_first_example_has_six_lines():
    first = BLOCK.search(README)[1]
    assert len([line for line in first.splitlines() if line.strip()]) == 6


def places() -> Iterator[pytest.param]:
    """Each path in the README's table, with the model and the hook point it is said of."""
    for row in re.findall(r"^\| \w.*\|$", README, re.MULTILINE):
        _, gpt2, llama, hook = [cell.strip(" `") for cell in row.strip("|").split("|")]
        for name, path in [("tiny-gpt2", gpt2), ("tiny-llama", llama), ("tiny-mistral", llama)]:
            if ".output" in path:
                yield pytest.param(name, path, hook, id=f"{name}-{path}")


@pytest.mark.parametrize(("name", "path", "hook"), [*places()])
def test_the_table_names_one_place_twice(name, path, hook):
    model = nnzoo.LanguageModel(f"nnzoo/{name}")
    prompt = "The keys to the cabinet"
    hook = hook if hook in model._model.hook_points else f"blocks.1.{hook}"
    with model.trace(prompt):
        value = eval(f"model.{path}", {"model": model, "i": 1}).save()
    _, cache = model._model.run_with_cache(prompt, names_filter=hook)
    torch.testing.assert_close(value, cache[hook])


def test_the_map_of_the_tracer_names_every_file():
    folder = Path(tracing.__file__).parent
    named = set(re.findall(r"(?<!/)\b(\w+\.py)\b", tracing.__doc__))
    assert named == {file.name for file in folder.glob("*.py")} - {"__init__.py"}
