"""HTTP to a server of nnzoo: requests that may be repeated, none of which makes a job run twice."""

import os
import random
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from nnzoo.config import CONFIG
from nnzoo.remote.errors import (
    JobGone,
    LimitExceeded,
    NoServer,
    RemoteError,
    Unauthorized,
    UnknownModel,
    refusal,
)
from nnzoo.remote.protocol import MEDIA_TYPE

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 7  # to reach a server that has not answered yet
ATTEMPTS_LATER = 12  # one that has: a minute or so, in which it may be started again
LONGEST_PAUSE = 15.0  # seconds between two attempts, unless the server asks for more
WAIT = 20.0  # seconds that the server may let a request for a result wait
_AGAIN = {429, 502, 503, 504}
_HERE = ("localhost", "127.0.0.1", "[::1]")  # where no proxy leads, whatever the environment says
_EXCEPTIONS = {401: Unauthorized, 403: Unauthorized, 410: JobGone, 413: LimitExceeded}


def connect(host: str | None = None) -> "Client":
    """The client of a host, CONFIG.API.HOST's by default, whose connections stay open from one trace to the next.

    Raises NoServer where no host is known.
    """
    address = host or CONFIG.API.HOST
    if not address:
        raise NoServer(
            "remote=True needs a server, and none is known. Start one with `nnzoo serve MODEL`, and say where it is: "
            'CONFIG.API.HOST = "http://127.0.0.1:8000", or NDIF_HOST in the environment'
        )
    connections = CONFIG.API.connections
    key = (address, CONFIG.API.APIKEY, os.getpid())  # a connection does not survive a fork
    if key not in connections:
        connections[key] = Client(address, CONFIG.API.APIKEY)
    return connections[key]


class Client:
    """Talks to one server, at http://, https:// or unix:/path. `transport` is httpx2's, where it is not the network.

    Connection errors, and answers that say "later", are tried again, with growing pauses of random length. A job is
    submitted under a key of its own, by which the server knows it again.
    """

    def __init__(
        self,
        host: str,
        key: str | None = None,
        *,
        transport: "httpx2.BaseTransport | None" = None,
        timeout: int | float = 60,
    ) -> None:
        import httpx2

        if not host.startswith(("http://", "https://", "unix:/")):
            raise ValueError(f"a server's address begins with http://, https:// or unix:/, and {host!r:.80} does not")
        self.host = host.rstrip("/")
        url = self.host
        if host.startswith("unix:"):
            url, transport = "http://localhost", httpx2.HTTPTransport(uds=host.removeprefix("unix:"))
        self._names: dict[str, str] = {}
        self._has_answered = False
        self._http = httpx2.Client(
            base_url=url,
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx2.Timeout(timeout, connect=10),
            transport=transport,
            mounts={f"all://{name}": None for name in _HERE},
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    # --- what there is -------------------------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """What the server serves."""
        return self._told("GET", "/models")

    def name_of(self, model: str) -> str:
        """What the server calls a model: a folder here that it does not list goes by the folder's own name there."""
        if model not in self._names:
            is_theirs = not Path(model).is_dir() or any(one["name"] == model for one in self.models())
            self._names[model] = model if is_theirs else Path(model).resolve().name
        return self._names[model]

    def version(self) -> dict[str, Any]:
        """The versions of the server and of its protocol."""
        return self._told("GET", "/version")

    # --- jobs ----------------------------------------------------------------------------------------------------

    def submit(self, request: bytes, wait: int | float = 0) -> tuple[dict[str, Any], bytes | None]:
        """A new job, as the server describes it, and its message where it ends within the wait, in seconds.

        However often the request must be sent, it is one job. Interrupted (Ctrl-C), it is cancelled.
        """
        headers = {"Idempotency-Key": str(uuid4()), "Content-Type": MEDIA_TYPE}
        how = {"content": request, "headers": headers}
        try:
            answer = self._call("POST", "/jobs", params={"wait": f"{wait:g}"} if wait else {}, **how)
        except KeyboardInterrupt:  # what its name is, the server says when it is sent again
            with suppress(Exception):
                self.cancel(self._told("POST", "/jobs", **how)["id"])
            raise
        if answer.headers.get("Content-Type") == MEDIA_TYPE:
            return {"id": answer.headers["Location"].rpartition("/")[2]}, answer.content
        return _read(answer), None

    def status(self, job: str) -> dict[str, Any]:
        """How a job stands."""
        return self._told("GET", f"/jobs/{job}")

    def result(self, job: str, wait: int | float = WAIT) -> bytes | None:
        """The message of a job that has ended; None where it did not within the wait, in seconds."""
        answer = self._call("GET", f"/jobs/{job}/result", params={"wait": f"{wait:g}"})
        return None if answer.status_code == 202 else answer.content

    def cancel(self, job: str) -> None:
        """Take a job out of the queue, stop it, or forget it when it has ended."""
        self._call("DELETE", f"/jobs/{job}")

    def events(self, job: str, after: str | None = None) -> "Iterator[httpx2.ServerSentEvent]":
        """What happens to a job, as it happens, from after an event on; a connection that breaks is made again."""
        import httpx2

        failures = 0
        while True:
            headers = {} if after is None else {"Last-Event-ID": after}
            try:
                with self._http.stream("GET", f"/jobs/{job}/events", headers=headers) as answer:
                    if answer.status_code not in _AGAIN:
                        _check(answer)
                        if answer.status_code == 204:  # there was nothing after that event
                            return
                        for event in httpx2.EventSource(answer):
                            failures, after = 0, event.id or after
                            yield event
                            if event.event == "end":
                                return
                pause = _asked_pause(answer.headers)
            except httpx2.TransportError as error:
                pause, failed = None, error
                if failures + 1 >= self._attempts:
                    raise self._no_answer(failed) from error
            failures += 1
            if failures >= self._attempts:
                raise RemoteError(f"{self.host} ends the events of job {job} before the job has ended")
            _sleep(failures, pause)

    # --- one request ---------------------------------------------------------------------------------------------

    @property
    def _attempts(self) -> int:
        return ATTEMPTS_LATER if self._has_answered else ATTEMPTS

    def _told(self, method: str, path: str, **how: Any) -> Any:
        return _read(self._call(method, path, **how))

    def _call(self, method: str, path: str, **how: Any) -> "httpx2.Response":
        import httpx2

        for attempt in count(1):
            try:
                answer = self._http.request(method, path, **how)
            except (httpx2.TransportError, httpx2.ProtocolError) as error:
                if attempt >= self._attempts or _is_final(error):
                    raise self._no_answer(error) from error
                _sleep(attempt, None)
                continue
            if answer.status_code not in _AGAIN or attempt >= self._attempts:
                _check(answer)
                self._has_answered = True
                return answer
            _sleep(attempt, _asked_pause(answer.headers))
        raise AssertionError("counting ends nowhere")

    def _no_answer(self, error: Exception) -> NoServer:
        why = str(error) or type(error).__name__
        if _is_distrusted(error):
            return NoServer(
                f"{self.host} has a certificate that nobody here vouches for ({why}); SSL_CERT_FILE in the environment "
                "names a file with those of your own authorities"
            )
        return NoServer(
            f"{self.host} does not answer ({why}); does a server run there (`nnzoo serve MODEL`), and is "
            "CONFIG.API.HOST its address?"
        )


def _sleep(attempt: int, asked: float | None) -> None:
    longest = min(LONGEST_PAUSE, 0.1 * 2**attempt)
    spread = random.uniform(longest / 2, longest)  # others were sent away at the same moment
    time.sleep((asked or 0.0) + spread)


def _is_final(error: Exception) -> bool:
    """Whether trying again would end in the same."""
    import httpx2

    return isinstance(error, httpx2.UnsupportedProtocol) or _is_distrusted(error)


def _is_distrusted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _read(answer: "httpx2.Response") -> Any:
    """What an answer says. Raises RemoteError for one that is of somebody else, as the page of a network's login."""
    try:
        return answer.json()
    except ValueError as error:
        raise RemoteError(
            f"{answer.request.url.host} answers with {answer.headers.get('Content-Type')!r:.60}, as no server of nnzoo "
            f"does: {answer.text:.100}"
        ) from error


def _asked_pause(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header, or until the date that it is: a proxy's, whose clock gives the time too."""
    asked = headers.get("Retry-After", "")
    try:
        seconds = float(asked) if asked.strip().isdecimal() else _date(asked) - _date(headers.get("Date"))
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), 600.0)


def _date(text: str | None) -> float:
    """A date of HTTP in seconds, now where there is none. Raises ValueError for what is no date."""
    return time.time() if text is None else parsedate_to_datetime(text).timestamp()


def _check(answer: "httpx2.Response") -> None:
    """Raise what an answer says that is none."""
    if answer.is_success:
        return
    answer.read()
    code, message = _said(answer)
    status = answer.status_code
    if answer.has_redirect_location:  # a key is sent to nobody else
        message = (
            f"{answer.request.url} is now at {answer.headers['Location']:.200}: set CONFIG.API.HOST to that server"
        )
    if status in (401, 403):
        message += '; a key is set by CONFIG.set_default_api_key("...") or by NDIF_API_KEY in the environment'
    if status == 404:
        raise UnknownModel(message, code) if answer.request.method == "POST" else JobGone(message, code)
    if status in _EXCEPTIONS:
        raise _EXCEPTIONS[status](message, code)
    raise refusal(code, message)


def _said(answer: "httpx2.Response") -> tuple[str, str]:
    try:
        error = answer.json()["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        is_page = answer.headers.get("Content-Type", "").startswith("text/html")
        more = " with a page of its own, as a proxy does" if is_page else f": {answer.text:.200}"
        return "", f"{answer.request.url.host} answers {answer.status_code} {answer.reason_phrase}{more}"
