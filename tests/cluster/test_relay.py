"""
Messages between the same endpoints of two nodes.
"""

from __future__ import annotations

import asyncio
import logging

import pytest

from aiohttp_session_ws.results import Delivery
from tests.cluster.conftest import Sites
from tests.promise.site import Site
from tests.support import PATIENCE, Turnstile, until
from tests.support.inspect import inspect
from tests.support.nodes import StartNode, acquaint, registry_of
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer


def listen(site: Site, name: str = "rates") -> list[bytes]:
    """Return the messages that a node receives."""
    heard: list[bytes] = []

    @site.registry.on_relay(name)
    async def hear(data: bytes) -> None:
        heard.append(data)

    return heard


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the log records about relays: a busy machine may log more about Redis."""
    return [record for record in caplog.records if "relay" in record.getMessage()]


class TestRelay:
    async def test_in_order(self, sites: Sites) -> None:
        """The other node receives all messages in order; the sender receives none."""
        a, b = await sites()
        here, there, other = listen(a), listen(b), listen(b, "other")
        messages = [b"%d\n\0\xff" % number for number in range(500)]
        deliveries = [await a.registry.relay("rates", message) for message in messages]
        await until(lambda: len(there) == len(messages))

        assert there == messages
        assert set(deliveries) == {Delivery(0, nodes=1)}
        assert not here
        assert not other

    async def test_both_ways(self, sites: Sites) -> None:
        """The messages of each sender arrive in order."""
        a, b = await sites()
        here, there = listen(a), listen(b)
        for number in range(50):
            await a.registry.relay("rates", b"a%d" % number)
            await b.registry.relay("rates", b"b%d" % number)
        await until(lambda: len(here) == len(there) == 50)

        assert here == [b"b%d" % number for number in range(50)]

    @pytest.mark.parametrize("size", [0, 65_536])
    async def test_sizes(self, sites: Sites, size: int) -> None:
        """A message may have 0 bytes to 64 KiB."""
        a, b = await sites()
        heard = listen(b)
        await a.registry.relay("rates", b"x" * size)
        await until(lambda: heard)

        assert heard == [b"x" * size]

    async def test_too_much(self, sites: Sites) -> None:
        """A message over 64 KiB raises ValueError, and a text raises TypeError."""
        a, _ = await sites()

        with pytest.raises(ValueError, match="65536 bytes at most"):
            await a.registry.relay("rates", b"x" * 65_537)
        with pytest.raises(TypeError, match="bytes"):
            await a.registry.relay("rates", "text")  # type: ignore[arg-type]

    async def test_nobody_listens(self, sites: Sites) -> None:
        """A message without a handler is ignored."""
        a, b = await sites()
        heard = listen(b)
        await a.registry.relay("nothing", b"1")
        await a.registry.relay("rates", b"2")
        await until(lambda: heard)

        assert heard == [b"2"]

    async def test_a_handler_that_fails(
        self, sites: Sites, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The next message is handled after one whose handler failed."""
        a, b = await sites()
        heard: list[bytes] = []

        @b.registry.on_relay("rates")
        async def hear(data: bytes) -> None:
            heard.append(data)
            if len(heard) == 1:
                raise RuntimeError("no")

        await a.registry.relay("rates", b"1")
        await a.registry.relay("rates", b"2")
        await until(lambda: len(heard) == 2)

        assert [record.levelname for record in logged(caplog)] == ["ERROR"]

    async def test_a_handler_whose_work_is_cancelled(
        self, sites: Sites, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Queued messages are handled after one whose work was cancelled."""
        a, b = await sites()
        gate, heard = Turnstile(), list[bytes]()
        work = asyncio.get_running_loop().create_future()
        work.cancel()

        @b.registry.on_relay("rates")
        async def hear(data: bytes) -> None:
            heard.append(data)
            await gate()
            if data == b"1":
                await work

        gate.shut = True
        for message in (b"1", b"2", b"3"):
            await a.registry.relay("rates", message)
        others = listen(b, "others")
        await a.registry.relay("others", b"all have come")
        await until(lambda: others)
        gate.let()
        await until(lambda: len(heard) == 3)

        assert heard == [b"1", b"2", b"3"]
        assert [record.levelname for record in logged(caplog)] == ["ERROR"]

    async def test_one_at_a_time(self, sites: Sites, caplog: pytest.LogCaptureFixture) -> None:
        """While a handler runs, 1,000 messages wait; beyond that the oldest are dropped."""
        caplog.set_level(logging.WARNING)
        a, b = await sites()
        gate, heard, running = Turnstile(), [], 0
        others = listen(b, "others")

        @b.registry.on_relay("rates")
        async def hear(data: bytes) -> None:
            nonlocal running
            running += 1
            assert running == 1
            heard.append(data)
            await gate()
            running -= 1

        gate.shut = True
        await a.registry.relay("rates", b"first")
        await until(lambda: heard)
        for number in range(1100):
            await a.registry.relay("rates", b"%d" % number)
        await a.registry.relay("others", b"a slow one holds up no other")
        await until(lambda: others)
        gate.let()
        await until(lambda: len(heard) == 1001)

        assert heard == [b"first", *(b"%d" % number for number in range(100, 1100))]
        assert [record.getMessage() for record in logged(caplog)] == [
            "the relay handler 'rates' is too slow: messages are dropped"
        ]

    async def test_a_handler_at_the_end(self, sites: Sites) -> None:
        """A handler that never ends does not keep the application from stopping."""
        a, b = await sites()
        began = asyncio.Event()

        @b.registry.on_relay("rates")
        async def hear(data: bytes) -> None:
            began.set()
            await asyncio.Event().wait()

        await a.registry.relay("rates", b"1")
        await began.wait()
        async with asyncio.timeout(PATIENCE):
            await b.stack.aclose()

    async def test_redis_is_away(self, sites: Sites, redis_server: RedisServer) -> None:
        """A message that can't be sent is reported as incomplete, and never sent later."""
        a, b = await sites()
        heard = listen(b)
        assert (await a.registry.relay("rates", b"before")).complete
        await until(lambda: heard)
        redis_server.kill()
        await until(lambda: a.registry.state == "degraded")
        delivery = await a.registry.relay("rates", b"meanwhile")
        await redis_server.start()
        await until(lambda: a.registry.state == b.registry.state == "connected")

        async def hears() -> bool:
            await a.registry.relay("rates", b"after")
            return len(heard) > 1

        await until(hears)  # the connection for data is back, too
        assert (delivery.nodes, delivery.complete) == (0, False)
        assert heard[:2] == [b"before", b"after"]

    async def test_before_an_outage_is_noticed(
        self, redis_server: RedisServer, start_node: StartNode
    ) -> None:
        """A message that Redis does not take is incomplete, even before the outage is detected."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(proxy.url(), "a")
            b = await start_node(redis_server.url, "b")
            await acquaint(a, b)
            assert (await registry_of(a).relay("rates", b"before")).complete
            proxy.black_hole()
            assert registry_of(a).state == "connected"
            delivery = await registry_of(a).relay("rates", b"meanwhile")

        assert delivery == Delivery(0, nodes=0, complete=False)

    async def test_two_handlers(self, sites: Sites) -> None:
        """A second handler for the same name raises ValueError."""
        a, _ = await sites()
        listen(a)

        with pytest.raises(ValueError, match="already"):
            listen(a)

    async def test_alone(self, sites: Sites) -> None:
        """A message of the only node is sent to no node."""
        a, b = await sites()
        await b.stack.aclose()
        members = inspect(a.registry).cluster.membership  # type: ignore[attr-defined]
        await until(lambda: len(members.members) == 1)

        assert await a.registry.relay("rates", b"1") == Delivery(0, nodes=0)
