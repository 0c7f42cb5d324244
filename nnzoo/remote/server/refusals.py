"""Refused: a request that is answered with an error, and which."""

from collections.abc import Mapping


class Refused(Exception):
    """An HTTP status, a short word for machines and a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


def unknown_job() -> Refused:
    """The answer to who asks for a job that is not there, and for one that is another's: the same."""
    return Refused(404, "unknown", "there is no such job, or it was sent with another key")
