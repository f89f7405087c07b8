"""
Rate limits for handshakes and messages, and keep-alive of sessions by their messages.

Without ``Limits(handshakes_per_second=…, messages_per_second=…)`` and ``Expiry(keep_alive=…)`` all
of this is inactive, and websockets aren't metered.
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
    The parts of a registry that this module needs, besides judging sessions.
    """

    cluster: Cluster
    connections: ConnectionManager
    keys: SessionKeys
    records: Records
    tasks: BackgroundTasks


class Traffic:
    """
    Counts handshakes and messages by lineage, and keeps sessions alive.

    Args:
        core: The registry's parts.
        limits: The limits on rates.
        expiry: The keep-alive interval.

    Attributes:
        metered: Whether messages are counted.
        rated: Whether handshakes are counted.
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
        Count a handshake of a lineage, and check that it is within the rate limit.

        Raises:
            aiohttp.web.HTTPTooManyRequests: If it isn't.
        """
        rate = self._handshakes
        if rate is not None and not rate.allows(token):
            text = "websocket refused: too many handshakes in a second"
            raise TooMany("rate", text, math.ceil(rate.pause))

    def meter(self, connection: TrackedConnection) -> None:
        """
        Start counting the messages of a connection.
        """
        if isinstance(connection.ws, MeteredWebSocket):
            connection.ws.on_message = lambda: self._message(connection)

    def _message(self, connection: TrackedConnection) -> bool:
        """
        Count a message; return whether it may be delivered.
        """
        token = connection.lineage.token
        if self._messages is not None and not self._messages.allows(token):
            # In an empty context, or the handler would count as the caller and not be cancelled.
            close = self._core.connections.close_soon
            contextvars.Context().run(close, [connection], TOO_FAST)
            return False
        if self._keeps is not None and connection.server_side and self._keeps.allows(token):
            _ = self._core.tasks.spawn(self._keep(connection), "keep a session alive")
        return True

    async def _keep(self, connection: TrackedConnection) -> None:
        try:
            await keep_alive(self._core, connection)
        except Exception as exc:  # noqa: BLE001  raised by the storage
            if self._failed.allows("keep"):
                log.warning("a session could not be kept alive: %s", describe_error(exc))


def _rate(per_second: float | None) -> Rate | None:
    return None if per_second is None else Rate(per_second)


async def keep_alive(core: Node, connection: TrackedConnection) -> None:
    """
    Save the session of a connection again, which restarts its expiry in the storage.

    A session that has ended is not revived: its status is checked before and after saving.
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
        return  # the storage has another session under this key by now
    session[core.keys.lineage] = session[core.keys.lineage]  # marks it as changed now
    await storage.save_session(request, web.Response(), session)
    if _is_over(core, connection):
        request = request_again(connection)
        stored = await load_session(request)
        known = core.keys.read_lineage(stored)
        if known is not None and known.token == lineage.token:  # not a later log-in's
            await empty_in_storage(request, stored, core.keys, known)


def _is_over(core: Node, connection: TrackedConnection) -> bool:
    """
    Return whether the stored data of a session must be deleted.

    Not after a renewal, since the session lives: if its new generation was overwritten in the
    storage, that is repaired on arrival.
    """
    state = core.status_of(connection).state
    if state is not State.REPLACED:
        return state is State.ENDED
    record = core.records.lineage(connection.lineage.token)
    return isinstance(record, LineageRenewed) and record.login
