"""What goes wrong with a server, as exceptions; what a trace itself did wrong is raised as it would be without one."""

from typing import Any

import torch

from nnzoo.architectures.hooks import HookShapeError
from nnzoo.generation.refusals import OptionError
from nnzoo.remote.protocol import ProtocolError
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph import Line
from nnzoo.tracing.recorder import TraceError


class RemoteError(RuntimeError):
    """The server did not do what it was asked; `code` is the server's short word for why."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class NoServer(RemoteError):
    """Nobody said where the server is, or nobody answers there."""


class Unauthorized(RemoteError):
    """The server does not take the key."""


class UnknownModel(RemoteError):
    """The server does not have the model."""


class LimitExceeded(RemoteError):
    """The request, or what it asks for, is more than the server allows."""


class JobCancelled(RemoteError):
    """Somebody cancelled the job."""


class JobGone(RemoteError):
    """The server does not know the job, or keeps its result no longer."""


# Those that a graph may raise as it runs. A name that is not here stands for no class: nothing is looked up elsewhere.
_RAISED: dict[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (
        TraceError, GraphError, HookShapeError, OptionError, ValueError, TypeError, IndexError, RuntimeError,
        NotImplementedError, ArithmeticError, OverflowError, ZeroDivisionError, AttributeError, AssertionError,
        torch.OutOfMemoryError, torch.linalg.LinAlgError,  # type: ignore[attr-defined]  # it is there
    )
}  # fmt: skip
_CODES: dict[str, type[RemoteError]] = {
    "limit": LimitExceeded,
    "cancelled": JobCancelled,
    "model": UnknownModel,
    "timeout": LimitExceeded,
    "worker": RemoteError,
}


def failure(fields: dict[str, Any]) -> Exception:
    """The exception of an "error" message as one that is raised here; `.line` is that which recorded the culprit."""
    code, message, raised = fields["code"], fields["message"], _RAISED.get(fields["type"])
    line = None if fields["line"] is None else Line(*fields["line"])
    if code in _CODES or raised is None:
        is_ours = code in _CODES or fields["type"] == RemoteError.__name__
        message = message if is_ours else f"{fields['type']}: {message}"
        is_said = line is None or f"{line.file}:{line.number}" in message
        return refusal(code, message if is_said else f"{message} (recorded at {line})")
    error = raised(message)
    error.line = line  # type: ignore[attr-defined]  # where its traceback ends
    return error


def refusal(code: str, message: str) -> Exception:
    """The exception of a server's short word."""
    return ProtocolError(message) if code == "protocol" else _CODES.get(code, RemoteError)(message, code)
