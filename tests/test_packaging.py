"""What pip installs is what lies in the folders, and what CI installs is pinned."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from layout import LAYERS, ROOT, imports, modules

CHECKPOINTS = ["gpt2", "llama", "mistral"]
CUDA = ("nvidia-", "cuda-", "triton")  # the builds of torch that need these pin them themselves
OWN_FILES = ["pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that no left-over of an earlier build gets into it."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in OWN_FILES:
        shutil.copy(ROOT / name, copy)
    for folder in LAYERS.values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, copy]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return next(out.glob("nnzoo-*.whl"))


@pytest.fixture(scope="module")
def contents(wheel) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return HeaderParser().parsestr(archive.read(name).decode())


def in_wheel(name: str, file: Path) -> str:
    """Where the wheel has to hold a module's file."""
    path = name.replace(".", "/")
    return f"{path}/__init__.py" if file.name == "__init__.py" else f"{path}.py"


def test_the_wheel_holds_every_module_and_no_other(contents):
    assert {n for n in contents if n.endswith(".py")} == {in_wheel(name, file) for name, file in modules()}


def test_every_folder_with_code_is_a_package():
    assert {file.parent for _, file in modules()} == {file.parent for _, file in modules() if file.stem == "__init__"}


def test_the_wheel_tells_type_checkers_that_it_is_typed(contents):
    assert "nnzoo/py.typed" in contents


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_the_wheel_holds_the_embedded_checkpoint(family, contents):
    folder = ROOT / "weights" / "tiny" / family
    files = {f"nnzoo/weights/tiny/{family}/{file.name}" for file in folder.iterdir()}
    assert {n for n in contents if n.startswith(f"nnzoo/weights/tiny/{family}/")} == files
    assert f"nnzoo/weights/tiny/{family}/model.safetensors" in files


def test_the_wheel_installs_one_top_level_name(contents):
    assert {name.split("/")[0] for name in contents} == {"nnzoo"}


def test_nothing_but_code_checkpoints_and_py_typed_is_installed(contents):
    extra = [n for n in contents if not n.endswith((".py", "/py.typed")) and not n.startswith("nnzoo/weights/tiny/")]
    assert not extra


def test_the_licence_is_mit(metadata, wheel):
    assert metadata["License-Expression"] == "MIT"
    assert any(name.endswith("LICENSE") for name in zipfile.ZipFile(wheel).namelist())


# modules, by how their names begin, that only they import for whom an extra was installed
EXTRAS = {"nnzoo.remote.server.ray_": "ray", "nnzoo.remote.server": "serve"}


def declared_for(module: str, requirements: list[str]) -> set[str]:
    """What a module may import: the dependencies, and those of the extra that its package stands for."""
    extra = next((extra for package, extra in EXTRAS.items() if module.startswith(package)), "")
    asked = [r for r in map(Requirement, requirements) if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {canonicalize_name(r.name) for r in asked}


def test_every_third_party_import_is_a_dependency(metadata):
    providers = packages_distributions()
    for module, file in modules():
        declared = declared_for(module, metadata.get_all("Requires-Dist"))
        for line, _, target in imports(file):
            root = target.split(".")[0]
            if root == "nnzoo" or root in sys.stdlib_module_names:
                continue
            names = {canonicalize_name(name) for name in providers.get(root, [root])}
            assert names & declared, f"{file}:{line} imports {target}, which pyproject.toml does not ask for"


def pins() -> dict[str, str]:
    """The versions that constraints.txt asks for on this Python."""
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    asked = [Requirement(line) for line in lines if line]
    active = [r for r in asked if r.marker is None or r.marker.evaluate()]
    return {canonicalize_name(r.name): str(r.specifier) for r in active}


def needed(requirements: list[str], extra: str, found: set[str]) -> set[str]:
    """The names of what some requirements need, all the way down."""
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        asked = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if asked and name not in found and not name.startswith(CUDA):
            found.add(name)
            for extra in requirement.extras or [""]:
                needed(distribution(name).requires or [], extra, found)
    return found


@pytest.mark.parametrize("extra", ["dev", "docs", "ray"])
def test_constraints_pin_everything_that_development_needs(extra, metadata):
    if extra != "dev":
        pytest.importorskip({"docs": "mkdocs", "ray": "ray"}[extra])
    unpinned = needed(metadata.get_all("Requires-Dist"), extra, set()) - pins().keys() - {"nnzoo"}  # of its extras
    assert not unpinned, f"constraints.txt has no version of {sorted(unpinned)}"


def test_constraints_are_exact():
    open_ended = {name: wanted for name, wanted in pins().items() if not re.fullmatch(r"==[\w.]+", wanted)}
    assert not open_ended
