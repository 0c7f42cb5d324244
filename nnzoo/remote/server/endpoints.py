"""An endpoint that answers to keys alone, and counts how much each of them has under way."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nnzoo.remote.server.keys import Owner
from nnzoo.remote.server.quotas import Quotas


class OfOwner:
    """A request counts among those of its owner from its headers to the last byte of what is answered."""

    def __init__(
        self,
        owner_of: Callable[[Request], Owner],
        quotas: Quotas,
        answer: Callable[[Request, Owner], Awaitable[Response]],
    ) -> None:
        self._owner_of, self._quotas, self._answer = owner_of, quotas, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        owner = self._owner_of(request)
        with self._quotas.request(owner.digest):
            response = await self._answer(request, owner)
            await response(scope, receive, send)
