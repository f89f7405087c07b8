"""Topics: subscribing, publishing, and the two halves of a topic's generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aiohttp_session_ws import PushQueue, SessionWSRegistry, rpc
from tests.support import PATIENCE, until

from ..support.inspect import transport_of
from .conftest import Serve
from .support import WampPeer

Complaints = Callable[[], list[str]]


class Counter:
    """A topic that counts its subscribers."""

    def __init__(self) -> None:
        self.now = 0
        self.ever = 0
        self.routes = rpc.Routes("shop.")

        @self.routes.topic("stock.{symbol}")
        async def stock(symbol: str, session: rpc.Session) -> AsyncIterator[None]:
            if symbol == "secret":
                raise rpc.RPCError("wamp.error.not_authorized", "secret")
            self.now += 1
            self.ever += 1
            try:
                yield
            finally:
                self.now -= 1

        @self.routes.route()
        async def ping() -> str:
            return "pong"


async def subscribe(peer: WampPeer, topic: str = "shop.stock.x", number: int = 1) -> int:
    """Subscribe; return the number of the subscription."""
    answer = await peer.ask([32, number, {}, topic])
    assert answer[:2] == [33, number], answer
    return int(answer[2])


class TestSubscribing:
    async def test_two_halves(self, serve: Serve) -> None:
        """The first half runs on SUBSCRIBE, the second at the end, however the topic is left."""
        counter = Counter()
        server = await serve(counter.routes)
        async with server.wamp() as peer:
            number = await subscribe(peer)
            assert counter.now == 1
            assert await peer.ask([34, 2, number]) == [35, 2]
            assert counter.now == 0
            await subscribe(peer, number=3)
            await subscribe(peer, "shop.stock.y", number=4)
            assert await peer.ask([6, {}, "wamp.close.normal"]) == [
                6, {}, "wamp.close.goodbye_and_out",
            ]  # fmt: skip
            assert counter.now == 0
            assert counter.ever == 3
        async with server.wamp() as peer:
            await subscribe(peer)
        await until(lambda: counter.now == 0)

    async def test_twice(self, serve: Serve) -> None:
        """Subscribing twice to a topic runs its first half once and returns the same number."""
        counter = Counter()
        server = await serve(counter.routes)
        async with server.wamp() as peer, server.wamp() as other:
            number = await subscribe(peer)
            assert await subscribe(peer, number=2) == number
            assert await subscribe(other) == number
            assert counter.ever == 2

    @pytest.mark.parametrize(
        ("topic", "options", "uri"),
        [
            ("nothing", {}, "wamp.error.invalid_uri"),
            ("shop.ping", {}, "wamp.error.invalid_uri"),
            ("shop.stock.secret", {}, "wamp.error.not_authorized"),
            ("shop.stock", {"match": "prefix"}, "wamp.error.option_not_allowed"),
        ],
    )
    async def test_refused(self, serve: Serve, topic: str, options: Any, uri: str) -> None:
        """SUBSCRIBE is refused for an unknown topic, by the first half, and for ``match``."""
        counter = Counter()
        server = await serve(counter.routes)
        async with server.wamp() as peer:
            answer = await peer.ask([32, 1, options, topic])
            assert answer[:5] == [8, 32, 1, {}, uri]
            assert (await server.calls.publish(topic)).sockets == 0
        assert counter.now == 0

    async def test_error_that_cant_be_encoded(self, serve: Serve, complaints: Complaints) -> None:
        """A refusal that can't be encoded is a runtime error, logged; the next one is answered."""
        routes = rpc.Routes()

        @routes.topic("odd.{word}")
        async def odd(word: str) -> AsyncIterator[None]:
            if word == "x":
                raise rpc.RPCError("shop.odd", object())
            yield

        server = await serve(routes)
        async with server.wamp() as peer:
            for number in (1, 2):
                answer = await peer.ask([32, number, {}, "odd.x"])
                assert answer == [8, 32, number, {}, "wamp.error.runtime_error"]
        assert len(complaints()) == 2

    async def test_own_cancellation(self, serve: Serve, complaints: Complaints) -> None:
        """``CancelledError`` raised by a topic is a runtime error; later requests are answered."""
        routes = rpc.Routes()

        @routes.topic("odd.{word}")
        async def odd(word: str) -> AsyncIterator[None]:
            if word == "x":
                raise asyncio.CancelledError
            yield

        server = await serve(routes)
        async with server.wamp() as peer:
            await peer.say([32, 1, {}, "odd.x"])
            answer = await peer.ask([32, 2, {}, "odd.y"])
            assert answer == [8, 32, 1, {}, "wamp.error.runtime_error"]
            assert (await peer.hear())[:2] == [33, 2]
        assert complaints() == ["a call failed: SUBSCRIBE"]

    async def test_first_half_that_outlasts_its_session(
        self, serve: Serve, complaints: Complaints
    ) -> None:
        """A first half that outlasts its session adds no subscription; its second half runs."""
        routes, done, seen = rpc.Routes(), asyncio.Event(), []

        @routes.topic("t")
        async def topic() -> AsyncIterator[None]:
            seen.append("first")
            while not done.is_set():
                try:
                    await done.wait()
                except asyncio.CancelledError:
                    continue
            yield
            seen.append("second")

        server = await serve(routes)
        async with server.wamp() as peer:
            await peer.say([32, 1, {}, "t"])
            await until(lambda: seen)
        await until(lambda: complaints())
        assert not server.calls.sessions
        done.set()
        await until(lambda: seen == ["first", "second"])
        assert (await server.calls.publish("t")).sockets == 0
        assert complaints() == ["a session cleanup step timed out and was cancelled"]

    @pytest.mark.parametrize(
        ("limits", "last"), [({"waiting": 2}, 4), ({"waiting_bytes": 2000}, 3)]
    )
    async def test_requests_that_wait(self, serve: Serve, limits: Any, last: int) -> None:
        """Requests wait for earlier ones, up to a number and a size; others are refused."""
        routes, begun, done = rpc.Routes(), asyncio.Event(), asyncio.Event()

        @routes.topic("slow.{word}")
        async def slow(word: str) -> AsyncIterator[None]:
            begun.set()
            await done.wait()
            yield

        server = await serve(routes, limits=rpc.CallLimits(**limits))
        async with server.wamp() as peer:
            await peer.say([32, 1, {}, "slow.1"])
            await begun.wait()
            await peer.say(*([32, n, {}, f"slow.{n}{'x' * 900}"] for n in range(2, 6)))
            for number in range(last + 1, 6):
                refused = await peer.hear()
                assert refused[:5] == [8, 32, number, {}, "wamp.error.unavailable"]
            done.set()
            for number in range(1, last + 1):
                assert (await peer.hear())[:2] == [33, number]

    async def test_unknown_subscription(self, serve: Serve) -> None:
        """UNSUBSCRIBE with an unknown number is refused."""
        server = await serve(Counter().routes)
        async with server.wamp() as peer:
            answer = await peer.ask([34, 1, 99])
        assert answer[:5] == [8, 34, 1, {}, "wamp.error.no_such_subscription"]

    async def test_limit(self, serve: Serve) -> None:
        """A subscription above the limit is refused."""
        server = await serve(Counter().routes, limits=rpc.CallLimits(subscriptions=1))
        async with server.wamp() as peer:
            await subscribe(peer)
            answer = await peer.ask([32, 2, {}, "shop.stock.y"])
        assert answer[4] == "wamp.error.unavailable"

    async def test_long_names(self, serve: Serve) -> None:
        """The names of a session's topics together are limited to the size of one message."""
        routes = rpc.Routes()

        @routes.topic("news.{of}")
        async def news(of: str) -> AsyncIterator[None]:
            yield

        server = await serve(routes, limits=rpc.CallLimits(message=1000))
        async with server.wamp() as peer:
            number = (await peer.ask([32, 1, {}, "news." + "a" * 900]))[2]
            refused = await peer.ask([32, 2, {}, "news." + "b" * 900])
            assert refused[4] == "wamp.error.unavailable"
            assert await peer.ask([34, 3, number]) == [35, 3]
            assert (await peer.ask([32, 4, {}, "news." + "b" * 900]))[0] == 33

    async def test_topic_that_asks_its_client(self, serve: Serve) -> None:
        """A topic can call its client; later requests wait and are answered in order."""
        routes = rpc.Routes()

        @routes.topic("t.{n}")
        async def topic(n: int, session: rpc.Session) -> AsyncIterator[None]:
            if n == 1:
                assert await session.call("allow") == "yes"
            yield

        server = await serve(routes)
        async with server.wamp() as peer:
            await peer.ask([64, 1, {}, "allow"])
            await peer.say([32, 2, {}, "t.1"], [32, 3, {}, "t.2"])
            invocation = await peer.hear()
            assert invocation[0] == 68
            await peer.say([70, invocation[1], {}, ["yes"]])
            assert [(await peer.hear())[:2] for _ in range(2)] == [[33, 2], [33, 3]]

    async def test_yields_twice(self, serve: Serve, complaints: Complaints) -> None:
        """A topic that yields twice is named in a log message."""
        routes = rpc.Routes()

        @routes.topic("t")
        async def topic() -> AsyncIterator[None]:
            yield
            yield

        server = await serve(routes)
        async with server.wamp() as peer:
            number = await subscribe(peer, "t")
            assert await peer.ask([34, 2, number]) == [35, 2]
        assert "topic() has yielded twice" in complaints()[0]

    async def test_never_yields(self, serve: Serve, complaints: Complaints) -> None:
        """A topic that doesn't yield refuses SUBSCRIBE with a runtime error, which is logged."""
        routes = rpc.Routes()

        @routes.topic("t")
        async def topic() -> AsyncIterator[None]:
            for _ in ():
                yield

        server = await serve(routes)
        async with server.wamp() as peer:
            assert (await peer.ask([32, 1, {}, "t"]))[4] == "wamp.error.runtime_error"
        assert len(complaints()) == 1

    async def test_each_second_half(self, serve: Serve, complaints: Complaints) -> None:
        """All second halves run, in reverse order, even if one fails."""
        routes, ended = rpc.Routes(), []

        @routes.topic("t.{n}")
        async def topic(n: int) -> AsyncIterator[None]:
            yield
            ended.append(n)
            if n == 2:
                raise ValueError

        server = await serve(routes)
        async with server.wamp() as peer:
            for n in (1, 2, 3):
                await subscribe(peer, f"t.{n}", n)
        await until(lambda: len(ended) == 3)
        assert ended == [3, 2, 1]
        assert len(complaints()) == 1

    async def test_second_half_that_has_begun(self, serve: Serve) -> None:
        """A second half that was started by UNSUBSCRIBE continues when the session ends."""
        routes, begun, done = rpc.Routes(), asyncio.Event(), asyncio.Event()

        @routes.topic("t")
        async def topic() -> AsyncIterator[None]:
            yield
            begun.set()
            await until(lambda: not server.calls.sessions)
            await asyncio.sleep(0)
            done.set()

        server = await serve(routes)
        async with server.wamp() as peer:
            number = await subscribe(peer, "t")
            await peer.say([34, 2, number])
            await begun.wait()
        await until(done.is_set)

    async def test_request_in_flight(self, serve: Serve) -> None:
        """A SUBSCRIBE with the number of a pending one is a protocol violation."""
        routes, gate = rpc.Routes(), asyncio.Event()

        @routes.topic("t")
        async def topic() -> AsyncIterator[None]:
            await gate.wait()
            yield

        server = await serve(routes)
        async with server.wamp() as peer:
            await peer.say([32, 1, {}, "t"])
            assert (await peer.ask([32, 1, {}, "t"]))[2] == "wamp.error.protocol_violation"
            assert await peer.closed() == 1002


class TestPublishing:
    @pytest.mark.parametrize("protocol", ["wamp.2.json", "wamp.2.msgpack.batched"])
    async def test_event(self, serve: Serve, protocol: str) -> None:
        """An event is sent to all subscribers of its topic, and to no other client."""
        server = await serve(Counter().routes)
        async with server.wamp(protocol) as one, server.wamp() as two, server.wamp() as other:
            number = await subscribe(one)
            await subscribe(two)
            await subscribe(other, "shop.stock.y")
            delivery = await server.calls.publish("shop.stock.x", ["a", 1], {"b": 2})
            assert (delivery.sockets, delivery.complete) == (2, True)
            first, second = await one.hear(), await two.hear()
            assert first == second
            assert first[:2] == [36, number]
            assert first[3:] == [{}, ["a", 1], {"b": 2}]

    async def test_chosen(self, serve: Serve) -> None:
        """An event can be published to one identity or one session."""
        server = await serve(Counter().routes)
        server.calls.default.add_transport_authenticator(lambda s: (s.auth_id, 1))
        ann = server.wamp().joining("r", authid="ann")
        bob = server.wamp().joining("r", authid="bob")
        async with ann, bob:
            await subscribe(ann)
            await subscribe(bob)
            publish = server.calls.publish
            assert (await publish("shop.stock.x", "hi", identity=("ann", 1))).sockets == 1
            assert (await ann.hear())[4] == ["hi"]
            assert (await publish("shop.stock.x", session=bob.welcome[1])).sockets == 1
            assert len(await bob.hear()) == 4
            (session,) = [s for s in server.calls.sessions if s.auth_id == "bob"]
            assert (await publish("shop.stock.x", session=session)).sockets == 1
            assert (await publish("shop.stock.x", identity=None)).sockets == 0

    async def test_too_large(self, serve: Serve) -> None:
        """An event too large to relay raises ``ValueError``, and is not sent to anyone."""
        server = await serve(Counter().routes)
        async with server.wamp() as peer:
            await subscribe(peer)
            with pytest.raises(ValueError, match="can't be relayed"):
                await server.calls.publish("shop.stock.x", ["x" * 70_000])
            assert await peer.call("shop.ping", number=5) == [50, 5, {}, ["pong"]]

    async def test_nobody(self, serve: Serve) -> None:
        """Publishing to a topic without subscribers isn't an error."""
        server = await serve(Counter().routes)
        async with server.wamp():
            assert (await server.calls.publish("shop.stock.x")).sockets == 0

    async def test_before_any_connection(self, complaints: Complaints) -> None:
        """Publishing before the application has a registry is incomplete, and logged."""
        calls = rpc.Application()

        delivery = await calls.publish("t")

        assert not delivery.complete
        assert "attach(registry)" in complaints()[0]

    async def test_without_a_connection(self, serve: Serve) -> None:
        """Publishing needs no connection once the application has started."""
        server = await serve(Counter().routes)

        assert (await server.calls.publish("shop.stock.x")).complete

    async def test_held_until_subscribed(self, serve: Serve) -> None:
        """Events sent while a topic's first half runs arrive, in order, after SUBSCRIBED."""
        routes = rpc.Routes()

        @routes.topic("t")
        async def topic(session: rpc.Session) -> AsyncIterator[None]:
            assert await session.send_event("t", "first")
            await server.calls.publish("t", "second")
            yield

        server = await serve(routes)
        async with server.wamp() as peer:
            await subscribe(peer, "t")
            assert [(await peer.hear())[4] for _ in range(2)] == [["first"], ["second"]]

    async def test_held_in_bytes(self, serve: Serve) -> None:
        """Events held until SUBSCRIBED are limited in bytes; more are dropped and incomplete."""
        routes, deliveries = rpc.Routes(), []

        @routes.topic("t")
        async def topic() -> AsyncIterator[None]:
            for _ in range(30):
                deliveries.append(await server.calls.publish("t", ["x" * 60_000]))
            yield

        server = await serve(routes)
        async with server.wamp() as peer:
            await subscribe(peer, "t")
        taken = [delivery for delivery in deliveries if delivery.complete]
        assert 1_048_576 <= len(taken) * 60_000 < 1_200_000
        assert all(not delivery.sockets for delivery in deliveries[len(taken) :])

    async def test_send_event(self, serve: Serve) -> None:
        """``send_event()`` sends to a session that has subscribed, and returns whether it did."""
        routes, told = Counter().routes, []

        @routes.route()
        async def remind(session: rpc.Session) -> None:
            told.append(await session.send_event("shop.stock.x", ["hi"]))

        server = await serve(routes)
        async with server.wamp() as peer:
            assert await peer.call("shop.remind") == [50, 1, {}]
            await subscribe(peer, number=2)
            event = await peer.call("shop.remind", number=3)
            assert event[4] == ["hi"]
            assert await peer.hear() == [50, 3, {}]
        assert told == [False, True]

    async def test_slow_one(self, serve: Serve, complaints: Complaints) -> None:
        """Publishing doesn't wait for a slow subscriber."""
        queue = PushQueue(patience=2 * PATIENCE)
        server = await serve(Counter().routes, SessionWSRegistry(push_queue=queue))
        async with server.wamp() as peer, server.wamp() as slow:
            await subscribe(peer)
            await subscribe(slow)
            transport = transport_of(slow.ws)
            assert transport is not None
            transport.pause_reading()
            async with asyncio.timeout(PATIENCE):
                for n in range(300):
                    await server.calls.publish("shop.stock.x", [n, "x" * 60_000])
                    assert (await peer.hear())[4][0] == n
            transport.resume_reading()
        assert all("reads too slowly" in one for one in complaints())


async def test_publish_by_clients(serve: Serve) -> None:
    """PUBLISH gets an error if it asks for an acknowledgment, and is ignored otherwise."""
    server = await serve(Counter().routes)
    async with server.wamp() as peer:
        await peer.say([16, 1, {}, "shop.stock.x", ["x"]])
        answer = await peer.ask([16, 2, {"acknowledge": True}, "shop.stock.x", ["x"]])
        assert answer[:5] == [8, 16, 2, {}, "wamp.error.not_authorized"]
