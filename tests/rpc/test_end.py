"""The end of sessions: log-out, GOODBYE, shutdown, and lost connections."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import WSMsgType

from aiohttp_session_ws import SessionWSRegistry, Timeouts, rpc, websocket_handler
from tests.support import Stopwatch, until

from .conftest import Serve
from .support import Server, send_together, who

Complaints = Callable[[], list[str]]


class World:
    """Routes of each kind, with counters of what is running in them."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}
        self.ended: list[str] = []
        self.routes = routes = rpc.Routes()
        self.stubborn = asyncio.Event()

        def enter(name: str) -> None:
            self.running[name] = self.running.get(name, 0) + 1

        def leave(name: str) -> None:
            self.running[name] -= 1
            self.ended.append(name)

        @routes.route()
        async def call() -> None:
            enter("call")
            try:
                await asyncio.Event().wait()
            finally:
                leave("call")

        @routes.route()
        async def stream() -> AsyncIterator[int]:
            enter("stream")
            try:
                yield 1
                await asyncio.Event().wait()
            finally:
                leave("stream")

        @routes.topic("topic")
        async def topic() -> AsyncIterator[None]:
            enter("topic")
            yield
            leave("topic")

        @routes.route()
        async def ask(session: rpc.Session) -> None:
            enter("ask")
            try:
                await session.call("allow", timeout=None)
            finally:
                leave("ask")

        @routes.route()
        async def ignore() -> None:
            enter("ignore")
            while not self.stubborn.is_set():
                try:
                    await self.stubborn.wait()
                except asyncio.CancelledError:
                    continue
            leave("ignore")

        @routes.route()
        async def quit(session: rpc.Session, uri: str = "shop.close.enough") -> None:
            await session.close(uri, "bye")

        async def state(session: rpc.Session) -> AsyncIterator[None]:
            enter("state")
            yield
            leave("state")

        self.state = state

    async def serve(self, serve: Serve, **options: Any) -> Server:
        """Serve the routes and the state handler."""
        calls = rpc.Application()
        calls.default.add_rpc_routes(self.routes)
        calls.add_session_state_handler(self.state)
        return await serve(calls, **options)

    async def engage(self, server: Server) -> Any:
        """Return a WAMP client with a call, a stream, a topic and a call to the client running."""
        peer = server.wamp()
        await peer.__aenter__()
        await peer.ask([64, 1, {}, "allow"])
        await peer.ask([32, 2, {}, "topic"])
        await peer.say([48, 3, {}, "call"], [48, 4, {"receive_progress": True}, "stream"])
        await peer.hear()
        assert (await peer.call("ask", number=5))[0] == 68
        await until(lambda: sum(self.running.values()) == 5)
        return peer

    @property
    def quiet(self) -> bool:
        """Whether nothing is running."""
        return not any(self.running.values())


class TestLogOut:
    async def test_one_of_each(self, serve: Serve) -> None:
        """A log-out closes WAMP and wsrpc sockets, and ends all that runs in them."""
        world = World()
        server = await world.serve(serve)
        before = asyncio.all_tasks()

        await server.client.get("/login")
        peer, other = await world.engage(server), server.wsrpc()
        await other.__aenter__()
        await other.say({"id": 3, "method": "call"})
        await other.say({"id": 5, "method": "ask"})
        await other.hear()
        assert len(server.calls.sessions) == 2

        watch = Stopwatch()
        await server.client.get("/logout")
        assert await peer.hear() == [6, {"message": "session ended"}, "wamp.close.killed"]
        assert await peer.closed() == 4401
        assert await other.closed() == 4401
        await until(lambda: world.quiet)
        assert watch.stop() < 2
        assert not server.calls.sessions
        assert (await server.calls.publish("topic")).sockets == 0
        await until(lambda: not [t for t in asyncio.all_tasks() - before if "rpc" in str(t)])
        await peer.__aexit__(None, None, None)
        await other.__aexit__(None, None, None)

    @pytest.mark.parametrize("dialect", ["wamp", "wsrpc"])
    async def test_nothing_begins_afterwards(self, serve: Serve, dialect: str) -> None:
        """A call received before the socket was closed, but not begun, doesn't begin after it."""
        routes, begun = rpc.Routes(), []

        @routes.route()
        async def mark(session: rpc.Session, n: int) -> None:
            begun.append((n, session.connection.ws.closed))
            if n == 1:
                ending = asyncio.create_task(server.registry.close_all(close=4401))
                await asyncio.wait({ending})

        server = await serve(routes)
        async with server.wamp() if dialect == "wamp" else server.wsrpc() as peer:
            for n in range(1, 100):
                call: Any = {"id": 2 * n + 1, "method": "mark", "params": [n]}
                await peer.say([48, n, {}, "mark", [n]] if dialect == "wamp" else call)
            while (await peer.ws.receive()).type is WSMsgType.TEXT:
                pass
        await until(lambda: not server.calls.sessions)
        assert begun[0] == (1, False)
        assert [n for n, closed in begun if closed] == []

    @pytest.mark.parametrize("dialect", ["wamp", "wsrpc"])
    async def test_nothing_begins_after_close(self, serve: Serve, dialect: str) -> None:
        """A call sent in one packet with a call that closes the session doesn't begin."""
        routes, begun = rpc.Routes(), list[str]()

        @routes.route()
        async def leave(session: rpc.Session) -> None:
            begun.append("leave")
            await session.close()

        @routes.route()
        async def mark() -> None:
            begun.append("mark")

        server = await serve(routes)
        async with server.wamp() if dialect == "wamp" else server.wsrpc() as peer:
            calls: list[Any] = [[48, 1, {}, "leave"], [48, 2, {}, "mark"]]
            if dialect == "wsrpc":
                calls = [{"id": 3, "method": "leave"}, {"id": 5, "method": "mark"}]
            send_together(peer.ws, *map(json.dumps, calls))
            if dialect == "wamp":
                assert (await peer.hear())[0] == 6
            assert await peer.closed() == 1000
        await until(lambda: not server.calls.sessions)
        assert begun == ["leave"]

    async def test_reverse_order(self, serve: Serve) -> None:
        """At the end calls are cancelled first, then topics exited, then state handlers."""
        world = World()
        server = await world.serve(serve)
        peer = await world.engage(server)
        await peer.__aexit__(None, None, None)
        await until(lambda: world.quiet)
        assert world.ended[-2:] == ["topic", "state"]

    async def test_from_inside(self, serve: Serve) -> None:
        """A call can close its own connection without a deadlock, and its clean-up runs."""
        routes, done = rpc.Routes(), []

        @routes.route()
        async def out(session: rpc.Session) -> None:
            try:
                await session.connection.close(4401, "out")
            finally:
                done.append(True)

        server = await serve(routes)
        async with server.wamp() as peer:
            assert await peer.call("out") == [6, {"message": "out"}, "wamp.close.killed"]
            assert await peer.closed() == 4401
        await until(lambda: done)

    async def test_call_that_closes_its_session(self, serve: Serve) -> None:
        """A call that closes its session is cancelled when the client has answered GOODBYE."""
        routes, ended = rpc.Routes(), asyncio.Event()

        @routes.route()
        async def leave(session: rpc.Session) -> None:
            await session.close()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        server = await serve(routes)
        async with server.wamp() as peer:
            assert (await peer.call("leave"))[0] == 6
            await peer.say([6, {}, "wamp.close.goodbye_and_out"])
            await ended.wait()
            assert await peer.closed() == 1000

    async def test_handler_that_goes_on(self, serve: Serve, complaints: Complaints) -> None:
        """A call that ignores its cancellation is logged, and state handlers still exit."""
        world = World()
        server = await world.serve(serve)
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "ignore"])
            await until(lambda: world.running.get("ignore"))
        await until(lambda: world.running["state"] == 0)
        late = "a call didn't stop within the grace period after its session ended: ignore"
        assert complaints()[0] == late
        world.stubborn.set()
        await until(lambda: world.quiet)

    @pytest.mark.parametrize("how", ["log-out", "goodbye", "close"])
    async def test_end_of_a_call_is_not_cut_short(self, serve: Serve, how: str) -> None:
        """A session's end doesn't cancel a call's clean-up again, nor its signal receivers."""
        routes, seen = rpc.Routes(), list[str]()

        @routes.route()
        async def order() -> None:
            try:
                seen.append("begin")
                await asyncio.Event().wait()
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)
                seen.append("rolled back")

        @routes.route()
        async def quit(session: rpc.Session) -> None:
            await session.close()

        server = await serve(routes)

        @server.calls.on_call_fail
        async def slow(details: rpc.CallDetails) -> None:
            seen.append("told")
            for _ in range(10):
                await asyncio.sleep(0)
            seen.append("one")

        @server.calls.on_call_fail
        async def quick(details: rpc.CallDetails) -> None:
            seen.append("two")

        await server.client.get("/login")
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "order"])
            await until(lambda: seen == ["begin"])
            if how == "log-out":
                await server.client.get("/logout")
            elif how == "goodbye":
                await peer.ask([6, {}, "wamp.close.normal"])
            else:
                await peer.call("quit", number=2)
                await peer.say([6, {}, "wamp.close.goodbye_and_out"])
            await until(lambda: "two" in seen)
        assert seen == ["begin", "rolled back", "told", "one", "two"]

    async def test_success_is_told_to_all(self, serve: Serve) -> None:
        """All success receivers of a call run, even if the session ends in between."""
        routes, told, entered = rpc.Routes(), list[str](), asyncio.Event()

        @routes.route()
        async def order() -> None: ...

        server = await serve(routes)

        @server.calls.on_call_success
        async def slow(details: rpc.CallDetails) -> None:
            entered.set()
            while server.calls.sessions:
                await asyncio.sleep(0)
            told.append("one")

        @server.calls.on_call_success
        async def quick(details: rpc.CallDetails) -> None:
            told.append("two")

        await server.client.get("/login")
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "order"])
            await entered.wait()
            await server.client.get("/logout")
            await until(lambda: "two" in told)
        assert told == ["one", "two"]

    async def test_call_that_has_swallowed_a_cancellation(
        self, serve: Serve, complaints: Complaints
    ) -> None:
        """A call that ignored its client's CANCEL is cancelled again when its session ends."""
        routes, seen = rpc.Routes(), list[str]()

        @routes.route()
        async def order() -> None:
            for what in ("begin", "again"):
                seen.append(what)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    seen.append("cancelled")

        server = await serve(routes)
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "order"])
            await until(lambda: seen)
            await peer.say([49, 1, {}])
            await until(lambda: "again" in seen)
        await until(lambda: seen == ["begin", "cancelled", "again", "cancelled"])
        assert ["after its session ended" in one for one in complaints()] == [True]

    async def test_second_half_that_hangs(self, serve: Serve, complaints: Complaints) -> None:
        """The second half of a state handler runs even if another one's hangs."""
        calls, left = rpc.Application(), []

        @calls.add_session_state_handler
        async def outer() -> AsyncIterator[None]:
            yield
            left.append("outer")

        @calls.add_session_state_handler
        async def inner() -> AsyncIterator[None]:
            yield
            await asyncio.Event().wait()

        server = await serve(calls)
        async with server.wamp():
            pass
        await until(lambda: left)
        assert "timed out" in complaints()[0]

    async def test_second_half_while_cancelled(self, serve: Serve, complaints: Complaints) -> None:
        """The second halves run even if the registry cancels the websocket handler meanwhile."""
        calls, left = rpc.Application(), []
        timeouts = Timeouts(close=0.1, handler_grace=0.0)

        for name in ("outer", "inner"):

            async def handler(name: str = name) -> AsyncIterator[None]:
                yield
                for _ in range(3):
                    await asyncio.sleep(0)
                left.append(name)

            handler.__signature__ = __import__("inspect").Signature()  # type: ignore[attr-defined]
            calls.add_session_state_handler(handler)

        server = await serve(calls, SessionWSRegistry(identify=who, timeouts=timeouts))
        async with server.wamp() as peer:
            await server.registry.close_all(close=4000)
            await peer.hear()
            await until(lambda: len(left) == 2)
        assert left == ["inner", "outer"]
        assert all("is still running" in one for one in complaints())


class TestGoodbye:
    async def test_by_the_client(self, serve: Serve) -> None:
        """A client's GOODBYE ends what is running, and is answered after that."""
        world = World()
        server = await world.serve(serve)
        peer = await world.engage(server)
        await peer.say([6, {}, "wamp.close.normal"])
        while (heard := await peer.hear())[0] != 6:
            assert heard[0] == 69  # INTERRUPT for the pending call to the client
        assert heard == [6, {}, "wamp.close.goodbye_and_out"]
        assert world.quiet
        await peer.__aexit__(None, None, None)

    async def test_by_the_server(self, serve: Serve) -> None:
        """After the server's GOODBYE all messages but the client's GOODBYE are ignored."""
        world = World()
        server = await world.serve(serve)
        async with server.wamp() as peer:
            answer = await peer.call("quit")
            assert answer == [6, {"message": "bye"}, "shop.close.enough"]
            await peer.say([48, 2, {}, "call"], [99], [6, {}, "wamp.close.goodbye_and_out"])
            assert await peer.closed() == 1000
        await until(lambda: world.quiet)

    async def test_before_welcome(self, serve: Serve) -> None:
        """A session that a state handler closes before WELCOME is refused with ABORT."""
        calls, left = rpc.Application(), asyncio.Event()

        @calls.default.add_session_state_handler
        async def full(session: rpc.Session) -> AsyncIterator[None]:
            await session.close("shop.full", "no room")
            yield
            left.set()

        server = await serve(calls)
        async with server.wamp().stranger() as peer:
            assert await peer.ask([1, "realm", {}]) == [3, {"message": "no room"}, "shop.full"]
            assert await peer.closed() == 1000
        await left.wait()

    async def test_that_isnt_answered(self, serve: Serve) -> None:
        """The socket of a client that doesn't answer GOODBYE is closed."""
        server = await World().serve(serve)
        async with server.wamp() as peer:
            assert (await peer.call("quit"))[0] == 6
            assert await peer.closed() == 1000

    async def test_wsrpc(self, serve: Serve) -> None:
        """A session closed in wsrpc, which has no GOODBYE, closes the socket with 1000."""
        server = await World().serve(serve)
        async with server.wsrpc() as peer:
            await peer.say({"id": 3, "method": "quit"})
            assert await peer.closed() == 1000


class TestLastWords:
    @pytest.mark.parametrize(
        ("code", "uri"),
        [
            (1001, "wamp.close.system_shutdown"), (4401, "wamp.close.killed"),
            (4403, "wamp.close.killed"), (1013, "wamp.close.killed"), (1000, None), (1002, None),
        ],
    )  # fmt: skip
    async def test_by_code(self, serve: Serve, code: int, uri: str | None) -> None:
        """GOODBYE is sent before an order's close frame, except for the codes 1000 and 1002."""
        server = await serve()
        async with server.wamp() as peer, server.wsrpc() as other:
            closing = asyncio.create_task(server.registry.close_all(close=code))
            if uri is not None:
                assert (await peer.hear())[::2] == [6, uri]
            assert await peer.closed() == code
            assert await other.closed() == code
            await closing

    @pytest.mark.parametrize("where", ["inside", "outside"])
    async def test_by_the_application(self, serve: Serve, where: str) -> None:
        """GOODBYE is sent before a close by the application, inside or outside of a call."""
        routes = rpc.Routes()

        @routes.route()
        async def close(session: rpc.Session) -> None:
            await session.connection.close(4000, "enough")

        server = await serve(routes)
        async with server.wamp() as peer:
            if where == "inside":
                heard = await peer.call("close")
            else:
                (session,) = server.calls.sessions
                closing = asyncio.create_task(session.connection.close(4000, "enough"))
                heard = await peer.hear()
                await closing
            assert heard == [6, {"message": "enough"}, "wamp.close.killed"]
            assert await peer.closed() == 4000

    async def test_shutdown(self, serve: Serve) -> None:
        """At shutdown the client gets GOODBYE with ``system_shutdown``, then close 1001."""
        server = await serve()
        async with server.wamp("wamp.2.msgpack") as peer:
            closing = asyncio.create_task(server.client.server.close())
            assert (await peer.hear())[::2] == [6, "wamp.close.system_shutdown"]
            assert await peer.closed() == 1001
            await closing

    async def test_none_before_welcome(self, serve: Serve) -> None:
        """A client that has sent HELLO, but got no WELCOME, is closed without GOODBYE."""
        calls, entered = rpc.Application(), asyncio.Event()

        @calls.add_session_state_handler
        async def slow() -> AsyncIterator[None]:
            entered.set()
            await asyncio.Event().wait()
            yield

        server = await serve(calls)
        async with server.wamp().stranger() as peer:
            await peer.say([1, "realm", {}])
            await entered.wait()
            closing = asyncio.create_task(server.registry.close_all(close=4401))
            assert await peer.closed() == 4401
            await closing

    async def test_none_before_hello(self, serve: Serve) -> None:
        """A client that has not sent HELLO is closed without GOODBYE."""
        server = await serve()
        async with server.wamp().stranger() as peer:
            closing = asyncio.create_task(server.registry.close_all(close=4401))
            assert await peer.closed() == 4401
            await closing


class TestPushes:
    async def test_kept_out(self, serve: Serve) -> None:
        """Raw pushes of the registry aren't sent to RPC sockets."""
        server = await serve()
        await server.client.get("/login")
        async with server.wamp() as peer, server.wsrpc() as other:
            assert (await server.registry.broadcast("raw")).sockets == 0
            assert (await server.registry.send_identity("ann", "raw")).sockets == 0
            assert (await peer.call("x"))[0] == 8
            assert (await other.ask("x"))["id"] == 3

    async def test_kept_out_from_the_start(self, serve: Serve) -> None:
        """Raw pushes aren't sent to an RPC socket while its connection contexts are entered."""
        opened, go_on = asyncio.Event(), asyncio.Event()
        registry = SessionWSRegistry()

        @registry.connection_ctx
        async def slow(connection: Any) -> AsyncIterator[None]:
            opened.set()
            await go_on.wait()
            yield

        server = await serve(None, registry)
        async with server.wamp().stranger() as peer:
            await opened.wait()
            assert (await registry.broadcast("raw")).sockets == 0
            go_on.set()
            assert (await peer.ask([1, "realm", {"roles": {"caller": {}}}]))[0] == 2

    async def test_hooks_dont_run(self, serve: Serve) -> None:
        """``on_request`` and ``on_response`` don't run for RPC sockets; connection contexts do."""
        seen: list[str] = []
        registry = SessionWSRegistry()

        async def hook(ws: Any) -> None:
            seen.append("hook")

        async def context(connection: Any) -> AsyncIterator[None]:
            seen.append("in")
            yield
            seen.append("out")

        registry.on_request.append(hook)
        registry.on_response.append(hook)
        registry.connection_ctx.append(context)
        server = await serve(None, registry)
        async with server.wamp():
            pass
        await until(lambda: seen == ["in", "out"])


async def test_text_socket_beside_it(
    aiohttp_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """RPC sockets and a text socket share one registry, and one log-out closes all of them."""
    calls = rpc.Application()
    server = Server(calls)

    @websocket_handler
    async def echo(ws: Any) -> None:
        await ws.connect()
        async for message in ws:
            await ws.send(message)

    server.app.router.add_get("/echo", echo)
    server.app.router.add_route("*", "/again", calls.handler)
    server.client = await aiohttp_client(server.app)
    await server.client.get("/login")
    again = server.client.ws_connect("/again", protocols=["wamp.2.json"])
    async with server.wamp() as peer, server.client.ws_connect("/echo") as ws, again as third:
        await server.client.get("/logout")
        assert (await peer.hear())[0] == 6
        assert await peer.closed() == 4401
        assert (await ws.receive()).data == 4401
        assert (await third.receive()).data == 4401
    await until(lambda: not calls.sessions)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
