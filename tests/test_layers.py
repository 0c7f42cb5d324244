"""Imports run one way: nnzoo -> weights -> architectures. Importing nnzoo stays cheap; shapes are checked in tests."""

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from layout import LAYERS, ROOT, imports, modules, python_files
from nnzoo.architectures.kv_cache import KVCache

FILES = [pytest.param(name, file, id=name) for name, file in modules()]
GROUND_FLOOR = {"torch", "einops", "jaxtyping", "nnzoo.architectures"}
HEAVY = ["transformers", "rich", "huggingface_hub", "tokenizers"]


def layer_of(name: str) -> str | None:
    """The layer that a module belongs to; None outside of nnzoo."""
    owners = [layer for layer in LAYERS if name == layer or name.startswith(layer + ".")]
    return max(owners, key=len, default=None)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_has_code(layer):
    assert python_files(layer), f"{LAYERS[layer]}/ is empty, so the claims about it below would hold for nothing"


@pytest.mark.parametrize(("name", "file"), FILES)
def test_imports_only_point_down(name, file):
    order = list(LAYERS)
    own = order.index(layer_of(name))
    for line, _, target in imports(file):
        other = layer_of(target)
        assert other is None or order.index(other) >= own, f"{file}:{line} imports {target}, which stands above it"


@pytest.mark.parametrize(("name", "file"), FILES)
def test_imports_are_absolute(name, file):
    relative = [line for line, level, _ in imports(file) if level]
    assert not relative, f"{file}: relative imports at lines {relative}"


@pytest.mark.parametrize("file", [pytest.param(f, id=f.stem) for f in python_files("nnzoo.architectures")])
def test_architectures_need_nothing_but_torch_einops_and_jaxtyping(file):
    for line, _, target in imports(file):
        root = target.split(".")[0]
        allowed = root in sys.stdlib_module_names or root in GROUND_FLOOR or layer_of(target) in GROUND_FLOOR
        assert allowed, f"{file}:{line} imports {target}"


@pytest.mark.parametrize(("name", "file"), FILES)
def test_files_stay_under_400_lines(name, file):
    assert len(file.read_text().splitlines()) < 400


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


def test_importing_nnzoo_imports_nothing_heavy():
    loaded = modules_after("from nnzoo import *")
    assert "torch" in loaded
    assert not loaded & set(HEAVY)


def test_this_suite_checks_the_shapes_in_annotations():
    cache = KVCache(n_layers=1)
    k = torch.zeros(1, 2, 3, 4)  # [batch pos kv_head d_head]
    assert cache.append(0, k, k)[0].shape == (1, 2, 3, 4)
    with pytest.raises(TypeCheckError, match="batch pos kv_head d_head"):
        cache.append(0, k[0], k[0])
