"""A request's body, from the network to a file: counted as it comes, never held whole, and not waited for for ever."""

import asyncio
import time
from hashlib import sha256
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from nnzoo.remote.server.quotas import Quotas
from nnzoo.remote.server.refusals import Refused

SLOWEST = 16 * 1024  # bytes per second, below which a sender is given up
CLOSE = {"Connection": "close"}  # what is still to come of a request that is refused is not read


class Upload:
    """One body on its way into a file; what came of it counts against its owner's share until `let_go`."""

    def __init__(self, file: Path, owner: str, quotas: Quotas) -> None:
        self.file, self._owner, self._quotas = file, owner, quotas
        self.size, self._digest = 0, sha256()

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    async def receive(self, request: Request, *, most: int, patience: float) -> None:
        """Take in the body. Refused for more bytes than `most`, however many were announced, and for a slow sender."""
        announced = request.headers.get("content-length")
        # bytes one by one, in chunks of their own, would keep the server from all else
        if announced is None or "transfer-encoding" in request.headers:
            raise Refused(411, "protocol", "a request says how long it is (Content-Length)", CLOSE)
        if int(announced) > most:
            raise _too_large(most)
        chunks, begun = request.stream(), time.monotonic()
        with self.file.open("wb") as file:
            while True:
                left = patience + self.size / SLOWEST - (time.monotonic() - begun)
                try:
                    chunk = await asyncio.wait_for(anext(chunks, None), left)
                except asyncio.TimeoutError:
                    said = f"the request came too slowly: {self.size} bytes so far"
                    raise Refused(408, "timeout", said, CLOSE) from None
                except ClientDisconnect:
                    raise Refused(400, "protocol", "the sender went away") from None
                if chunk is None:
                    return
                self._take(chunk, most)
                file.write(chunk)

    def _take(self, chunk: bytes, most: int) -> None:
        if self.size + len(chunk) > most:
            raise _too_large(most)
        self._quotas.hold(self._owner, len(chunk))
        self.size += len(chunk)
        self._digest.update(chunk)

    def let_go(self) -> None:
        """Drop what came."""
        self._quotas.hold(self._owner, -self.size)
        self.file.unlink(missing_ok=True)


def _too_large(most: int) -> Refused:
    return Refused(413, "limit", f"a request may have {most} bytes, and this one has more", CLOSE)
