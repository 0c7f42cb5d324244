"""Finding what is wrong with a model: checked passes (`nnzoo.debug`) and two models side by side (`nnzoo.diff`)."""

from nnzoo.debugging.checks import Checks
from nnzoo.debugging.difference import Difference, Gap, diff
from nnzoo.debugging.faults import NonFiniteError
from nnzoo.debugging.watching import debug

__all__ = ["Checks", "Difference", "Gap", "NonFiniteError", "debug", "diff"]
