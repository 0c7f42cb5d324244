"""`nnzoo serve`: run the traces of others on models of this machine."""

import logging
import sys
from argparse import Namespace
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from nnzoo.remote.limits import Limits


def run(options: Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; what was not answered by then waits for the next start."""
    given = {name: value for name, value in vars(options).items() if value is not None and name != "command"}
    limits = {limit.name: given.pop(limit.name) for limit in fields(Limits) if limit.name in given}
    files = {name: Path(given.pop(name)) for name in ("data", "keys") if name in given}
    models = dict(imported("models").split(text) for text in given.pop("models"))
    settings = imported("settings").Settings(
        models=tuple(models), paths=models, limits=Limits(**limits), **files, **given
    )
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    imported("serving").serve(settings)
    return 0


def imported(name: str) -> Any:
    """A module of nnzoo.remote.server. Raises ImportError that names the extra where its libraries are missing."""
    try:
        return import_module(f"nnzoo.remote.server.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("nnzoo"):
            raise
        raise ImportError(f"a server needs {error.name}, which is not installed: pip install 'nnzoo[serve]'") from error
