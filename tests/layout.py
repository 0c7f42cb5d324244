"""Where the packages lie in the repository, for the tests that read them as files."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

# top floor first; a package may import those that stand after it, and itself
LAYERS = {"nnzoo": "nnzoo", "nnzoo.weights": "weights", "nnzoo.architectures": "architectures"}


def python_files(package: str) -> list[Path]:
    """The Python files of one layer, in order.

    >>> [file.name for file in python_files("nnzoo.architectures") if "gpt" in file.name]
    ['gpt2.py']
    """
    return sorted((ROOT / LAYERS[package]).rglob("*.py"))


def modules() -> Iterator[tuple[str, Path]]:
    """Every module's import name with its file.

    >>> dict(modules())["nnzoo.architectures.gpt2"].relative_to(ROOT).as_posix()
    'architectures/gpt2.py'
    """
    for package, folder in LAYERS.items():
        for file in python_files(package):
            below = file.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *below]).removesuffix(".__init__"), file


def imports(file: Path) -> Iterator[tuple[int, int, str]]:
    """The imports of a file, wherever they stand: line, level (dots in front) and the module's name."""
    for node in ast.walk(ast.parse(file.read_text(), file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module or ""
