"""The tree of a model as a picture: every module can be opened, and shows its hook points and what is below."""

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from nnzoo.architectures.html import LINE, picture
from nnzoo.envoys.attached import Attached
from nnzoo.envoys.printing import details_of, hooks_of, kind_of, labels_of

if TYPE_CHECKING:
    from nnzoo.envoys.envoy import Envoy

DEEP = 3  # levels that are open at first
STYLE = f"""
.nnzoo .tree {{ font: 12px/1.7 ui-monospace, Menlo, Consolas, monospace; }}
.nnzoo .tree details > div {{ margin-left: .5em; padding-left: 1.1em; border-left: 1px solid {LINE}; }}
.nnzoo .tree .leaf {{ padding-left: 1.05em; }}
.nnzoo .tree .hook {{ white-space: pre; opacity: .75; padding-left: 1.05em; }}
.nnzoo .tree pre {{ margin: 0; background: transparent; color: inherit; font: inherit; }}
"""


def tree_html(envoy: "Envoy") -> str:
    """A module and all below.

    >>> from nnzoo import LanguageModel
    >>> drawn = tree_html(LanguageModel("nnzoo/tiny-gpt2"))
    >>> drawn.count("<details"), "hook_pattern" in drawn, "4 × " in drawn
    (10, True, True)
    """
    name = f"{envoy._root._checkpoint.name}{'.' if envoy._path else ''}{envoy._path}"
    title = f"<b>{escape(name)}</b> <span class='faint'>modules by their paths, with their hook points</span>"
    return picture(title, f'<div class="tree">{_drawn("", envoy, DEEP)}</div>', STYLE)


def _drawn(label: str, module: Any, deep: int, times: int = 1) -> str:
    head = f"<b>{escape(label)}</b> " if label else ""
    if isinstance(module, Attached):
        return f'<div class="leaf">{head}<pre>{escape(repr(module))}</pre></div>'
    if module._node.is_hook:
        return f'<div class="leaf">{escape(repr(module))}</div>'
    many = f"{times} × " if times > 1 else ""
    head += f"{many}{escape(kind_of(module))}"
    inside = "".join(f'<div class="hook">{escape(line)}</div>' for line in hooks_of(module))
    inside += "".join(_drawn(name, child, deep - 1, n) for name, child, n in _children(module))
    details = "" if module._children() else f'<span class="faint">({escape(details_of(module))})</span>'
    if not inside:
        return f'<div class="leaf">{head}{details}</div>'
    return f"<details{' open' if deep > 0 else ''}><summary>{head}{details}</summary><div>{inside}</div></details>"


def _children(envoy: "Envoy") -> list[tuple[str, Any, int]]:
    """The modules below with their names, those of a list that are alike as one; and how many it stands for."""
    labels = labels_of(envoy)
    children = [(labels.get(name, name), child) for name, child in envoy._children().items()]
    if envoy._node.item is None:
        return [(label, child, 1) for label, child in children]
    alike = [[*group] for _, group in groupby(children, key=lambda pair: repr(pair[1]))]
    return [(_span(group), group[0][1], len(group)) for group in alike]


def _span(group: list[tuple[str, Any]]) -> str:
    (first, _), (last, _) = group[0], group[-1]
    return first if first == last else f"{first}-{last}"
