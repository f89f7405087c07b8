"""
The handshake: from a request to a socket that is open and filed.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from typing import Any, Final, TypedDict

import aiohttp_session
from aiohttp import web

from .closing import GOING_AWAY, INTERNAL_ERROR, RECONNECT, Close
from .connection import Connection, ServedWebSocket
from .exceptions import HandshakeRefused, SessionWSClosed
from .gate import is_websocket
from .limits import expect_room, make_room
from .registry import SessionWSRegistry
from .signals import AuthDetails, FailDetails, HandshakeDetails
from .visit import Visit, end_visit, put_session, session_of

__all__ = ["WebSocketOptions"]

#: Seconds between two pings, and half of them for the pong: so long a dead peer is believed.
HEARTBEAT: Final = 30.0


class WebSocketOptions(TypedDict, total=False):
    """
    The options of :class:`aiohttp.web.WebSocketResponse`.
    """

    timeout: float
    receive_timeout: float | None
    autoclose: bool
    autoping: bool
    heartbeat: float | None
    protocols: Iterable[str]
    compress: bool
    max_msg_size: int
    writer_limit: int
    decode_text: bool


async def handshake(
    registry: SessionWSRegistry,
    visit: Visit,
    request: web.Request,
    options: WebSocketOptions,
) -> Connection:
    """
    Go from a request to a socket that is open and filed.
    """
    connection: Connection | None = None
    try:
        await _knock(registry, request)
        minted = await _find_id(registry, visit, request)
        ws = ServedWebSocket(**(WebSocketOptions(heartbeat=HEARTBEAT) | options))
        connection = Connection(visit.session_ws_id, ws, request, visit.task, visit.started)
        # No await between these: an order is seen by the one or finds the other.
        _refuse(registry, registry._verdict(connection))
        expect_room(registry.limits, registry._sockets)
        registry._sockets.enter(connection)
        if registry.on_handshake:
            details = HandshakeDetails(request, connection.session_ws_id)
            await registry.on_handshake.send(details)
        if registry.identify is not None:
            await _identify(registry, connection, request)
        if registry._elsewhere:
            await _look_up(registry, connection, request)
        await _authorize(registry, connection, request)
        _refuse(registry, connection.refusal)  # who is refused takes nobody's place
        await make_room(registry.limits, registry._sockets, connection)
        if minted:
            await _save(registry, connection, request, visit.held)
        _refuse(registry, connection.refusal)
        await ws.prepare(request)
        visit.connection = connection
        if connection.refusal is not None:
            await asyncio.wait({registry._sockets.begin_close(connection, connection.refusal)})
            raise SessionWSClosed(ws)
        registry._sockets.opened(connection)
        registry._checker.watch(connection, session_of(request))
        visit.keys = ()
    except BaseException as exc:
        _abandon(registry, visit, request, connection)
        await registry.on_fail.send(FailDetails(request, exc))
        raise
    return connection


async def _knock(registry: SessionWSRegistry, request: web.Request) -> None:
    """
    Let a handshake pass before its session is loaded.
    """
    if not is_websocket(request):
        raise web.HTTPBadRequest(
            text="this address speaks websocket only: send GET with 'Upgrade: websocket'"
        )
    _refuse(registry, GOING_AWAY if registry._draining else None)
    expect_room(registry.limits, registry._sockets)
    await registry._gate.check(request)


async def _find_id(registry: SessionWSRegistry, visit: Visit, request: web.Request) -> bool:
    """
    Note the id of the session; tell whether it had to be made.
    """
    registry._saw(request)
    session_ws_id = await registry._load_id(request)
    if visit.minted is not None:
        # The handler has called new_id() or the like: what it made is saved nowhere.
        session_ws_id, stored = await registry._reload_id(request)
        put_session(request, stored)
    session = session_of(request)
    visit.came_with(session_ws_id, session, registry._revocations.ends)
    if session_ws_id is not None:
        return False
    visit.held = dict(session or {})
    await registry._mint(request)
    visit.session_ws_id = registry._usable(await registry.get_id(request))
    return True


async def _identify(
    registry: SessionWSRegistry, connection: Connection, request: web.Request
) -> None:
    """
    Find out whom the socket belongs to, and whether they were logged out everywhere.
    """
    identity = await registry._identify(request)
    if identity is not None:
        # No await between these either.
        close = registry._verdict_of_identity(connection, identity, session_of(request))
        _refuse(registry, close)
        registry._sockets.identified(connection, identity)


async def _look_up(
    registry: SessionWSRegistry, connection: Connection, request: web.Request
) -> None:
    """
    Find out what other processes know of the session; from now on they are heard.
    """
    await registry._look_up(connection)
    _refuse(registry, registry._verdict(connection))
    if connection.identity is not None:
        session = session_of(request)
        _refuse(registry, registry._verdict_of_identity(connection, connection.identity, session))
    _refuse(registry, connection.refusal)


async def _authorize(
    registry: SessionWSRegistry, connection: Connection, request: web.Request
) -> None:
    details = AuthDetails(request, connection.session_ws_id, connection.identity)
    if registry.authorize is not None:
        allowed = registry.authorize(request)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if not allowed:
            await registry.on_auth_fail.send(details)
            raise web.HTTPForbidden(text="websocket refused: not authorized")
    if registry.on_auth_success:
        await registry.on_auth_success.send(details)


async def _save(
    registry: SessionWSRegistry,
    connection: Connection,
    request: web.Request,
    held: dict[str, Any] | None,
) -> None:
    """
    Save a session that was given its id by this handshake.

    aiohttp_session doesn't save the session of a websocket: by then the handshake is on
    the wire.
    """
    session = session_of(request)
    if session is None:  # a subclass keeps the id elsewhere
        return
    storage: aiohttp_session.AbstractStorage = request[aiohttp_session.STORAGE_KEY]
    if held and dict(await storage.load_session(request)) != held:
        # Writing the old copy back could undo a log-out.
        _refuse(registry, RECONNECT)
    _refuse(registry, connection.refusal)
    await storage.save_session(request, connection.ws, session)


def _refuse(registry: SessionWSRegistry, close: Close | None) -> None:
    """
    Raise the refusal of a handshake, if there is a reason.
    """
    if close is None:
        return
    if registry._draining:
        raise web.HTTPServiceUnavailable(
            headers={"Retry-After": "1"}, text="websocket refused: the server is shutting down"
        )
    raise HandshakeRefused(close)


def _abandon(
    registry: SessionWSRegistry,
    visit: Visit,
    request: web.Request,
    connection: Connection | None,
) -> None:
    """
    Leave nothing behind of a handshake that failed.
    """
    if visit.held is not None:
        put_session(request, None)  # the new id must not be saved with an error
    end_visit(visit)
    if connection is not None:
        if connection.ws.prepared:
            _ = registry._sockets.begin_close(connection, INTERNAL_ERROR)
        registry._sockets.drop(connection)
