"""Mistakes planted in the models and in generation, one at a time: does the suite notice?

    python tests/mutations.py                       all of them; exits with 1 if one survives
    python tests/mutations.py window_too_wide ...   these

Each is a replacement in a copy of the package, on which the tests of its part run until the first fails.
"""

import contextlib
import io
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from layout import LAYERS, ROOT
from mutation import Mutation
from mutations_generation import GENERATION, PRODUCTS
from mutations_models import MODELS

# where a mistake in a file is seen at once, and all that may see one in a folder
FIRST = {
    "rotary.py": "test_rotary",
    "kv_cache.py": "test_kv_cache",
    "products.py": "test_products",
    "tapes.py": "test_tapes",
    "steps.py": "test_generation_taped_changes",
}
GENERATING = [
    "test_generation_taped",
    "test_generation_taped_changes",
    "test_tapes",
    "test_generation_recorded",
    "test_generation_unrecorded",
]
TESTS = {
    "architectures": [
        "test_parity",
        "test_hook_points",
        "test_rotary",
        "test_inputs",
        "test_padding",
        "test_kv_cache",
        "test_products",
        *GENERATING,
    ],
    "nnzoo/generation": GENERATING,
}
ALL = MODELS + PRODUCTS + GENERATION
MUTATIONS = {mutation.name: mutation for mutation in ALL}


def copy_with(mutation: Mutation | None, home: Path) -> None:
    """Write the package to a folder as it is when installed, with one mistake in it (None: as it is)."""
    for package, folder in LAYERS.items():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, home / package.replace(".", "/"), ignore=ignored, dirs_exist_ok=True)
    if mutation is not None:
        mutation.plant(home)


def first_failure(mutation: Mutation | None) -> str | None:
    """The first test that fails on a mutated copy, in this process, which must not have imported nnzoo yet."""
    import pytest

    with tempfile.TemporaryDirectory() as home, contextlib.redirect_stdout(io.StringIO()) as report:
        copy_with(mutation, Path(home))
        os.chdir(home)
        sys.path.insert(0, home)
        options = [
            "-x",
            "-k",
            "not compile",
            "-p",
            "no:cacheprovider",
            "-c",
            str(ROOT / "pyproject.toml"),
            "--rootdir",
            str(ROOT),
        ]
        first = FIRST.get(mutation.file) if mutation else None
        tests = sorted(TESTS[mutation.folder if mutation else "architectures"], key=lambda name: name != first)
        code = pytest.main([*options, *(str(ROOT / "tests" / f"{name}.py") for name in tests)])
        os.chdir(ROOT)
    import nnzoo.architectures

    assert str(home) in nnzoo.architectures.__file__, "the tests ran on another copy"
    if code == pytest.ExitCode.OK:
        return None
    failed = re.search(r"^FAILED .*/(\S+)", report.getvalue(), re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"the tests of {mutation} did not run:\n{report.getvalue()}")
    return failed[1]


def outcomes(mutations: list[Mutation | None]) -> Iterator[str | None]:
    """What each comes to, each in a process of its own, forked when the slow imports are done."""
    import hypothesis  # noqa: F401
    import torch
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama
    import transformers.models.mistral.modeling_mistral  # noqa: F401

    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        yield from pool.imap(first_failure, mutations, chunksize=1)


def main(names: list[str]) -> int:
    """Print a line for each mutation; the exit status."""
    mutations = [MUTATIONS[name] for name in names] or ALL
    survivors = []
    for mutation, failure in zip(mutations, outcomes(mutations), strict=True):
        print(f"{mutation.name:40} {failure or 'SURVIVES'}", flush=True)
        survivors += [] if failure else [mutation.name]
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
