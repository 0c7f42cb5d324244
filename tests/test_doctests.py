"""Every example in a docstring runs.

The docstrings are read from the source rather than found in the imported modules: the suite's type checker wraps
functions, and an example that a finder misses would pass in silence.
"""

import ast
import doctest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from layout import ROOT, modules

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str, int]]:
    """Dotted name, text and line (from 0) of each docstring at a node and below."""
    if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
        yield name, text, node.body[0].lineno - 1
    for child in ast.iter_child_nodes(node):
        below = f"{name}.{child.name}" if isinstance(child, DOCUMENTED[1:]) else name
        yield from docstrings(child, below)


def examples(name: str, file: Path) -> Iterator[pytest.param]:
    """One test for each docstring of a module that has an example."""
    source = file.read_text()
    for place, text, line in docstrings(ast.parse(source), name) if ">>>" in source else ():
        if doctest.DocTestParser().get_examples(text):
            yield pytest.param(name, file, place, text, line, id=place)


HELPERS = [(f.stem, f) for f in sorted((ROOT / "tests").glob("*.py")) if not f.stem.startswith(("test_", "conftest"))]
ALL = [*modules(), *HELPERS]


@pytest.mark.parametrize(("module", "file", "place", "text", "line"), [e for m in ALL for e in examples(*m)])
def test_example_of(module, file, place, text, line):
    namespace = dict(vars(import_module(module)))
    example = doctest.DocTestParser().get_doctest(text, namespace, place, str(file), line)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=report.append)
    assert tried
    assert not failed, "".join(report)
