"""
What clients send: how much of it there may be, and that it keeps their sessions alive.

Nothing of this is there for a registry without ``Limits(handshakes_per_second=…,
messages_per_second=…)`` and ``Expiry(keep_alive=…)``: its websockets aren't metered.
"""

from __future__ import annotations

import contextvars
import math
from typing import Protocol

from aiohttp import web

from .._lineage import Subject
from .._logging import OncePerMinute, describe_error, log
from .._refused import TooMany
from .._tasks import BackgroundTasks
from ..close_codes import POLICY_VIOLATION, Close
from ..connections.connection import TrackedConnection
from ..connections.manager import ConnectionManager
from ..connections.metered import MeteredWebSocket, Rate
from ..options import Expiry, Limits
from ..sessions.records import LineageRenewed, Records
from ..sessions.session import (
    SessionKeys,
    empty_in_storage,
    is_server_side,
    load_session,
    storage_in,
)
from ..sessions.status import State
from .cluster import Cluster
from .judging import Sessions
from .request_again import request_again

__all__: list[str] = []

TOO_FAST = Close(POLICY_VIOLATION.code, "too many messages")


class Node(Sessions, Protocol):
    """
    What is needed of a registry, besides its judgements.
    """

    cluster: Cluster
    connections: ConnectionManager
    keys: SessionKeys
    records: Records
    tasks: BackgroundTasks


class Traffic:
    """
    The rates of sessions, and what keeps them alive.

    Args:
        core: The registry's parts.
        limits: How much there may be.
        expiry: How long things live.

    Attributes:
        metered: Whether messages are to be counted.
        rated: Whether handshakes are.
    """

    def __init__(self, core: Node, limits: Limits, expiry: Expiry) -> None:
        self._core = core
        self._handshakes = _rate(limits.handshakes_per_second)
        self.rated = self._handshakes is not None
        self._messages = _rate(limits.messages_per_second)
        every = expiry.keep_alive
        self._keeps = None if every is None else Rate(1 / every)
        self.metered = self._messages is not None or self._keeps is not None
        self._failed = OncePerMinute()

    def expect_rate(self, token: str) -> None:
        """
        Let a handshake of a lineage pass, if there were not too many lately.

        Raises:
            aiohttp.web.HTTPTooManyRequests: If there were.
        """
        rate = self._handshakes
        if rate is not None and not rate.allows(token):
            text = "websocket refused: too many handshakes in a second"
            raise TooMany("rate", text, math.ceil(rate.pause))

    def meter(self, connection: TrackedConnection) -> None:
        """
        Count the messages of a connection from now on.
        """
        if isinstance(connection.ws, MeteredWebSocket):
            connection.ws.on_message = lambda: self._message(connection)

    def _message(self, connection: TrackedConnection) -> bool:
        """
        Count a message; tell whether it may be delivered.
        """
        token = connection.lineage.token
        if self._messages is not None and not self._messages.allows(token):
            # In no handler's context, or its own would not be ended with its socket.
            close = self._core.connections.close_soon
            contextvars.Context().run(close, [connection], TOO_FAST)
            return False
        if self._keeps is not None and connection.server_side and self._keeps.allows(token):
            _ = self._core.tasks.spawn(self._keep(connection), "keep a session alive")
        return True

    async def _keep(self, connection: TrackedConnection) -> None:
        try:
            await keep_alive(self._core, connection)
        except Exception as exc:  # noqa: BLE001  the storage's
            if self._failed.allows("keep"):
                log.warning("a session could not be kept alive: %s", describe_error(exc))


def _rate(per_second: float | None) -> Rate | None:
    return None if per_second is None else Rate(per_second)


async def keep_alive(core: Node, connection: TrackedConnection) -> None:
    """
    Save the session of a connection once more, so that its time begins anew.

    What has ended isn't kept: that is asked before it is saved, and once more afterwards.
    """
    request = request_again(connection)
    storage = storage_in(request)
    if storage is None:
        return
    if core.cluster.remote:
        subjects = [Subject("id", connection.session_ws_id)]
        _ = await core.cluster.check_request(connection.lineage.token, subjects)
    session = await load_session(request)
    lineage = core.keys.read_lineage(session)
    if not is_server_side(session) or lineage is None or not core.status_of(connection).alive:
        return
    if lineage.token != connection.lineage.token:
        return  # it is another session's by now
    session[core.keys.lineage] = session[core.keys.lineage]  # aiohttp_session notes when
    await storage.save_session(request, web.Response(), session)
    if _is_over(core, connection):
        request = request_again(connection)
        stored = await load_session(request)
        known = core.keys.read_lineage(stored)
        if known is not None and known.token == lineage.token:  # and not of a log-in since then
            await empty_in_storage(request, stored, core.keys, known)


def _is_over(core: Node, connection: TrackedConnection) -> bool:
    """
    Tell whether nothing of a session may be left in its storage.

    One that was renewed meanwhile lives: what was saved over that is repaired on arrival.
    """
    state = core.status_of(connection).state
    if state is not State.REPLACED:
        return state is State.ENDED
    record = core.records.lineage(connection.lineage.token)
    return isinstance(record, LineageRenewed) and record.login
