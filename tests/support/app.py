"""
The application under test of most test modules, with several ways to log out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import aiohttp_session
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage

from aiohttp_session_ws import (
    SessionWSRegistry,
    Timeouts,
    end_identity_ws,
    end_session_ws,
    get_session_ws_id,
    new_session_ws_id,
    renew_session_ws,
    schedule_close_all_session_ws,
    session_ws,
    session_ws_middleware,
    setup,
)

from .clients import PATIENCE

QUICK = Timeouts(close=0.2, handler_grace=0.1, response=0.5)
PATIENT = Timeouts(close=PATIENCE, handler_grace=PATIENCE)  # for slow but well-behaved peers

Way: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def user_of(request: web.Request) -> str | None:
    """Return the user that the log-in stored in the session."""
    user: str | None = (await aiohttp_session.get_session(request)).get("user")
    return user


async def log_in(request: web.Request) -> web.Response:
    """Store a user in the session, so that it holds more than an id."""
    session = await aiohttp_session.get_session(request)
    session["user"] = request.query.get("user", "ann")
    return web.Response(text=str(await get_session_ws_id(request)))


async def log_in_and_renew(request: web.Request) -> web.Response:
    """Store a user in the session, and renew the session."""
    response = await log_in(request)
    await renew_session_ws(request, response)
    return response


async def whoami(request: web.Request) -> web.Response:
    """Return the user and the session ws id."""
    session = await aiohttp_session.get_session(request)
    return web.json_response({"user": session.get("user"), "id": await get_session_ws_id(request)})


async def converse(request: web.Request) -> web.WebSocketResponse:
    """Send the session ws id and the user, then echo messages."""
    async with session_ws(request) as ws:
        session = await aiohttp_session.get_session(request)
        await ws.send_json([await get_session_ws_id(request), session.get("user")])
        async for message in ws:
            await ws.send_str(message.data)
    return ws


async def out_by_helper(request: web.Request) -> web.Response:
    """Log out by ``end_session_ws``."""
    response = web.Response()
    await end_session_ws(request, response)
    return response


async def out_by_pattern(request: web.Request) -> web.Response:
    """Log out by the pattern in the README of 1.1.1."""
    response = web.HTTPFound("/")
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    await new_session_ws_id(request)
    raise response


async def out_by_invalidate(request: web.Request) -> web.Response:
    """Log out by invalidating the session, without calling the package."""
    (await aiohttp_session.get_session(request)).invalidate()
    return web.Response()


async def out_by_new_session(request: web.Request) -> web.Response:
    """Log out by replacing the session, without calling the package."""
    await aiohttp_session.new_session(request)
    return web.Response()


async def out_everywhere(request: web.Request) -> web.Response:
    """End all sessions of the user."""
    response = web.Response()
    await end_identity_ws(request, response)
    return response


async def reset(request: web.Request) -> web.Response:
    """Close the session's sockets and give the session a new id."""
    response = web.Response()
    await schedule_close_all_session_ws(request, response)
    await new_session_ws_id(request)
    return response


async def renew(request: web.Request) -> web.Response:
    """Renew the session by ``renew_session_ws``."""
    response = web.Response()
    await renew_session_ws(request, response)
    return response


async def only_close(request: web.Request) -> web.Response:
    """Close the session's sockets and keep its id."""
    response = web.Response()
    await schedule_close_all_session_ws(request, response)
    return response


WAYS: dict[str, Way] = {
    "end_session_ws": out_by_helper,
    "pattern": out_by_pattern,
    "invalidate": out_by_invalidate,
    "new_session": out_by_new_session,
}


def make_app(
    registry: SessionWSRegistry | None = None,
    storage: AbstractStorage | None = None,
    *extra: Any,
) -> web.Application:
    """Build an app with the handlers above; *extra* middlewares run inside the package's."""
    if storage is None:
        storage = SimpleCookieStorage()
    middlewares = [aiohttp_session.session_middleware(storage), session_ws_middleware, *extra]
    app = web.Application(middlewares=middlewares)
    setup(app, registry)
    app.router.add_get("/login", log_in)
    app.router.add_get("/enter", log_in_and_renew)
    app.router.add_get("/whoami", whoami)
    app.router.add_get("/ws", converse)
    app.router.add_get("/reset", reset)
    app.router.add_get("/renew", renew)
    app.router.add_get("/close", only_close)
    app.router.add_get("/out/everywhere", out_everywhere)
    for name, way in WAYS.items():
        app.router.add_get(f"/out/{name}", way)
    return app
