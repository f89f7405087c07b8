"""Calls from the server to procedures of the client, in both dialects."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from aiohttp_session_ws import rpc
from aiohttp_session_ws.rpc.conversation import PendingRequests
from aiohttp_session_ws.rpc.sequential import SequentialRequests
from tests.support import until

from .conftest import Serve
from .support import Server, WampPeer

Complaints = Callable[[], list[str]]


async def register(peer: WampPeer, name: str = "add", number: int = 1) -> int:
    """Register a procedure of the client; return the number of the registration."""
    answer = await peer.ask([64, number, {}, name])
    assert answer[:2] == [65, number]
    return int(answer[2])


def only(server: Server) -> rpc.Session:
    """Return the only session of the server."""
    (session,) = server.calls.sessions
    return session


def asking(server: Server, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
    """Return a task that calls the client."""
    return asyncio.create_task(only(server).call(*args, **kwargs))


class TestWamp:
    @pytest.mark.parametrize(
        ("answer", "value"),
        [
            ([], None),
            ([[5]], 5),
            ([[1, 2]], [1, 2]),
            ([[], {"a": 1}], {"a": 1}),
            ([[1], {"a": 1}], rpc.RPCResult([1], {"a": 1})),
        ],
    )
    async def test_result(self, serve: Serve, answer: list[Any], value: Any) -> None:
        """``call()`` returns the result that the client sends in YIELD."""
        server = await serve()
        async with server.wamp() as peer:
            number = await register(peer)
            call = asking(server, "add", 1, b=2)
            assert await peer.hear() == [68, 1, number, {}, [1], {"b": 2}]
            await peer.say([70, 1, {}, *answer])
            assert await call == value

    async def test_error(self, serve: Serve) -> None:
        """An ERROR of the client raises a ``RemoteError`` with its URI and arguments."""
        server = await serve()
        async with server.wamp() as peer:
            await register(peer)
            call = asking(server, "add")
            await peer.hear()
            await peer.say([8, 68, 1, {}, "client.error.no", ["why"], {"x": 1}])
            with pytest.raises(rpc.RemoteError) as failed:
                await call
        assert failed.value.uri == "client.error.no"
        assert failed.value.args == ("why",)
        assert failed.value.kwargs == {"x": 1}

    async def test_timeout(self, serve: Serve) -> None:
        """A call that times out sends INTERRUPT to the client, and late answers are dropped."""
        server = await serve()
        async with server.wamp() as peer:
            await register(peer)
            call = asking(server, "add", timeout=0.02)
            await peer.hear()
            assert await peer.hear() == [69, 1, {"mode": "killnowait"}]
            with pytest.raises(TimeoutError):
                await call
            await peer.say([70, 1, {}, ["late"]], [8, 68, 1, {}, "late"])
            call = asking(server, "add")
            assert (await peer.hear())[1] == 2
            await peer.say([70, 2, {}, ["in time"]])
            assert await call == "in time"

    async def test_cancelled(self, serve: Serve) -> None:
        """A cancelled ``call()`` sends INTERRUPT to the client."""
        server = await serve()
        async with server.wamp() as peer:
            await register(peer)
            call = asking(server, "add")
            await peer.hear()
            call.cancel()
            assert await peer.hear() == [69, 1, {"mode": "killnowait"}]
            with pytest.raises(asyncio.CancelledError):
                await call

    async def test_error_for_one_who_is_cancelled(self, serve: Serve) -> None:
        """An ERROR received in the turn of a cancellation is dropped, and isn't logged."""
        server = await serve()
        async with server.wamp() as peer:
            await register(peer)
            pending = PendingRequests(1, 1)

            async def send(number: int) -> None: ...

            call = asyncio.create_task(pending.request(send, lambda number: None, None))
            await asyncio.sleep(0)
            pending.resolve(1, error=rpc.RemoteError("client.error.no"))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            del call
            gc.collect()

    async def test_inside_a_call(self, serve: Serve) -> None:
        """Cancelling a client's call also interrupts the call to the client inside it."""
        routes = rpc.Routes()

        @routes.route()
        async def confirm(session: rpc.Session) -> Any:
            return await session.call("allow")

        server = await serve(routes)
        async with server.wamp() as peer:
            await register(peer, "allow")
            await peer.call("confirm", number=2)
            await peer.say([49, 2, {}])
            heard = [await peer.hear(), await peer.hear()]
            assert sorted(heard) == [
                [8, 48, 2, {}, "wamp.error.canceled"], [69, 1, {"mode": "killnowait"}],
            ]  # fmt: skip

    async def test_gone(self, serve: Serve) -> None:
        """A pending call raises ``SessionGone`` when the socket is lost, as do later uses."""
        server = await serve()
        async with server.wamp() as peer:
            await register(peer)
            session, call = only(server), asking(server, "add", timeout=None)
            await peer.hear()
        with pytest.raises(rpc.SessionGone):
            await call
        assert session.closed
        for again in (session.call("add"), session.send_event("t"), session.emit(1)):
            with pytest.raises((rpc.SessionGone, TypeError)):
                await again
        await session.close()

    async def test_not_registered(self, serve: Serve) -> None:
        """A name that the client hasn't registered, or has unregistered, can't be called."""
        server = await serve()
        async with server.wamp() as peer:
            with pytest.raises(rpc.NotRegistered, match=r"'add'.*REGISTER"):
                await only(server).call("add")
            number = await register(peer)
            assert (await peer.ask([64, 2, {}, "add"]))[4] == "wamp.error.procedure_already_exists"
            assert await peer.ask([66, 3, number]) == [67, 3]
            assert (await peer.ask([66, 4, number]))[4] == "wamp.error.no_such_registration"
            with pytest.raises(rpc.NotRegistered):
                await only(server).call("add")

    async def test_not_registered_inside_a_call(
        self, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """``NotRegistered`` in a call is sent to the caller only: clients could fill the log."""
        routes = rpc.Routes()

        @routes.route()
        async def order(session: rpc.Session) -> None:
            await session.call("allow")

        server = await serve(routes)
        async with server.wamp() as peer:
            why = "the client that is asked has not registered what it is asked"
            missing = "wamp.error.no_such_procedure"
            assert await peer.call("order") == [8, 48, 1, {}, missing, [why]]
            server.calls.default.errors[rpc.NotRegistered] = "shop.error.no_answer"
            assert await peer.call("order", number=2) == [8, 48, 2, {}, "shop.error.no_answer"]
        assert "a call failed" not in caplog.text

    async def test_limit(self, serve: Serve) -> None:
        """A registration above the limit is refused."""
        server = await serve(limits=rpc.CallLimits(registrations=1))
        async with server.wamp() as peer:
            await register(peer)
            assert (await peer.ask([64, 2, {}, "b"]))[4] == "wamp.error.unavailable"

    async def test_long_names(self, serve: Serve) -> None:
        """The registered names together are limited to the size of one message."""
        server = await serve(limits=rpc.CallLimits(message=1000))
        async with server.wamp() as peer:
            first = await register(peer, "a" * 700)
            await register(peer, "b" * 300, 2)
            assert (await peer.ask([64, 3, {}, "c"]))[4] == "wamp.error.unavailable"
            assert await peer.ask([66, 4, first]) == [67, 4]
            await register(peer, "c", 5)

    async def test_names_end_with_the_session(self, serve: Serve) -> None:
        """Registered names are dropped at the session's end, without waiting for the collector."""
        server = await serve()

        def knows(one: object) -> bool:
            try:
                return isinstance(one, SequentialRequests) and one.registration("confirm") > 0
            except rpc.NotRegistered:
                return False

        async with server.wamp() as peer:
            await register(peer, "confirm")
            (work,) = filter(knows, gc.get_objects())
        await until(lambda: not knows(work))

    async def test_emit(self, serve: Serve) -> None:
        """``emit()`` on a WAMP session raises an error that names ``send_event()``."""
        server = await serve()
        async with server.wamp():
            with pytest.raises(TypeError, match="send_event"):
                await only(server).emit({})

    async def test_error_for_nothing(self, serve: Serve) -> None:
        """An ERROR for a request type that the server never sends is a protocol violation."""
        server = await serve()
        async with server.wamp() as peer:
            assert (await peer.ask([8, 48, 1, {}, "x"]))[2] == "wamp.error.protocol_violation"


class TestWsrpc:
    async def test_result(self, serve: Serve) -> None:
        """Arguments are sent by position or by name, but not both."""
        server = await serve()
        async with server.wsrpc() as peer:
            call = asking(server, "add", 1, 2)
            asked = await peer.hear()
            assert asked == {"id": asked["id"], "method": "add", "params": [1, 2]}
            await peer.say({"id": asked["id"], "result": 3})
            assert await call == 3
            call = asking(server, "add", a=1)
            asked = await peer.hear()
            assert asked["params"] == {"a": 1}
            await peer.say({"id": asked["id"], "result": None, "error": "Route not found"})
            with pytest.raises(rpc.RemoteError):
                await call
            with pytest.raises(TypeError, match="not both"):
                await only(server).call("add", 1, a=2)

    @pytest.mark.parametrize(
        ("error", "uri", "args"),
        [
            ({"type": "ValueError", "message": "no"}, "ValueError", ("no",)),
            ("Route not found", "wamp.error.runtime_error", ("Route not found",)),
            ({}, "wamp.error.runtime_error", ()),
        ],
    )
    async def test_error(self, serve: Serve, error: Any, uri: str, args: Any) -> None:
        """An error of any form is a ``RemoteError``."""
        server = await serve()
        async with server.wsrpc() as peer:
            call = asking(server, "add")
            asked = await peer.hear()
            await peer.say({"id": asked["id"], "error": error})
            with pytest.raises(rpc.RemoteError) as failed:
                await call
        assert (failed.value.uri, failed.value.args) == (uri, args)

    async def test_events(self, serve: Serve) -> None:
        """Events are sent both ways; ``send_event()`` raises an error that names ``emit()``."""
        server = await serve()
        heard: list[Any] = []

        @server.calls.on_event.append
        async def hear(details: rpc.EventDetails) -> None:
            heard.append((details.session, details.data))

        async with server.wsrpc() as peer:
            await only(server).emit({"news": 1})
            assert await peer.hear() == {"news": 1}
            await peer.say({"hello": 2})
            await until(lambda: heard)
            assert heard == [(only(server), {"hello": 2})]
            with pytest.raises(TypeError, match="emit"):
                await only(server).send_event("t")

    async def test_garbage(self, serve: Serve) -> None:
        """Malformed messages are ignored, and the connection stays open."""
        server = await serve()
        async with server.wsrpc() as peer:
            for text in ("x", "[]", '{"id": "a", "method": "m"}', '{"id": 99, "result": 1}'):
                await peer.ws.send_str(text)
            await peer.ws.send_bytes(b"{}")
            assert await peer.ask("ping", {"a": 1}) == {"id": 3, "result": {"a": 1}}

    async def test_silent(self, serve: Serve) -> None:
        """A peer that stops answering pings is closed with 1001."""
        server = await serve(limits=rpc.CallLimits(ping=0.01, silence=0.05))
        async with server.wsrpc() as peer:
            pings = 0
            for _ in range(3):
                ping = await peer.hear()
                pings += ping["method"] == "ping"
                await peer.say({"id": ping["id"], "result": None})  # the pong
            assert pings == 3
            assert (await peer.hear())["method"] == "ping"
            assert await peer.closed() == 1001

    async def test_no_ping_before_the_answer(self, serve: Serve) -> None:
        """No ping is sent before the last one is answered, whatever else the peer sends."""
        server = await serve(limits=rpc.CallLimits(ping=0.01, silence=5.0))
        async with server.wsrpc() as peer:
            ping = await peer.hear()
            for _ in range(100):
                await peer.say({"id": 77, "result": None})
            answer = await peer.ask("ping", {"a": 1})
            assert answer == {"id": 3, "result": {"a": 1}}
            await peer.say({"id": ping["id"], "result": None})
            assert (await peer.hear())["method"] == "ping"
