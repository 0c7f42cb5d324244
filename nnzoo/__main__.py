"""`python -m nnzoo` is the command `nnzoo`."""

import sys

from nnzoo.cli import main

sys.exit(main())
