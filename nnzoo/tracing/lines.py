"""Lines of the user's: where something was recorded, and where the traceback of an error in a body ends."""

import sys
from pathlib import Path
from types import TracebackType

import einops
import jaxtyping
import torch

from nnzoo import architectures, weights
from nnzoo.tracing.graph import Line

_PACKAGES = (architectures, weights, torch, einops, jaxtyping)  # the first two stand beside nnzoo in a checkout
_LIBRARIES = (str(Path(__file__).parents[1]), *(one.__path__[0] for one in _PACKAGES), "<@beartype")


def user_line() -> Line:
    """The innermost line that is neither ours, nor PyTorch's, nor a type checker's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def add_note(error: BaseException, words: str) -> None:
    """Add to what an error says, where Python can (3.11 and later)."""
    if hasattr(error, "add_note"):
        error.add_note(words)


def end_at_the_user(error: BaseException | None, traceback: TracebackType | None) -> None:
    """Let the traceback of an error in a body end at the innermost line of the user's, which is what went wrong.

    How nnzoo and PyTorch found out is left out; an AssertionError of ours is shown whole, since it is our mistake.
    """
    last = None
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_LIBRARIES):
            last = traceback
        traceback = traceback.tb_next
    if last is not None and not isinstance(error, AssertionError):
        last.tb_next = None
