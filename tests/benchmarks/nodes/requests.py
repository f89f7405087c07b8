"""
What the middleware adds to a request of a session that Redis was asked about lately.
"""

from __future__ import annotations

from functools import partial
from typing import Final
from unittest import mock

import aiohttp_session
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp.typedefs import Handler

from aiohttp_session_ws import SessionWSRegistry, session_ws_middleware, setup
from aiohttp_session_ws.redis import RedisSessionWSRegistry

from ..middleware import CheapStorage, answer
from ..report import cpu_microseconds, difference, in_turns, line, median

CALLS: Final = 2000  # per round


def _app(registry: SessionWSRegistry) -> web.Application:
    app = web.Application()
    setup(app, registry)
    return app


async def _arm(handler: Handler, app: web.Application) -> float:
    protocol = mock.Mock(transport=None)
    request = make_mocked_request("GET", "/", app=app, protocol=protocol)
    requests = [request.clone() for _ in range(CALLS)]

    async def work() -> None:
        for one in requests:
            await handler(one)

    return await cpu_microseconds(work, CALLS)


async def measure(url: str, rounds: int) -> None:
    """
    Compare both registries, and no middleware at all.
    """
    apps = [_app(SessionWSRegistry()), _app(RedisSessionWSRegistry(url))]
    runners = [web.AppRunner(app) for app in apps]
    for runner in runners:
        await runner.setup()
    with_session = aiohttp_session.session_middleware(CheapStorage())
    bare: Handler = partial(with_session, handler=answer)
    ours: Handler = partial(with_session, handler=partial(session_ws_middleware, handler=answer))
    arms = [partial(_arm, bare, apps[0]), *[partial(_arm, ours, app) for app in apps]]
    floor, memory, redis = await in_turns(rounds, *arms)
    for runner in runners:
        await runner.cleanup()
    line(
        "middleware, per request",
        f"{difference(floor, redis):+.2f} us",
        f"floor {median(floor):.1f} us, with {median(redis):.1f} us; in memory"
        f" {difference(floor, memory):+.2f} us",
    )
