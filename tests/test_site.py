"""The documentation: quotations are what stands in the files, links lead somewhere, the site builds and is whole."""

import re
import sys
import textwrap
from importlib.util import find_spec
from shutil import which
from subprocess import run

import pytest

from layout import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUOTATION = re.compile(r'^```python title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
COURSE = sorted((ROOT / "docs" / "course").glob("*.md"))


def ids(pages):
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


def quotations():
    for page in PAGES:
        for number, (file, text) in enumerate(QUOTATION.findall(page.read_text())):
            yield pytest.param(file, text, id=f"{page.stem}-{number}")


@pytest.mark.parametrize(("file", "text"), [*quotations()])
def test_a_quotation_stands_in_its_file(file, text):
    assert textwrap.dedent(text) in textwrap.dedent((ROOT / file).read_text()) or text in (ROOT / file).read_text()


def anchors(page) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", ids(PAGES))
def test_links_lead_somewhere(page):
    for link in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_the_start_names_every_page_of_the_course():
    linked = LINK.findall((ROOT / "docs" / "index.md").read_text())
    assert [link for link in linked if link.startswith("course/")] == [f"course/{page.name}" for page in COURSE]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: make docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_has_a_page_for_each_page(site):
    expected = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in PAGES[1:]}
    assert expected <= {page.relative_to(site) for page in site.rglob("*.html")}


def test_pages_have_the_pictures_of_their_own_code(site):
    first = (site / "course" / "1-a-transformer-block.html").read_text()
    assert "<b>ActivationCache</b>" in first and "<svg" in first and "&#x27; Mary&#x27;" in first
    assert "@@output" not in "".join(page.read_text() for page in site.rglob("*.html"))
    assert "<svg" in (site / "course" / "3-induction-heads.html").read_text()
    assert "rgba(" in (site / "course" / "5-activation-patching.html").read_text()


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"', page.read_text())
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href="([^"]+)"', page.read_text())
        assert loaded
        assert not [one for one in loaded if re.match(r"(https?:)?//", one)], page
        for one in loaded:
            assert (page.parent / one.partition("?")[0]).is_file() or page.name == "404.html", f"{page.name}: {one}"


def test_the_reference_has_what_is_public(site):
    import nnzoo
    import nnzoo.analysis

    for module in (nnzoo, nnzoo.analysis):
        text = (site / "reference" / f"{module.__name__}.html").read_text()
        missing = [name for name in module.__all__ if f'id="{name.lower()}"' not in text]
        assert not missing
    assert 'id="languagemodeltrace"' in (site / "reference" / "nnzoo.html").read_text()


@pytest.mark.skipif(which("chromium") is None, reason="chromium is not installed")
def test_search_works_on_pages_that_were_opened_as_files(site, tmp_path):
    command = [which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    page = f"file://{site}/index.html?q=induction"
    command += ["--virtual-time-budget=8000", "--dump-dom", page]
    found = run(command, capture_output=True, text=True, timeout=60)
    assert re.search(r'class="md-search-result__meta">\d+ matching documents', found.stdout)
