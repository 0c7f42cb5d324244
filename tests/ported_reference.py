"""The scripts of ported/, run as files: with nnsight, and with nnzoo by another import.

What nnsight 0.8 gives is recorded in data/ported.json. To record it again, run this file as a script where nnsight is
installed.
"""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from layout import ROOT
from lens_reference import plain, rounded

PORTED = {file.stem: file for file in sorted((ROOT / "tests" / "ported").glob("*.py"))}
VALUES = ROOT / "tests" / "data" / "ported.json"


def with_nnzoo(script: str) -> str:
    """A script with nnzoo in the place of nnsight: its imports, and nothing else.

    >>> with_nnzoo("import nnsight")
    'import nnzoo as nnsight'
    >>> with_nnzoo("from nnsight import TransformersModel")
    'from nnzoo import TransformersModel'
    """
    script = re.sub(r"^import nnsight$", "import nnzoo as nnsight", script, flags=re.M)
    return re.sub(r"^from nnsight\b", "from nnzoo", script, flags=re.M)


def with_folders(script: str) -> str:
    """A script with the folders of embedded models in the place of their names, which only nnzoo knows."""
    return re.sub(r'"nnzoo/tiny-(\w+)"', lambda found: repr(str(ROOT / "weights" / "tiny" / found[1])), script)


def run(name: str, change: Callable[[str], str]) -> Any:
    """What a script leaves in `results`, as what JSON holds. It is run as a file: nnsight reads its source."""
    with TemporaryDirectory() as folder, torch.enable_grad():
        file = Path(folder) / f"{name}.py"
        file.write_text(change(PORTED[name].read_text()))
        return plain(runpy.run_path(str(file))["results"])


def record() -> None:
    """Write down what nnsight gives."""
    values = {name: rounded(run(name, with_folders)) for name in sys.argv[1:] or PORTED}
    values = {**(json.loads(VALUES.read_text()) if sys.argv[1:] else {}), **values}
    VALUES.write_text(json.dumps(values, separators=(",", ":"), sort_keys=True).replace("]}", "]}\n") + "\n")


if __name__ == "__main__":
    record()
