"""
What is recorded of sessions: of those that come, and of those that are here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final

from aiohttp import web

from ..closing import RECONNECT
from ..connection import Connection
from ..exceptions import RedisAway
from ..records import blame
from .hearing import Hearing
from .node import Node
from .reading import read_record
from .telling import Telling
from .wire import Closed, ClosedIdentity, Ended, EndedIdentity, Moved, as_json

if TYPE_CHECKING:
    from .registry import RedisSessionWSRegistry

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

ONCE: Final = 60.0  # seconds between two questions about the session of HTTP requests
PATIENCE: Final = 0.25  # seconds that an HTTP request waits for the answer
MOST: Final = 100_000  # sessions that were asked about lately
CHUNK: Final = 250  # connections in one round trip
HOPS: Final = 32  # ids of one session that are followed


class Learning:
    """
    Learns from Redis what was ordered elsewhere, and sees to it here.
    """

    def __init__(
        self, registry: RedisSessionWSRegistry, node: Node, telling: Telling, hearing: Hearing
    ) -> None:
        self._registry = registry
        self._node = node
        self._telling = telling
        self._hearing = hearing
        self._asked: OrderedDict[Hashable, float] = OrderedDict()  # the oldest first
        self._now: dict[Hashable, asyncio.Future[None]] = {}  # those that are being asked about

    # Those that come

    async def look_up(self, connection: Connection) -> None:
        """
        Learn what is recorded about a handshake.

        Raises:
            aiohttp.web.HTTPServiceUnavailable: If Redis is away, and handshakes are refused
                then.
        """
        keys = _keys(connection)
        try:
            if self._node.store.away:
                raise RedisAway
            rev, *others = await self._node.store.read(keys)
            await self._learn_of(connection.session_ws_id, rev)
        except RedisAway:
            if self._registry.on_outage == "accept":
                return  # what is recorded is found when Redis is back
            raise web.HTTPServiceUnavailable(
                headers={"Retry-After": "1"},
                text="websocket refused: the session can't be checked now",
            ) from None
        close, who, close_who = others if len(others) > 1 else (*others, None, None)
        if who is not None and isinstance(order := read_record(who), EndedIdentity):
            self._hearing.learn(order)
        if any(others):
            connection.seen = close, who, close_who
        if (close or close_who) and self._node.deaf_until >= connection.started:
            # An order that came since it began would not have been heard.
            connection.refuse(RECONNECT)

    async def meet(self, request: web.Request, session_ws_id: Hashable) -> None:
        """
        Learn what is recorded about the session of an HTTP request, if that is not known.
        """
        loop = asyncio.get_running_loop()
        while (waiting := self._now.get(session_ws_id)) is not None:
            await asyncio.wait({waiting})  # PATIENCE at most, and identify
        now = loop.time()
        if self._node.store.away or self._asked.get(session_ws_id, -ONCE) > now - ONCE:
            return
        self._asked.pop(session_ws_id, None)
        while self._asked and (
            len(self._asked) >= MOST or next(iter(self._asked.values())) <= now - ONCE
        ):
            del self._asked[next(iter(self._asked))]
        waiting = self._now[session_ws_id] = loop.create_future()
        try:
            if await self._ask(request, session_ws_id):
                self._asked[session_ws_id] = now
        finally:
            del self._now[session_ws_id]
            waiting.set_result(None)

    async def _ask(self, request: web.Request, session_ws_id: Hashable) -> bool:
        """
        As :meth:`meet`; tell whether it is known now.
        """
        if self._registry._death(session_ws_id) is not None:
            # It is met again: its time in Redis begins anew as well.
            self._telling.store([session_ws_id], None)
            return True
        keys = [f"rev:{as_json(session_ws_id)}"]
        identity = await self._whose(request)
        if identity is not None:
            keys.append(f"identity:{as_json(identity)}")
        try:
            async with asyncio.timeout(PATIENCE):
                rev, *who = await self._node.store.read(keys)
                await self._learn_of(session_ws_id, rev)
        except (RedisAway, TimeoutError):
            return False  # the next request asks again
        if who and who[0] is not None and isinstance(o := read_record(who[0]), EndedIdentity):
            self._hearing.learn(o)
        return True

    def forget(self) -> None:
        """
        Forget which sessions were asked about: they may have ended unheard.
        """
        self._asked.clear()

    async def _whose(self, request: web.Request) -> Hashable | None:
        try:
            return await self._registry._identify(request)
        except Exception as exc:  # noqa: BLE001  the application's
            log.debug("a request can't be identified: %s", blame(exc))
            return None

    async def _learn_of(self, session_ws_id: Hashable, rev: bytes | None) -> None:
        """
        Learn of a revocation, and follow a session that has moved to its end.
        """
        if rev is None:
            return
        order = self._revocation(session_ws_id, rev)
        self._hearing.learn(order)
        todo = list(order.to) if isinstance(order, Moved) else []
        for _ in range(HOPS):
            if not todo:
                return
            id_ = todo.pop()
            (rev,) = await self._node.store.read([f"rev:{as_json(id_)}"])
            if rev is not None:
                order = self._revocation(id_, rev)
                self._hearing.learn(order)
                todo += order.to if isinstance(order, Moved) else ()

    def _revocation(self, session_ws_id: Hashable, rev: bytes) -> Ended | Moved:
        """
        Read a record. One that can't be read was put there for a reason.
        """
        order = read_record(rev)
        if isinstance(order, Ended | Moved) and order.session_ws_id == session_ws_id:
            return order
        log.warning("a revocation can't be read, and counts as the end of its session")
        return Ended(session_ws_id, self._node.latest(), self._registry._ttl())

    # Those that are here

    async def reconcile(self) -> None:
        """
        Find the orders that were missed, and carry them out.

        Raises:
            RedisAway: If that can't be found out now.
        """
        if self._node.unheard:
            await self._catch_up()
        sockets = self._registry._sockets
        connections = [*sockets.open, *sockets.opening]
        for start in range(0, len(connections), CHUNK):
            chunk = connections[start : start + CHUNK]
            keys = [_keys(connection) for connection in chunk]
            values = iter(await self._node.store.read([key for some in keys for key in some]))
            for connection, some in zip(chunk, keys, strict=True):
                found = [next(values) for _ in some]
                if not connection.gone and any(found):
                    await self._judge(connection, found)

    async def _catch_up(self) -> None:
        """
        Learn what was ordered while this process didn't hear, lest it is forgotten when
        others go, and Redis loses its data.
        """
        age, self._node.unheard = self._node.unheard, 0.0
        try:
            async for record in self._node.store.recent(self._node.earliest() - age):
                if (order := read_record(record)) is not None:
                    self._hearing.learn(order)
        except RedisAway:
            self._node.unheard = max(age, self._node.unheard)
            raise

    async def _judge(self, connection: Connection, found: Sequence[bytes | None]) -> None:
        rev, close, who, close_who = found if len(found) > 2 else (*found, None, None)
        await self._learn_of(connection.session_ws_id, rev)
        seen = connection.seen if isinstance(connection.seen, tuple) else (None, None, None)
        if (close, who, close_who) == seen:
            return
        if who is not None and who != seen[1]:
            order = read_record(who)
            if isinstance(order, EndedIdentity):
                self._hearing.learn(order, missed=connection)
        for value, was in ((close, seen[0]), (close_who, seen[2])):
            if value is not None and value != was and self._concerns(connection, value):
                connection.refuse(RECONNECT)
                if connection.opened:
                    self._hearing.close_soon([connection], RECONNECT)
        connection.seen = close, who, close_who

    def _concerns(self, connection: Connection, value: bytes) -> bool:
        """
        Tell whether a close order is about a connection that didn't find it recorded.
        """
        order = read_record(value)
        if not isinstance(order, Closed | ClosedIdentity):
            return False
        came = self._node.numbers.when(order.number)
        return came is None or connection.started <= came


def _keys(connection: Connection) -> list[str]:
    subject = as_json(connection.session_ws_id)
    keys = [f"rev:{subject}", f"close:{subject}"]
    if connection.identity is not None:
        who = as_json(connection.identity)
        keys += f"identity:{who}", f"close-identity:{who}"
    return keys
