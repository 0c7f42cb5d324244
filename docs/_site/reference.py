"""The API reference: a page for each module that lists what is public, out of its docstrings."""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module

from mkdocs.structure.files import File

import nnzoo

MODULES = [  # have no __all__
    "nnzoo.envoys.envoy",
    "nnzoo.tracing.tracer",
    "nnzoo.tracing.graph_object",
    "nnzoo.architectures.gpt2",
    "nnzoo.architectures.llama",
    "nnzoo.architectures.mistral",
    "nnzoo.architectures.toy",
]
ROOTS = ["nnzoo.weights"]  # stands in a folder of its own


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
    members = {public: getattr(module, public) for public in getattr(module, "__all__", None) or own(module)}
    parts = [f"# {name}", prose(inspect.getdoc(module) or "")]
    parts += [one for public, value in members.items() for one in entry(public, value, [*members.values()])]
    return "\n\n".join(parts) + "\n"


def own(module: object) -> list[str]:
    """The classes and functions that a module defines."""
    return [
        name for name, value in vars(module).items()
        if name[0] != "_" and getattr(value, "__module__", "") == module.__name__ and callable(value)
    ]  # fmt: skip


def entry(name: str, value: object, others: list[object]) -> Iterator[str]:
    """A class with its methods, a function, or a value; `others` are on the page too."""
    yield f"## {name}"
    if inspect.isclass(value) or callable(value):
        yield signature(name, value)
    yield prose(inspect.getdoc(value) or "" if inspect.isclass(value) or callable(value) else repr(value))
    if inspect.isclass(value):
        for method, function in methods(value, others):
            yield f"### {name}.{method}"
            if callable(function):
                yield signature(method, function)
            yield prose(inspect.getdoc(function) or "")


def methods(kind: type, others: list[object]) -> Iterator[tuple[str, object]]:
    """Public methods and properties that nnzoo documents, those of a class above it too, unless that is on the page."""
    found = {}
    for one in reversed(kind.__mro__):
        if one.__module__.startswith("nnzoo") and (one is kind or one not in others):
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
    return re.sub(r"\b(nnzoo|torch|collections|jaxtyping|pathlib|typing)(\.\w+)*\.(?=\w)", "", annotation)


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
