"""`nnzoo keys`: make a key for a server."""

import sys
from argparse import Namespace
from pathlib import Path

from nnzoo.cli.serve import imported


def run(options: Namespace) -> int:
    """Print a new key, the only time that anybody can, and add its name and hash to a file.

    >>> import tempfile
    >>> run(Namespace(file=f"{tempfile.mkdtemp()}/keys", name="alice"))  # doctest: +ELLIPSIS
    nnzoo-...
    0
    """
    key = imported("keys").new_key(Path(options.file), options.name)
    sys.stdout.write(f"{key}\n")
    return 0
