"""Peers that read slowly, or nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aiohttp_session_ws import PushQueue, SessionWSRegistry, rpc

from ..support.inspect import transport_of
from .conftest import Serve
from .support import QUICK, until, who

Complaints = Callable[[], list[str]]

BIG = 3_000_000


class Made:
    """Routes with large answers, and how many were made."""

    def __init__(self) -> None:
        self.answers = 0
        self.parts = 0
        self.routes = rpc.Routes()

        @self.routes.route()
        async def big() -> str:
            self.answers += 1
            return "x" * BIG

        @self.routes.route()
        async def stream() -> AsyncIterator[str]:
            while True:
                self.parts += 1
                yield "x" * 10_000

        @self.routes.route()
        async def quick() -> int:
            return 1

        @self.routes.topic("news")
        async def news() -> AsyncIterator[None]:
            yield


def stop_reading(peer: Any) -> asyncio.Transport:
    """Let a client read nothing from now on."""
    transport = transport_of(peer.ws)
    assert transport is not None
    transport.pause_reading()
    return transport


async def test_large_answers(serve: Serve) -> None:
    """A call counts until its answer is with the transport: few large answers are made."""
    made = Made()
    server = await serve(made.routes, limits=rpc.CallLimits(patience=0.2))
    async with server.wamp() as peer:
        transport = stop_reading(peer)
        await peer.say(*([48, n, {}, "big"] for n in range(1, 101)))
        await until(lambda: not server.calls.sessions)
        transport.resume_reading()
    # The first fill what the system takes.
    assert made.answers * BIG < 30_000_000


async def test_slow_reader(serve: Serve) -> None:
    """A peer that reads gets all of them in the end."""
    made = Made()
    server = await serve(made.routes)
    async with server.wamp(max_msg_size=0) as peer:
        transport = stop_reading(peer)
        await peer.say(*([48, n, {}, "big"] for n in range(1, 11)))
        await until(lambda: made.answers)
        transport.resume_reading()
        answers = [await peer.hear() for _ in range(10)]
        assert sorted(a[1] for a in answers) == list(range(1, 11))
        assert await peer.call("quick", number=11) == [50, 11, {}, [1]]


async def test_stream_is_as_fast_as_its_reader(serve: Serve) -> None:
    """Each part of a stream waits until the peer has room, which closes one that reads nothing."""
    made = Made()
    server = await serve(made.routes, limits=rpc.CallLimits(patience=0.2))
    async with server.wamp() as peer:
        transport = stop_reading(peer)
        await peer.say([48, 1, {"receive_progress": True}, "stream"])
        await until(lambda: not server.calls.sessions)
        transport.resume_reading()
    assert made.parts < 2000


@pytest.mark.parametrize("dialect", ["wamp", "wsrpc"])
async def test_refusals(serve: Serve, dialect: str) -> None:
    """A flood of calls that are refused doesn't grow memory either."""
    made = Made()
    limits = rpc.CallLimits(calls=1, waiting=0, outgoing=10_000, patience=0.2)
    server = await serve(made.routes, limits=limits)
    connecting: Any = server.wamp() if dialect == "wamp" else server.wsrpc()
    async with connecting as peer:
        (session,) = server.calls.sessions
        transport = stop_reading(peer)
        for end in (session.request.transport, transport):
            assert end is not None
            sock = end.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
        name = "nothing" * 100

        async def flood() -> None:
            for n in range(2, 30_000):
                request: Any = {"id": n, "method": name}
                await peer.say([48, n, {}, name] if dialect == "wamp" else request)

        flooding = asyncio.create_task(flood())
        await until(lambda: not server.calls.sessions)
        flooding.cancel()
        await asyncio.wait({flooding})
        own = transport.get_extra_info("socket")
        transport.resume_reading()
        transport.abort()  # what it has not sent yet, nobody takes
        await until(lambda: own.fileno() == -1)


async def test_published(serve: Serve, complaints: Complaints) -> None:
    """A subscriber that doesn't keep up is closed with 1013, by the queue of its connection."""
    made = Made()
    queue = PushQueue(messages=4, bytes=100_000, patience=0.1)
    registry = SessionWSRegistry(identify=who, timeouts=QUICK, push_queue=queue)
    server = await serve(made.routes, registry)
    async with server.wamp() as peer:
        await peer.ask([32, 1, {}, "news"])
        transport = stop_reading(peer)
        complete = True
        while server.calls.sessions:
            delivery = await server.calls.publish("news", ["x" * 50_000])
            complete = complete and delivery.complete
            await asyncio.sleep(0)
        transport.resume_reading()
    assert not complete
    assert len(complaints()) == 1


async def test_unsubscribed_is_behind_the_events(serve: Serve) -> None:
    """UNSUBSCRIBED comes behind all events, also to a slow peer."""
    made = Made()
    server = await serve(made.routes)
    async with server.wamp() as peer:
        number = (await peer.ask([32, 1, {}, "news"]))[2]
        transport = stop_reading(peer)
        for n in range(200):
            await server.calls.publish("news", [n, "x" * 50_000])
        await peer.say([34, 2, number])
        await until(lambda: server.registry)
        transport.resume_reading()
        heard = [await peer.hear()]
        while heard[-1][0] == 36:
            heard.append(await peer.hear())
        assert heard.pop() == [35, 2]
        numbers = [event[4][0] for event in heard]
        assert numbers == list(range(len(numbers)))


async def test_cancel_while_an_answer_waits(serve: Serve) -> None:
    """A call that has begun to answer isn't cancelled any more."""
    made = Made()
    server = await serve(made.routes)
    async with server.wamp(max_msg_size=0) as peer:
        transport = stop_reading(peer)
        await peer.say([48, 1, {}, "big"], [48, 2, {}, "big"])
        await until(lambda: made.answers)
        await peer.say([49, 1, {"mode": "kill"}])
        transport.resume_reading()
        first = await peer.hear()
        assert (first[0], first[1]) == (50, 1)
        assert (await peer.hear())[:2] in ([50, 2], [8, 48])
