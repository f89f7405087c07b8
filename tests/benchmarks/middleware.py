"""
What the middleware adds to a request whose session is loaded.
"""

from __future__ import annotations

from functools import partial
from typing import Final
from unittest import mock

import aiohttp_session
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp.typedefs import Handler

from aiohttp_session_ws import DEFAULT_SESSION_KEY, session_ws_middleware, setup

from .report import cpu_microseconds, difference, in_turns, line, median

CALLS: Final = 2000  # per round


class CheapStorage(aiohttp_session.AbstractStorage):
    """
    A storage that costs next to nothing, and knows everybody.
    """

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """
        Return a session with an id and a user.
        """
        held: aiohttp_session.SessionData = {
            "created": 1_700_000_000,
            "session": {DEFAULT_SESSION_KEY: "0123456789abcdef", "user": "me"},
        }
        return aiohttp_session.Session("key", data=held, new=False)

    async def save_session(
        self,
        request: web.Request,
        response: web.StreamResponse,
        session: aiohttp_session.Session,
    ) -> None:
        """
        Nothing changes a session here.
        """
        raise AssertionError("the benchmark's session was changed")


async def answer(request: web.Request) -> web.StreamResponse:
    """
    Load the session and answer.
    """
    await aiohttp_session.get_session(request)
    return web.Response()


async def measure(rounds: int) -> None:
    """
    Compare both chains of middlewares around the same handler.
    """
    app = web.Application()
    setup(app)
    # Clones share it; a mock in its place would be timed along.
    protocol = mock.Mock(transport=None)
    request = make_mocked_request("GET", "/", app=app, protocol=protocol)
    with_session = aiohttp_session.session_middleware(CheapStorage())
    bare: Handler = partial(with_session, handler=answer)
    ours: Handler = partial(with_session, handler=partial(session_ws_middleware, handler=answer))

    async def arm(handler: Handler) -> float:
        requests = [request.clone() for _ in range(CALLS)]

        async def work() -> None:
            for one in requests:
                await handler(one)

        return await cpu_microseconds(work, CALLS)

    floor, full = await in_turns(rounds, partial(arm, bare), partial(arm, ours))
    line(
        "middleware, per request",
        f"{difference(floor, full):+.2f} us",
        f"floor {median(floor):.1f} us, with {median(full):.1f} us; target <= +5 us",
    )
