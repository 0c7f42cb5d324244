"""`nnzoo serve`: run the traces of others on models of this machine."""

import logging
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any


def run(options: Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; what was not answered by then waits for the next start."""
    settings = imported("settings")
    given = {name: value for name, value in vars(options).items() if value is not None and name != "command"}
    for name in ("data", "keys"):
        if name in given:
            given[name] = Path(given[name])
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    imported("serving").serve(settings.Settings(**{**given, "models": tuple(options.models)}))
    return 0


def imported(name: str) -> Any:
    """A module of nnzoo.remote.server. Raises ImportError that names the extra where its libraries are missing."""
    try:
        return import_module(f"nnzoo.remote.server.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("nnzoo"):
            raise
        raise ImportError(f"a server needs {error.name}, which is not installed: pip install 'nnzoo[serve]'") from error
