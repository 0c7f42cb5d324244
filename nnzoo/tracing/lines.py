"""Lines of the user's: where something was recorded, and where the traceback of an error ends."""

import contextlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import einops
import jaxtyping
import torch

from nnzoo import architectures, weights
from nnzoo.tracing.graph import Line

# the latter two stand beside nnzoo in a checkout
_OURS = (str(Path(__file__).parents[1]), *(one.__path__[0] for one in (architectures, weights)))
_LIBRARIES = (*_OURS, *(one.__path__[0] for one in (torch, einops, jaxtyping)), "<@beartype")
_INSTALLED = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen ")


def user_line() -> Line:
    """The innermost line that is neither ours, nor PyTorch's, nor a type checker's."""
    frame = _users_frame()
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def users_variables() -> Iterator[tuple[list[Any], frozenset[str]]]:
    """What the user's code at that line can name: variables and globals, and the names that stand in the code.

    First of the function around it, then of those that call it, as far as they are the user's too.
    """
    frame: FrameType | None = _users_frame()
    while frame is not None:
        names = frame.f_code.co_names
        used = [frame.f_globals[name] for name in names if name in frame.f_globals]
        yield _variables(frame) + used, frozenset(names)
        frame = frame.f_back
        while frame is not None and _stands_between(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None and frame.f_code.co_filename.startswith(_INSTALLED):
            return


def _variables(frame: FrameType) -> list[Any]:
    """The values of a frame's variables."""
    names, code = frame.f_locals, frame.f_code
    values = [*names.values()]
    is_copy = type(names) is dict and bool(code.co_flags & inspect.CO_OPTIMIZED)  # before Python 3.13, of a function
    if is_copy and sys.getrefcount(names) == 3:  # the frame has it, and we; else it would keep the values until then
        for name in code.co_varnames + code.co_cellvars + code.co_freevars:
            names.pop(name, None)
    return values


def _users_frame() -> FrameType:
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _stands_between(filename: str) -> bool:
    """Whether a file is of a library that calls the user's code in the user's own name, as an ExitStack does."""
    return filename == contextlib.__file__ or _is_library(filename)


@lru_cache(1024)  # notebooks have a file a cell
def _is_library(file: str) -> bool:
    return file.startswith(_LIBRARIES)


def add_note(error: BaseException, words: str) -> None:
    """Add to what an error says: as a note, or where Python has none (before 3.11), to its message."""
    if hasattr(error, "add_note"):
        error.add_note(words)
    elif error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{words}", *error.args[1:])


def end_at_the_user(error: BaseException | None, traceback: TracebackType | None) -> None:
    """Let the traceback of an error in a body end at the line of the user's that went wrong.

    It is the innermost one, or of what was recorded before and went wrong when a look ran it, the line that recorded
    it. How nnzoo and PyTorch found out is left out; an AssertionError of ours is shown whole, since it is our mistake.
    """
    last = _last_of_users(traceback)
    if last is None or _is_our_mistake(error, traceback):
        return
    line = getattr(error, "line", None)
    here = (last.tb_frame.f_code.co_filename, last.tb_lineno)
    last.tb_next = _at(line) if isinstance(line, Line) and (line.file, line.number) != here else None


def end_at_what_was_recorded(error: Exception) -> Exception:
    """The error of a run that the end of a block began, with a traceback that ends at the line that recorded it.

    Where code of the user's ran and failed, a `torch.autograd.Function`'s, it ends there. What is of no line is of the
    block's.
    """
    if _is_our_mistake(error, error.__traceback__):
        return error
    if last := _last_of_users(error.__traceback__):
        last.tb_next = None
        return error.with_traceback(last)
    line = getattr(error, "line", None)
    return error.with_traceback(_at(line if isinstance(line, Line) else user_line()))


def goes_through_the_compiler(traceback: TracebackType | None) -> bool:
    """Whether an error came up in PyTorch's compiler, or in what it ran."""
    return any("/torch/_dynamo/" in Path(one.tb_frame.f_code.co_filename).as_posix() for one in _entries(traceback))


def _is_our_mistake(error: BaseException | None, traceback: TracebackType | None) -> bool:
    files = [one.tb_frame.f_code.co_filename for one in _entries(traceback)]
    return isinstance(error, AssertionError) and bool(files) and files[-1].startswith(_OURS)


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _last_of_users(traceback: TracebackType | None) -> TracebackType | None:
    users = [one for one in _entries(traceback) if not _is_library(one.tb_frame.f_code.co_filename)]
    return users[-1] if users else None


def _at(line: Line) -> TracebackType:
    """A traceback of a line that has run: in its own frame if that is there still, else in one that stands for it."""
    frame = next((one for one in _frames() if _is_of(one, line)), None) or _stand_in(line)
    return TracebackType(None, frame, -1, line.number)  # -1: of no part of the line


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_of(frame: FrameType, line: Line) -> bool:
    return frame.f_code.co_filename == line.file and frame.f_code.co_name == line.function


def _stand_in(line: Line) -> FrameType:
    code = compile("frame()", line.file, "eval").replace(co_name=line.function, co_firstlineno=line.number)
    return eval(code, {"frame": sys._getframe})
