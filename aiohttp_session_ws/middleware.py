"""
The middleware: it sees a request come and its answer go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Hashable

import aiohttp_session
from aiohttp import web
from aiohttp.typedefs import Handler

from .closing import RECONNECT, close_connection
from .connection import Connection
from .exceptions import HandshakeRefused, SessionEnded, SessionWSClosed
from .gate import is_websocket
from .helpers import registry_from
from .registry import SessionWSRegistry
from .revocation import Kind
from .visit import (
    VISIT,
    Visit,
    end_visit,
    forget,
    new_visit,
    put_session,
    session_of,
    will_be_saved,
)

__all__ = ["session_ws_middleware"]

log = logging.getLogger("aiohttp_session_ws")

#: How many seconds an id must be dead before a request that still comes with it is given a
#: new one. Younger, another answer may be on its way to the client with the right cookie.
_SETTLED = 10.0


@web.middleware
def session_ws_middleware(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
    """
    Give every session an id that its websockets are filed under, and mind where it goes.

    Must stand directly inside aiohttp_session's middleware. It

    - gives a session without an id a new one before the handler runs, which sets a
      cookie on a visitor's first request. On a websocket handshake ``session_ws`` does so,
      but some browsers (Safari) ignore a cookie there. An answer with status >= 400 to a
      new visitor saves nothing;
    - revokes an id that the session no longer carries when the handler is done, whoever
      removed it, and closes its sockets when the answer has left;
    - replaces a session that has been ended, and was brought back by a stale cookie. It is
      given an id ten seconds after the end, when the right cookie is no longer on its way;
    - answers a handshake that is refused because of its session with a close code that a
      page's script can see.

    It costs a few microseconds, and loads the session of every request that is not a
    websocket handshake.

    Raises:
        NotSetUp: If ``setup()`` was not called, or aiohttp_session's middleware is missing
            or comes later.
    """
    registry = registry_from(request)
    visit = VISIT.get()
    if visit is not None and visit.request is request and not visit.over:
        return handler(request)  # installed twice, in a sub-application as well
    visit = new_visit(request)
    VISIT.set(visit)
    if aiohttp_session.SESSION_KEY in request:
        _warn_loaded_early(registry)
    registry._saw(request)
    # Not a coroutine of its own, which would wait as long as the socket lives.
    answer = _websocket if is_websocket(request) else _http
    return answer(registry, visit, request, handler)


async def _websocket(
    registry: SessionWSRegistry, visit: Visit, request: web.Request, handler: Handler
) -> web.StreamResponse:
    visit.guarded = True
    try:
        response = await handler(request)
    except (SessionWSClosed, SessionEnded, web.HTTPException) as exc:
        response = await _explain(registry, visit, request, exc)
    else:
        if visit.connection is not None:
            response = visit.connection.ws  # an open socket takes no HTTP
        else:
            await _plain_answer(registry, visit, request, response)
    finally:
        forget(visit)
    return response


async def _http(
    registry: SessionWSRegistry, visit: Visit, request: web.Request, handler: Handler
) -> web.StreamResponse:
    visit.watched = True
    await _arrive(registry, visit, request)
    response: web.StreamResponse | None = None
    try:
        response = await handler(request)
    except web.HTTPException as exc:
        response = exc
        raise
    except SessionEnded as exc:
        # It was ended while the handler ran. settle() sees to it that nothing is saved.
        raise web.HTTPForbidden(text="the session has ended") from exc
    finally:
        if response is None or response.status >= 400:
            _forget_newcomer(registry, visit, request)
        await _settle(registry, visit, request, response)
    return response


async def _settle(
    registry: SessionWSRegistry,
    visit: Visit,
    request: web.Request,
    response: web.StreamResponse | None,
) -> None:
    """
    Decide what became of the id, though the client may be gone.
    """
    visit.watched = True
    settling = registry._answers.settle(request, visit, saved=will_be_saved(response))
    if registry._own_get_id:
        await asyncio.shield(registry._sockets.spawn(settling, "settle"))
    else:
        await settling
    end_visit(visit)


async def _arrive(registry: SessionWSRegistry, visit: Visit, request: web.Request) -> None:
    """
    Note the id that *request* came with; see to it that it has a live one.
    """
    session_ws_id = current = await registry._load_id(request)
    if session_ws_id is None:
        # Nobody knows the new one yet, so nobody can mean it; but they may mean the identity.
        await registry._mint(request)
        current = await registry.get_id(request) if registry._identities else None
    if current is not None:
        if registry._elsewhere:
            await registry._meet(request, current)
        death = registry._death(current)
        if death is None and registry._identities:
            death = await registry._death_of_identity(request, current)
        if death is not None:
            settled = death.age > _SETTLED
            session_ws_id = await _repair(registry, request, current, death.kind, settled)
    visit.came_with(session_ws_id, session_of(request), registry._revocations.ends)


async def _repair(
    registry: SessionWSRegistry,
    request: web.Request,
    dead: Hashable,
    kind: Kind,
    mint: bool,
) -> Hashable | None:
    """
    Take a dead id from *request*.

    Args:
        registry: The registry.
        request: The request.
        dead: The dead id that it came with.
        kind: Why it is dead.
        mint: Whether it is time to give the session a new one.

    Returns:
        The id that the request has now.
    """
    if kind is Kind.ENDED:
        # Not invalidate(): the session would live on under the key that the thief has.
        await aiohttp_session.new_session(request)
    else:
        # Loaded just before the answer to its renewal was saved? Nothing is written here:
        # that could bring an old copy back.
        session_ws_id, session = await registry._reload_id(request)
        if session_ws_id is not None and registry._revocations.get(session_ws_id) is None:
            put_session(request, session)
            return session_ws_id
    if mint:
        await registry.new_id(request)
    session_ws_id = await registry.get_id(request)
    if mint and kind is Kind.MOVED:
        registry._revocations.move(dead, session_ws_id, registry._ttl())
        registry._store([dead], RECONNECT)
    return session_ws_id


def _forget_newcomer(registry: SessionWSRegistry, visit: Visit, request: web.Request) -> None:
    """
    Save no session for a visitor who got nothing but an error.
    """
    session = session_of(request)
    newcomer = visit.minted is not None and visit.session_ws_id is None
    if newcomer and session is not None and session.keys() <= registry._own_keys:
        put_session(request, None)


async def _explain(
    registry: SessionWSRegistry,
    visit: Visit,
    request: web.Request,
    error: SessionWSClosed | SessionEnded | web.HTTPException,
) -> web.StreamResponse:
    """
    Find the answer to a request for a websocket whose handler raised.
    """
    if isinstance(error, SessionWSClosed):
        return error.response
    if visit.connection is not None:
        ws: web.WebSocketResponse = visit.connection.ws
        return ws
    if isinstance(error, HandshakeRefused):
        return await _accept_and_close(registry, request, error)
    if isinstance(error, SessionEnded):
        put_session(request, None)
        raise web.HTTPForbidden(text="the session has ended") from error
    await _plain_answer(registry, visit, request, error)
    raise error


async def _plain_answer(
    registry: SessionWSRegistry,
    visit: Visit,
    request: web.Request,
    response: web.StreamResponse,
) -> None:
    """
    Mind the session of a request that asked for a websocket and got something else.
    """
    if session_of(request) is None and not visit.noted:
        return
    if not visit.noted:
        await registry._answers.note(request, visit)
    if visit.session_ws_id is not None and not visit.asked:
        if registry._elsewhere:
            await registry._meet(request, visit.session_ws_id)
        death = registry._death(visit.session_ws_id)
        if death is None and registry._identities:
            death = await registry._death_of_identity(request, visit.session_ws_id)
        if death is not None and death.kind is Kind.ENDED:
            put_session(request, None)
            raise web.HTTPForbidden(text="the session has ended")
    await _settle(registry, visit, request, response)


async def _accept_and_close(
    registry: SessionWSRegistry, request: web.Request, refused: HandshakeRefused
) -> web.WebSocketResponse:
    """
    Accept a handshake just to tell the page's script why it can't stay.
    """
    offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")[0].strip()
    # A browser fails a handshake that answers none of the subprotocols that it offered.
    ws = web.WebSocketResponse(protocols=(offered,) if offered else (), compress=False)
    await ws.prepare(request)
    connection = Connection(None, ws, request)
    await close_connection(connection, refused.close, registry.timeouts.close)
    return ws


def _warn_loaded_early(registry: SessionWSRegistry) -> None:
    if not registry._warned:
        registry._warned = True
        log.warning(
            "a session was loaded before session_ws_middleware came: put it directly inside"
            " aiohttp_session's middleware, or an order may miss a handshake in flight"
        )
