"""Runs the Python of a page while the site is built, and puts what it printed or drew below each block.

As in a notebook, the value of a block's last line is shown: as a picture if it has one, else as text. A block with a
title (```python title="architectures/gpt2.py") is a quotation and is not run.
"""

import ast
import io
import os
import re
import tempfile
from contextlib import contextmanager, redirect_stdout
from html import escape

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"<p>@@output (\d+)@@</p>")
NOT_RUN = re.compile(r"remote\.md|reference/.*")  # the first needs a server, the second is tested as docstrings

os.environ["HF_HUB_OFFLINE"] = "1"
outputs: dict[str, list[str]] = {}  # of each page, between its two events


def on_files(files, config):
    """The menu: the start, the course, the guides, the reference; a page that is added finds its place."""
    names = [file.src_uri for file in files.documentation_pages()]
    guides = [name for name in sorted(names) if "/" not in name and name != "index.md"]
    config.nav = [
        {"Start": "index.md"},
        {"Course": sorted(name for name in names if name.startswith("course/"))},
        {"Guides": guides},
        {"Reference": [name for name in names if name.startswith("reference/")]},
    ]
    return files


def on_page_markdown(markdown, page, config, files):
    """Run the page, with a mark where each output goes."""
    name = page.file.src_uri
    if NOT_RUN.fullmatch(name):
        return markdown
    found, namespace = outputs.setdefault(name, []), {"__name__": "__main__"}

    def run(block: re.Match) -> str:
        line = markdown.count("\n", 0, block.start(1))
        shown = output_of("\n" * line + block[1], name, namespace)
        if not shown:
            return block[0]
        found.append(shown)
        return f"{block[0]}\n\n@@output {len(found) - 1}@@\n"

    with somewhere_else():
        return BLOCK.sub(run, markdown)


def on_page_content(html, page, config, files):
    """Put the outputs at their marks: past Markdown, which would read something into them."""
    found = outputs.pop(page.file.src_uri, [])
    return PLACE.sub(lambda mark: f'<div class="output">{found[int(mark[1])]}</div>', html)


def output_of(code: str, name: str, namespace: dict) -> str:
    """What a block prints, and the value of its last line, as HTML."""
    tree, value = ast.parse(code, name), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    text = printed.getvalue()
    drawn = value._repr_html_() if hasattr(value, "_repr_html_") else ""
    text += "" if value is None or drawn else f"{value!r}\n"
    return (f'<pre class="printed">{escape(text.rstrip())}</pre>' if text.strip() else "") + drawn


@contextmanager
def somewhere_else():
    """What a page writes stays out of the repository."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
