"""The API reference: a page for each module that lists what is public, out of its docstrings."""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module

from mkdocs.structure.files import File

import nnzoo

MODULES = ["nnzoo.architectures.gpt2", "nnzoo.architectures.llama", "nnzoo.architectures.mistral"]  # have no __all__
ROOTS = ["nnzoo.weights"]  # stand in a folder of their own


def on_files(files, config):
    """Add the pages."""
    for name, module in modules():
        files.append(File.generated(config, f"reference/{name}.md", content=page(name, module)))
    return files


def modules() -> Iterator[tuple[str, object]]:
    """The package and everything directly below it that says what is public; then the models."""
    yield "nnzoo", nnzoo
    below = sorted(f"nnzoo.{found.name}" for found in pkgutil.iter_modules(nnzoo.__path__) if found.name[0] != "_")
    for name in dict.fromkeys([*below, *ROOTS]):
        module = import_module(name)
        if hasattr(module, "__all__"):
            yield name, module
    for name in MODULES:
        yield name, import_module(name)


def page(name: str, module: object) -> str:
    """A module's page."""
    names = getattr(module, "__all__", None) or own(module)
    parts = [f"# {name}", prose(inspect.getdoc(module) or "")]
    parts += [one for public in names for one in entry(public, getattr(module, public))]
    return "\n\n".join(parts) + "\n"


def own(module: object) -> list[str]:
    """The classes and functions that a module defines."""
    return [
        name for name, value in vars(module).items()
        if name[0] != "_" and getattr(value, "__module__", "") == module.__name__ and callable(value)
    ]  # fmt: skip


def entry(name: str, value: object) -> Iterator[str]:
    """A class with its methods, a function, or a value."""
    yield f"## {name}"
    if inspect.isclass(value) or callable(value):
        yield signature(name, value)
    yield prose(inspect.getdoc(value) or "" if inspect.isclass(value) or callable(value) else repr(value))
    if inspect.isclass(value):
        for method, function in methods(value):
            yield f"### {name}.{method}"
            if callable(function):
                yield signature(method, function)
            yield prose(inspect.getdoc(function) or "")


def methods(kind: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties that nnzoo defines and documents, those of the classes above it among them."""
    found = {}
    for one in reversed(kind.__mro__):
        if one.__module__.startswith("nnzoo"):
            found |= {name: value for name, value in vars(one).items() if name[0] != "_"}
    for name, value in sorted(found.items()):
        value = getattr(value, "__func__", value)
        is_member = isinstance(value, property) or inspect.isfunction(value)
        if is_member and inspect.getdoc(value):
            yield name, value


def signature(name: str, value: object) -> str:
    """How it is called, on several lines where one is too long."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    called = f"{name}{found}"
    if len(without_modules(called)) > 100:
        called = f"{name}(\n    " + ",\n    ".join(map(str, found.parameters.values())) + ",\n)"
    return f"```python\n{without_modules(called)}\n```"


def without_modules(annotation: str) -> str:
    """Names of types, less the modules that they are from."""
    return re.sub(r"\b(nnzoo|torch|collections|pathlib|typing)(\.\w+)*\.(?=\w)", "", annotation)


def prose(docstring: str) -> str:
    """A docstring as Markdown: examples and indented tables as code, the rest as it is."""
    blocks = []
    for block in re.split(r"\n\s*\n", docstring):
        if block.lstrip().startswith(">>>"):
            blocks.append(f"```pycon\n{inspect.cleandoc(block)}\n```")
        elif block.startswith("    "):
            blocks.append(f"```text\n{inspect.cleandoc(block)}\n```")
        else:
            blocks.append(text(block))
    return "\n\n".join(blocks)


def text(block: str) -> str:
    """Prose, in which what Markdown would read as markup is no markup, but for code in backticks."""
    parts = re.split(r"(`[^`]*`)", block)
    return "".join(part if part.startswith("`") else re.sub(r"([<*\[\]_#|])", r"\\\1", part) for part in parts)
