"""
The application that most tests drive, and the ways to log out of it.
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
PATIENT = Timeouts(close=PATIENCE, handler_grace=PATIENCE)  # for peers that behave, at any pace

Way: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def user_of(request: web.Request) -> str | None:
    """Identify by what the log-in wrote."""
    user: str | None = (await aiohttp_session.get_session(request)).get("user")
    return user


async def log_in(request: web.Request) -> web.Response:
    """Put a user into the session, so that it holds more than an id."""
    session = await aiohttp_session.get_session(request)
    session["user"] = request.query.get("user", "ann")
    return web.Response(text=str(await get_session_ws_id(request)))


async def log_in_and_renew(request: web.Request) -> web.Response:
    """Put a user into the session, under a new id."""
    response = await log_in(request)
    await renew_session_ws(request, response)
    return response


async def whoami(request: web.Request) -> web.Response:
    """Tell the user and the id of the session."""
    session = await aiohttp_session.get_session(request)
    return web.json_response({"user": session.get("user"), "id": await get_session_ws_id(request)})


async def converse(request: web.Request) -> web.WebSocketResponse:
    """Say whose socket it is, then echo."""
    async with session_ws(request) as ws:
        session = await aiohttp_session.get_session(request)
        await ws.send_json([await get_session_ws_id(request), session.get("user")])
        async for message in ws:
            await ws.send_str(message.data)
    return ws


async def out_by_helper(request: web.Request) -> web.Response:
    """Log out by our helper."""
    response = web.Response()
    await end_session_ws(request, response)
    return response


async def out_by_pattern(request: web.Request) -> web.Response:
    """Log out as the README of 1.1.1 told."""
    response = web.HTTPFound("/")
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    await new_session_ws_id(request)
    raise response


async def out_by_invalidate(request: web.Request) -> web.Response:
    """Log out without a word to us."""
    (await aiohttp_session.get_session(request)).invalidate()
    return web.Response()


async def out_by_new_session(request: web.Request) -> web.Response:
    """Log out without a word to us, another way."""
    await aiohttp_session.new_session(request)
    return web.Response()


async def out_everywhere(request: web.Request) -> web.Response:
    """Log out everywhere."""
    response = web.Response()
    await end_identity_ws(request, response)
    return response


async def reset(request: web.Request) -> web.Response:
    """Close the sockets and take another id."""
    response = web.Response()
    await schedule_close_all_session_ws(request, response)
    await new_session_ws_id(request)
    return response


async def renew(request: web.Request) -> web.Response:
    """Take another id, by our helper."""
    response = web.Response()
    await renew_session_ws(request, response)
    return response


async def only_close(request: web.Request) -> web.Response:
    """Close the sockets and keep the id."""
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
    """Build an app with everything above; *extra* middlewares stand inside ours."""
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
