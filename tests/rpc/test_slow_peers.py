"""Back-pressure: peers that read slowly or not at all."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from aiohttp_session_ws import Limits, PushQueue, SessionWSRegistry, WebSocketDisconnect, rpc
from aiohttp_session_ws.close_codes import Close
from aiohttp_session_ws.rpc.host import Host
from aiohttp_session_ws.rpc.sending import Sender
from aiohttp_session_ws.rpc.wamp import CODECS
from aiohttp_session_ws.rpc.wamp_conversation import WampConversation
from aiohttp_session_ws.rpc.wsrpc_conversation import WsrpcConversation
from tests.support import until

from ..support.inspect import transport_of
from .conftest import Serve
from .support import QUICK, send_together, who

Complaints = Callable[[], list[str]]

BIG = 3_000_000


class Made:
    """Routes with large results, and counters of how many were produced."""

    def __init__(self) -> None:
        self.answers = 0
        self.parts = 0
        self.left = False
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
            self.left = True


def stop_reading(peer: Any) -> asyncio.Transport:
    """Stop a client from reading; return its transport."""
    transport = transport_of(peer.ws)
    assert transport is not None
    transport.pause_reading()
    return transport


async def test_large_answers(serve: Serve) -> None:
    """A call counts as running until its result is written: few large results are produced."""
    made = Made()
    server = await serve(made.routes, limits=rpc.CallLimits(patience=0.2))
    async with server.wamp() as peer:
        transport = stop_reading(peer)
        await peer.say(*([48, n, {}, "big"] for n in range(1, 101)))
        await until(lambda: not server.calls.sessions)
        transport.resume_reading()
    # The first results fill the buffers of the operating system.
    assert made.answers * BIG < 30_000_000


async def test_slow_reader(serve: Serve) -> None:
    """A peer that resumes reading gets all large results."""
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
    """A stream waits until its peer has read enough, and a peer that reads nothing is closed."""
    made = Made()
    server = await serve(made.routes, limits=rpc.CallLimits(patience=0.2))
    async with server.wamp() as peer:
        transport = stop_reading(peer)
        await peer.say([48, 1, {"receive_progress": True}, "stream"])
        await until(lambda: not server.calls.sessions)
        transport.resume_reading()
    assert made.parts < 2000


class StuckSocket:
    """A fake socket whose peer sends frames without end and reads nothing."""

    def __init__(self, frames: Iterator[str]) -> None:
        self.frames = frames
        self.received = 0
        self.written = 0
        self.code = 0  # the code of its close
        self.stuck = asyncio.Event()
        self.closed = False
        self.compress = 0
        self.identity = self.last_words = None
        # The object serves as its own request, transport, connection and response.
        self.request = self.transport = self.connection = self.ws = self

    def get_write_buffer_size(self) -> int:
        return self.written

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written += len(data)

    async def receive(self) -> str:
        await asyncio.sleep(0)
        if self.closed:
            raise WebSocketDisconnect(1013)
        self.received += 1
        return next(self.frames)

    async def send_text(self, data: bytes) -> None:
        self.written += len(data)
        await self.stuck.wait()
        raise WebSocketDisconnect(1013)

    async def close(self, close: Close, reason: str = "") -> None:
        self.code = close.code
        self.closed = True
        self.stuck.set()


@pytest.mark.parametrize("dialect", ["wamp", "wsrpc"])
async def test_refusals(dialect: str) -> None:
    """A flood of refused calls doesn't fill memory: reading stops, then the socket is closed."""

    def frames() -> Iterator[str]:
        if dialect == "wamp":
            yield json.dumps([1, "realm", {}])
        for n in range(3, 1_000_000):
            call: Any = {"id": n, "method": "wait"}
            yield json.dumps([48, n, {}, "wait"] if dialect == "wamp" else call)

    limits = rpc.CallLimits(calls=1, waiting=0, outgoing=10_000, patience=0.1)
    host = Host(None, limits, rpc.Realm(""))
    routes = rpc.Routes()

    @routes.route()
    async def wait() -> None:
        await asyncio.Event().wait()

    assert host.default_realm is not None
    host.default_realm.add_rpc_routes(routes)
    ws: Any = StuckSocket(frames())
    registry = SessionWSRegistry(timeouts=QUICK)
    codec = CODECS["wamp.2.json"]
    conversation = (
        WampConversation(host, registry, ws, codec)
        if dialect == "wamp"
        else WsrpcConversation(host, registry, ws)
    )
    with pytest.raises(WebSocketDisconnect):
        await conversation.run()
    assert ws.code == 1013
    assert ws.received < 500
    assert ws.written < 50_000


class SlowSocket(StuckSocket):
    """A fake socket whose peer has read one more byte at each check of the buffer's size."""

    looks = 0

    def get_write_buffer_size(self) -> int:
        if self.written:
            self.looks += 1
            self.written -= 1
        return self.written


async def test_patience_with_a_slow_reader() -> None:
    """A peer that reads a large result slowly isn't closed, however long that takes."""
    ws: Any = SlowSocket(iter(()))
    sender = Sender(ws, False, rpc.CallLimits(patience=0.001))
    sending = asyncio.create_task(sender.send(b"x" * BIG))
    await until(lambda: ws.looks >= 10 or ws.closed)
    assert not ws.closed
    ws.stuck.set()
    with pytest.raises(rpc.SessionGone):
        await sending


async def test_ping_behind_what_waits() -> None:
    """The silence limit starts when a ping is sent, not while the ping waits in a buffer."""
    limits = rpc.CallLimits(silence=0.001, patience=0.2)
    ws: Any = StuckSocket(itertools.repeat("{}"))
    ws.written = 1  # byte in the transport's buffer
    conversation = WsrpcConversation(
        Host(None, limits, rpc.Realm("")), SessionWSRegistry(timeouts=QUICK), ws
    )
    with pytest.raises(WebSocketDisconnect):
        await conversation.run()
    assert ws.code == 1013


@pytest.mark.parametrize("dialect", ["wamp", "wsrpc"])
async def test_many_messages_at_once(serve: Serve, dialect: str) -> None:
    """Other tasks run in between, however many messages a batch or a packet contains."""
    routes, turns, marks = rpc.Routes(), 0, list[int]()

    @routes.route()
    async def mark() -> None:
        marks.append(turns)

    server = await serve(routes)
    peer: Any = server.wamp("wamp.2.json.batched") if dialect == "wamp" else server.wsrpc()
    async with peer:
        many = 64 * 50
        if dialect == "wamp":
            await peer.say([48, 1, {}, "mark"], *[[49, 9, {}]] * many, [48, 2, {}, "mark"])
        else:
            texts = ['{"id":3,"method":"mark"}', *["{}"] * many, '{"id":5,"method":"mark"}']
            send_together(peer.ws, *texts)
        while len(marks) < 2:
            turns += 1
            await asyncio.sleep(0)
    assert marks[1] - marks[0] >= 50


@pytest.mark.parametrize("protocol", ["wamp.2.json.batched", "wamp.2.msgpack.batched"])
async def test_rate_of_a_batch(serve: Serve, protocol: str) -> None:
    """Each message of a batch counts against ``messages_per_second``."""
    made = Made()
    registry = SessionWSRegistry(timeouts=QUICK, limits=Limits(messages_per_second=10))
    server = await serve(made.routes, registry)
    async with server.wamp(protocol) as peer:
        await peer.say(*([48, n, {}, "quick"] for n in range(1, 6)))  # with HELLO: less than ten
        assert sorted([(await peer.hear())[1] for _ in range(5)]) == [1, 2, 3, 4, 5]
        await peer.say(*([48, n, {}, "quick"] for n in range(1, 1001)))
        heard = 0
        while (await peer.hear())[0] != 6:
            heard += 1
        assert await peer.closed() == 1008
    assert heard < 500


async def test_published(serve: Serve, complaints: Complaints) -> None:
    """A subscriber that doesn't keep up loses its session, is logged, and misses events."""
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


async def test_unsubscribed_is_behind_the_events(serve: Serve, complaints: Complaints) -> None:
    """UNSUBSCRIBED is sent after all events, to a slow peer too."""
    made = Made()
    server = await serve(made.routes)
    async with server.wamp() as peer:
        number = (await peer.ask([32, 1, {}, "news"]))[2]
        transport = stop_reading(peer)
        sent = 0
        while (await server.calls.publish("news", [sent, "x" * 50_000])).sockets:
            sent += 1
            await asyncio.sleep(0)  # the operating system buffers some before the queue is full
        await peer.say([34, 2, number])
        await until(lambda: made.left)
        for _ in range(10):  # turns in which UNSUBSCRIBED would be written if it weren't held back
            await asyncio.sleep(0)
        transport.resume_reading()
        heard = [await peer.hear()]
        while heard[-1][0] == 36:
            heard.append(await peer.hear())
        assert heard.pop() == [35, 2]
        numbers = [event[4][0] for event in heard]
        assert numbers == list(range(sent))
    assert all("reads too slowly" in one for one in complaints())


async def test_cancel_while_an_answer_waits(serve: Serve) -> None:
    """A call that has begun to send its result isn't cancelled by CANCEL."""
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
