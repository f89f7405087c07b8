"""
Identities that are proven over a socket, on two nodes.
"""

from __future__ import annotations

import time

from redis.asyncio import Redis

from aiohttp_session_ws._lineage import Subject
from aiohttp_session_ws.redis.messages import encode_record
from aiohttp_session_ws.sessions.records import SubjectEnded
from tests.cluster.conftest import Sites
from tests.promise.site import DEAD
from tests.promise.test_proofs import Tickets, proven
from tests.support import PATIENCE, until
from tests.support.inspect import connections, inspect
from tests.support.redis_servers import RedisServer

BOB = Subject("identity", "bob")


class TestProofs:
    async def test_orders_of_the_other_node(self, sites: Sites) -> None:
        """Pushes, queries and ends from another node reach a socket by its proven identity."""
        a, b = await sites(Tickets().views)
        socket = await proven(a, "bob")

        assert (await b.registry.send_identity("bob", "news", wait=PATIENCE)).sockets == 1
        assert await socket.ws.receive_str(timeout=PATIENCE) == "news"
        assert len(await b.registry.connections(identity="bob")) == 1
        report = await b.registry.end_identity("bob", wait=PATIENCE)
        assert (report.sockets, report.complete) == (1, True)
        assert await socket.code() == DEAD

    async def test_an_end_that_was_not_heard(
        self, sites: Sites, redis_server: RedisServer
    ) -> None:
        """An end missed during a proof is found in Redis, and closes the socket."""
        tickets = Tickets()
        a, _ = await sites(tickets.views)
        socket = await (await a.browser()).open("/prove")
        tickets.gate.shut = True
        await socket.ws.send_str("bob")
        await tickets.gate.arrived.wait()
        await _end_unheard(redis_server.url)
        tickets.gate.let()

        assert await socket.code() == DEAD
        await until(lambda: not connections(a.registry))

    async def test_an_end_found_later(self, sites: Sites, redis_server: RedisServer) -> None:
        """Reconciliation of all connections includes proven identities."""
        a, _ = await sites(Tickets().views)
        socket = await proven(a, "bob")
        await _end_unheard(redis_server.url)
        inspect(a.registry).cluster.reconciler.check_all_connections()  # type: ignore[attr-defined]

        assert await socket.code() == DEAD


async def _end_unheard(url: str) -> None:
    """Record an end in Redis without publishing it."""
    stored = encode_record(SubjectEnded(BOB, time.time() + 1, 3600.0))
    async with Redis.from_url(url) as redis:
        await redis.set("{aiohttp_session_ws}:" + stored.key, stored.text, px=stored.ttl)
