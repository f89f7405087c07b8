"""
Stateful test of conversations: real clients and a real server act in any order.

Whatever a view is doing when its socket ends, and whichever side ends it, its callbacks come in
order, ``on_close`` comes exactly once with the code of the first side to close, the client's
earlier messages are received in order and once, and nothing is leaked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest
from aiohttp import web
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aiohttp_session_ws import (
    Connection,
    SessionWSRegistry,
    Timeouts,
    WebSocket,
    WebSocketDisconnect,
    WebSocketView,
    websocket_handler,
)
from aiohttp_session_ws.signals import CloseDetails
from tests.support import PATIENCE, RawPeer, Server, make_app, until
from tests.support.inspect import inspect, left_handlers, opening, quiet

T = TypeVar("T")

#: What a handler is doing: it sends, receives, does both, or neither.
BUSY = ["send", "receive", "both", "neither"]
#: What ends a conversation, and the close codes that are then possible.
ENDS = {
    "client": {4321},
    "client without a code": {1005},
    "vanish": {1006},
    "order": {4403},
    "return": {1000},
    "close": {4000},
    "crash": {1011},
    "forbid": {1008},
}


class Crash(Exception):
    """Raised by a handler that is ordered to crash."""


class Conversation:
    """One socket: its plan, and what happened on it."""

    def __init__(self, kind: str, busy: str) -> None:
        self.kind = kind
        self.busy = busy
        self.peer: RawPeer
        self.ws: WebSocket
        self.reading: asyncio.Task[None]
        self.calls: list[Any] = []
        self.said: list[str] = []  # sent by the client before the end
        self.heard: list[str | bytes] = []
        self.orders: asyncio.Queue[str] = asyncio.Queue()  # for the handler
        self.ends: list[str] = []
        self.disconnects: list[int] = []

    async def talk(self, ws: WebSocket) -> None:
        """Do the planned work until an order comes."""
        jobs = {
            "send": [self.send],
            "receive": [self.receive],
            "both": [self.send, self.receive],
            "neither": [self.notice],
        }[self.busy]
        tasks = [asyncio.create_task(job(ws)) for job in jobs]
        order = asyncio.create_task(self.orders.get())
        try:
            await asyncio.wait([order, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            await self.obey(ws, order.result() if order.done() else "return")
        finally:
            _ = order.cancel(), [task.cancel() for task in tasks]
            results = await asyncio.gather(order, *tasks, return_exceptions=True)
            self.disconnects += [r.code for r in results if isinstance(r, WebSocketDisconnect)]
            if ws.closed:
                self.heard += [message async for message in ws]

    async def obey(self, ws: WebSocket, order: str) -> None:
        """End as ordered."""
        if order == "close":
            await ws.close(4000)
        elif order == "crash":
            raise Crash
        elif order == "forbid":
            raise web.HTTPForbidden
        else:
            await ws.close()

    async def send(self, ws: WebSocket) -> None:
        """Only send."""
        while True:
            await ws.send("x")
            await asyncio.sleep(0.001)  # so that the peer can do more than read

    async def receive(self, ws: WebSocket) -> None:
        """Only receive."""
        while True:
            self.heard.append(await ws.receive())

    async def notice(self, ws: WebSocket) -> None:
        """Neither send nor receive, until the socket is closed."""
        while not ws.closed:
            await asyncio.sleep(0)


class View(WebSocketView):
    """A view that follows the plan of its conversation."""

    async def on_open(self) -> None:
        """Do the planned work, and end."""
        self.conversation = conversation_of(self.request)
        self.conversation.ws = self.ws
        self.conversation.calls.append("open")
        await self.conversation.talk(self.ws)

    async def on_message(self, message: str | bytes) -> None:
        """Record a message, which must not come."""
        self.conversation.calls.append("message")

    async def on_close(self, code: int) -> None:
        """Record the code."""
        self.conversation.calls.append(code)


@websocket_handler
async def function(ws: WebSocket) -> None:
    """Follow the plan of the conversation, as a handler function."""
    conversation = conversation_of(ws.request)
    await ws.connect()
    conversation.ws = ws
    conversation.calls.append("open")
    await conversation.talk(ws)


CONVERSATIONS: dict[str, Conversation] = {}


def conversation_of(request: web.Request) -> Conversation:
    """Return the conversation of a request."""
    return CONVERSATIONS[request.query["n"]]


class World:
    """A server, and its clients."""

    def __init__(self, *, handler_cancellation: bool) -> None:
        CONVERSATIONS.clear()
        timeouts = Timeouts(close=0.2, handler_grace=0.1)
        self.registry = SessionWSRegistry(timeouts=timeouts)
        self.registry.on_close.append(self.on_close)
        self.registry.connection_ctx.append(self.context)
        app = make_app(self.registry)
        app.router.add_view("/view", View)
        app.router.add_get("/function", function)
        self.server = Server(app, handler_cancellation=handler_cancellation)

    async def context(self, connection: Connection) -> AsyncIterator[None]:
        assert connection.request is not None
        conversation = conversation_of(connection.request)
        conversation.calls.append("in")
        yield
        conversation.calls.append("out")

    async def on_close(self, details: CloseDetails) -> None:
        conversation_of(details.request).calls.append((details.code, details.by))

    async def open(self, kind: str, busy: str) -> None:
        """Open a conversation with a new client."""
        number = str(len(CONVERSATIONS))
        CONVERSATIONS[number] = conversation = Conversation(kind, busy)
        url = self.server.make_url(f"/{kind}?n={number}")
        conversation.peer = await RawPeer.open(url)
        conversation.reading = asyncio.ensure_future(self.read(conversation))
        await until(lambda: "open" in conversation.calls)

    async def read(self, conversation: Conversation) -> None:
        """Read all frames, and answer the close frame."""
        try:
            while (frame := await conversation.peer.frame()) is not None:
                if frame[0] == 8:
                    await conversation.peer.say(8, frame[1])
        except OSError:
            pass

    async def say(self, conversation: Conversation) -> None:
        """Send a message from the client."""
        text = str(len(conversation.said))
        conversation.said.append(text)
        await conversation.peer.say(1, text.encode())

    async def end(self, conversation: Conversation, how: str) -> None:
        """End a conversation without waiting for it."""
        conversation.ends.append(how)
        if how == "vanish":
            conversation.reading.cancel()
            await asyncio.wait({conversation.reading})
            conversation.peer.vanish()
        elif how.startswith("client"):
            await conversation.peer.say(8, b"" if "without" in how else (4321).to_bytes(2))
        elif how == "order":
            id_ = conversation.ws.session_ws_id
            closing = self.registry.close_all_session(id_)
            _ = inspect(self.registry).tasks.spawn(closing, "an order of the test")
        else:
            conversation.orders.put_nowait(how)
        await asyncio.sleep(0)

    async def settle(self) -> None:
        """Wait until all conversations that are ending have ended."""
        ended = [c for c in CONVERSATIONS.values() if c.ends]
        await until(lambda: all("out" in c.calls for c in ended))
        await until(lambda: not left_handlers(self.registry))
        await until(lambda: len(self.registry) == len(CONVERSATIONS) - len(ended))
        for conversation in ended:
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait({conversation.reading})
            conversation.peer.close()


def check(conversation: Conversation) -> None:
    """Check that a conversation that has ended went as promised."""
    codes = set().union(*[ENDS[how] for how in conversation.ends])
    *calls, out, (code, by) = conversation.calls
    told = [calls.pop()] if conversation.kind == "view" else []

    assert (calls, out) == (["in", "open"], "out")
    assert {code, *told, *conversation.disconnects} <= codes
    if len(conversation.ends) == 1:
        (how,) = conversation.ends
        client = how == "vanish" or how.startswith("client")
        assert by == ("client" if client else "order" if how == "order" else "handler")
    assert conversation.heard == conversation.said[: len(conversation.heard)]
    if conversation.ends[0].startswith("client") and len(conversation.ends) == 1:
        assert conversation.heard == conversation.said


class Conversations(RuleBasedStateMachine):
    """The rules, run in the machine's own event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()

    def run_(self, coro: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coro)

    def pick(self, data: st.DataObject, *, ended: bool = False) -> Conversation | None:
        """Choose a conversation."""
        found = [c for c in CONVERSATIONS.values() if ended or not c.ends]
        return data.draw(st.sampled_from(found)) if found else None

    @initialize(handler_cancellation=st.booleans())
    def start(self, *, handler_cancellation: bool) -> None:
        """Start a server."""

        async def start() -> None:
            self.world = World(handler_cancellation=handler_cancellation)
            await self.world.server.start_server()

        self.run_(start())

    @rule(kind=st.sampled_from(["view", "function"]), busy=st.sampled_from(BUSY))
    def open(self, kind: str, busy: str) -> None:
        """A client connects."""
        self.run_(self.world.open(kind, busy))

    @rule(data=st.data(), times=st.integers(1, 9))
    def say(self, data: st.DataObject, times: int) -> None:
        """A client sends messages."""
        conversation = self.pick(data)
        for _ in range(times if conversation else 0):
            assert conversation is not None
            self.run_(self.world.say(conversation))

    @rule(data=st.data(), ends=st.lists(st.sampled_from(sorted(ENDS)), min_size=1, max_size=3))
    def end(self, data: st.DataObject, ends: list[str]) -> None:
        """A conversation is ended by one side, or by several at the same time."""
        conversation = self.pick(data)
        for how in ends if conversation else []:
            assert conversation is not None
            try:
                self.run_(self.world.end(conversation, how))
            except OSError:  # the connection was closed before the client could end it
                break
            if how == "vanish":
                break

    @rule(turns=st.integers(1, 99))
    def go_on(self, turns: int) -> None:
        """Time passes, so that busy handlers let others read."""

        async def wait() -> None:
            for _ in range(turns):
                await asyncio.sleep(0.001)

        self.run_(wait())

    @precondition(lambda self: bool(CONVERSATIONS))
    @rule()
    def settle(self) -> None:
        """All conversations that are ending come to their end."""
        self.run_(self.world.settle())
        for conversation in CONVERSATIONS.values():
            if conversation.ends:
                check(conversation)

    @invariant()
    def nothing_twice(self) -> None:
        """No callback is called twice."""
        for conversation in CONVERSATIONS.values():
            calls = [call for call in conversation.calls if not isinstance(call, int)]
            assert len(calls) == len(set(calls))

    def teardown(self) -> None:
        """End all conversations, and check that nothing is leaked."""
        if hasattr(self, "world"):
            for conversation in CONVERSATIONS.values():
                if not conversation.ends:
                    self.run_(self.world.end(conversation, "client"))
            self.settle()
            self.run_(self.nothing_is_left())
            self.run_(self.world.server.close())
        self.runner.close()

    async def nothing_is_left(self) -> None:
        registry = self.world.registry
        await quiet(registry)
        assert not len(registry)
        assert not opening(registry)


TestConversations = pytest.mark.exhaustive(Conversations.TestCase)
TestConversations.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
