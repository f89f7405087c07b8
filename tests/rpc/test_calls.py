"""Calls: results, errors, streams, cancellation, deadlines, limits, signals."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import WSMsgType

from aiohttp_session_ws import rpc
from tests.support import until

from .conftest import Serve

Complaints = Callable[[], list[str]]

CANCELED = "wamp.error.canceled"


class Gate:
    """A gate that handlers wait at until the test opens it, with counters."""

    def __init__(self) -> None:
        self.arrived = 0
        self.cancelled = 0
        self.left = 0
        self.opened = asyncio.Event()

    async def __call__(self) -> None:
        """Wait until the gate is opened."""
        self.arrived += 1
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.left += 1


class Order(msgspec.Struct):
    id: int


def gated(gate: Gate, **options: Any) -> rpc.Routes:
    """Return routes with one procedure that waits at the gate, and one that doesn't."""
    routes = rpc.Routes()

    @routes.route(**options)
    async def wait(number: int = 0) -> int:
        await gate()
        return number

    @routes.route()
    async def add(a: int, b: int) -> int:
        return a + b

    return routes


class TestResults:
    @pytest.mark.parametrize(
        ("value", "wamp", "wsrpc"),
        [
            (None, [], None),
            (5, [[5]], 5),
            ("x", [["x"]], "x"),
            ([5], [[5]], [5]),
            ((1, 2), [[1, 2]], [1, 2]),
            ([], [], []),
            ({"a": 1}, [[], {"a": 1}], {"a": 1}),
            ({}, [], {}),
            ({1: 2}, [[{"1": 2}]], {"1": 2}),
            (Order(7), [[{"id": 7}]], {"id": 7}),
            (
                rpc.RPCResult((1, 2), {"a": 3}),
                [[1, 2], {"a": 3}],
                {"args": [1, 2], "kwargs": {"a": 3}},
            ),
            (rpc.RPCResult("text"), [["text"]], "text"),
            (rpc.RPCResult(), [], None),
            (rpc.RPCResult((), {"a": 3}), [[], {"a": 3}], {"a": 3}),
            (b"\0\1", [["\0AAE="]], "AAE="),
        ],
    )  # fmt: skip
    async def test_dialects(self, serve: Serve, value: Any, wamp: Any, wsrpc: Any) -> None:
        """A result is encoded according to the dialect of its connection."""
        routes = rpc.Routes()

        @routes.route()
        async def get() -> Any:
            return value

        server = await serve(routes)
        async with server.wamp() as peer, server.wsrpc() as other:
            assert await peer.call("get") == [50, 1, {}, *wamp]
            assert await other.ask("get") == {"id": 3, "result": wsrpc}

    async def test_msgpack_bytes(self, serve: Serve) -> None:
        """Bytes are encoded as binary data in MessagePack."""
        routes = rpc.Routes()

        @routes.route()
        async def get() -> bytes:
            return b"\0\1"

        server = await serve(routes)
        async with server.wamp("wamp.2.msgpack") as peer:
            assert await peer.call("get") == [50, 1, {}, [b"\0\1"]]

    async def test_that_cant_be_encoded(self, serve: Serve, complaints: Complaints) -> None:
        """A result that can't be encoded is answered with a runtime error, and logged."""
        routes = rpc.Routes()

        @routes.route()
        async def get() -> Any:
            return object()

        server = await serve(routes)
        async with server.wamp() as peer, server.wsrpc() as other:
            assert await peer.call("get") == [8, 48, 1, {}, "wamp.error.runtime_error"]
            answer = await other.ask("get")

        assert answer["error"] == {"type": "InternalError", "message": "internal error"}
        assert complaints() == ["a call failed: get"] * 2

    async def test_plain_and_threaded(self, serve: Serve) -> None:
        """A plain function runs in the loop, or in a thread with the call's context variables."""
        routes, threads = rpc.Routes(), []

        @routes.route()
        def plain(a: int) -> int:
            threads.append(threading.current_thread())
            return a

        @routes.route(threaded=True)
        def threaded(a: int) -> tuple[int, int]:
            threads.append(threading.current_thread())
            return a, rpc.current_session().id

        server = await serve(routes)
        async with server.wamp() as peer:
            assert await peer.call("plain", 1) == [50, 1, {}, [1]]
            assert await peer.call("threaded", 1) == [50, 1, {}, [1, peer.welcome[1]]]
        assert threads[0] is threading.main_thread()
        assert threads[1] is not threads[0]

    async def test_pattern(self, serve: Serve) -> None:
        """The parts of a name that matches a pattern are passed as arguments, converted."""
        routes = rpc.Routes("shop.")

        @routes.route("order.{id}.add")
        async def add(id: int, item: str, *, session: rpc.Session) -> list[Any]:
            return [id, item, session.realm]

        server = await serve(routes)
        async with server.wamp() as peer:
            assert await peer.call("shop.order.7.add", "tea") == [50, 1, {}, [7, "tea", "realm"]]
            answer = await peer.call("shop.order.x.add", "tea")

        assert answer[4] == "wamp.error.invalid_argument"
        assert answer[5][0].startswith("id: ")


class TestErrors:
    async def test_told(self, serve: Serve) -> None:
        """An RPC error that a handler raises or returns is sent to the peer unchanged."""
        routes = rpc.Routes()

        @routes.route()
        async def raises() -> None:
            raise rpc.RPCError("shop.sold_out", "tea", left=0)

        @routes.route()
        async def returns() -> Any:
            return rpc.RPCErrorResult("shop.sold_out", ("tea",), {"left": 0})

        server = await serve(routes)
        async with server.wamp() as peer, server.wsrpc() as other:
            for name in ("raises", "returns"):
                assert await peer.call(name) == [
                    8, 48, 1, {}, "shop.sold_out", ["tea"], {"left": 0},
                ]  # fmt: skip
                answer = await other.ask(name)
                assert answer["error"] == {"type": "shop.sold_out", "message": "tea"}

    async def test_mapped(self, serve: Serve) -> None:
        """A realm maps exceptions and subclasses to URIs; their text isn't sent to the peer."""
        routes = rpc.Routes()

        @routes.route()
        async def find() -> None:
            raise KeyError("secret")

        server = await serve(routes)
        server.calls.default.errors[LookupError] = "shop.error.not_found"
        async with server.wamp() as peer:
            assert await peer.call("find") == [8, 48, 1, {}, "shop.error.not_found"]

    async def test_unexpected(
        self, serve: Serve, caplog: pytest.LogCaptureFixture, complaints: Complaints
    ) -> None:
        """An unmapped exception is a runtime error, logged once with its traceback."""
        routes = rpc.Routes()

        @routes.route()
        async def fail() -> None:
            raise ValueError("secret")

        server = await serve(routes)
        async with server.wamp() as peer:
            assert await peer.call("fail") == [8, 48, 1, {}, "wamp.error.runtime_error"]

        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert record.exc_info is not None
        assert "ValueError: secret" in caplog.text

    async def test_own_timeout(self, serve: Serve, complaints: Complaints) -> None:
        """A ``TimeoutError`` raised in a handler is a runtime error, not the call's deadline."""
        routes = rpc.Routes()

        @routes.route(timeout=10)
        async def slow() -> None:
            async with asyncio.timeout(0):
                await asyncio.sleep(1)

        server = await serve(routes)
        async with server.wamp() as peer:
            assert (await peer.call("slow"))[4] == "wamp.error.runtime_error"
        assert complaints() == ["a call failed: slow"]

    async def test_own_cancellation(self, serve: Serve, complaints: Complaints) -> None:
        """A ``CancelledError`` raised by a handler is a runtime error, not a cancelled call."""
        routes = rpc.Routes()

        @routes.route()
        async def odd() -> None:
            raise asyncio.CancelledError

        server = await serve(routes)
        async with server.wamp() as peer:
            assert (await peer.call("odd"))[4] == "wamp.error.runtime_error"
        assert complaints() == ["a call failed: odd"]

    async def test_name_in_the_log(self, serve: Serve, complaints: Complaints) -> None:
        """A name chosen by a peer is logged escaped and truncated, on one line."""
        routes = rpc.Routes()

        @routes.route("order.{id}")
        async def order(id: str) -> None:
            raise ValueError

        server = await serve(routes)
        async with server.wamp() as peer:
            await peer.call("order.x\nERROR all is lost")
            await peer.call("order." + "x" * 900_000, number=2)
        one, two = complaints()
        assert one == r"a call failed: 'order.x\nERROR all is lost'"
        assert len(two) < 300

    async def test_stop_iteration(self, serve: Serve, complaints: Complaints) -> None:
        """``StopIteration`` from a handler is a runtime error, in a thread too."""
        routes = rpc.Routes()

        @routes.route()
        async def here() -> Any:
            return next(iter(()))

        @routes.route(threaded=True)
        def there() -> Any:
            return next(iter(()))

        server = await serve(routes)
        async with server.wamp() as peer:
            assert (await peer.call("here"))[4] == "wamp.error.runtime_error"
            assert (await peer.call("there", number=2))[4] == "wamp.error.runtime_error"
        assert complaints() == ["a call failed: here", "a call failed: there"]

    async def test_unknown(self, serve: Serve) -> None:
        """An unknown procedure is refused, and so is a method that isn't exposed."""
        routes = rpc.Routes()

        @routes.route_class("cart")
        class Cart:
            @rpc.expose
            async def put(self) -> None: ...

            async def hidden(self) -> None: ...

        server = await serve(routes)
        async with server.wamp() as peer, server.wsrpc() as other:
            assert (await peer.call("nothing"))[4] == "wamp.error.no_such_procedure"
            assert (await other.ask("nothing"))["error"]["type"] == "NotImplementedError"
            assert (await other.ask("cart.hidden"))["error"] == {
                "type": "NotImplementedError", "message": "Method masked",
            }  # fmt: skip

    async def test_own_disconnect(self, serve: Serve) -> None:
        """A call whose own socket is closed gets ``SessionGone``, which isn't logged."""
        routes, seen = rpc.Routes(), []

        @routes.route()
        async def talk(session: rpc.Session) -> None:
            try:
                while True:
                    await session.emit({"x": 1})
                    await asyncio.sleep(0)
            except Exception as exc:
                seen.append(exc)
                raise

        server = await serve(routes)
        async with server.wsrpc() as peer:
            await peer.say({"id": 3, "method": "talk"})
            await peer.hear()
            await server.registry.close_all(close=4000)
        await until(lambda: not server.calls.sessions)

        assert [type(exc) for exc in seen] == [rpc.SessionGone]

    async def test_own_disconnect_unseen(self, serve: Serve, complaints: Complaints) -> None:
        """A send on a lost connection isn't logged, even before the reader detects the loss."""
        routes, left = rpc.Routes(), asyncio.Event()

        @routes.route()
        async def talk(session: rpc.Session) -> None:
            assert session.request.transport is not None
            session.request.transport.abort()
            try:
                await session.emit({"x": 1})
            finally:
                left.set()

        server = await serve(routes)
        async with server.wsrpc() as peer:
            await peer.say({"id": 3, "method": "talk"})
            await left.wait()
        await until(lambda: not server.calls.sessions)

        assert complaints() == []


class TestStreams:
    @staticmethod
    def streaming(seen: list[str]) -> rpc.Routes:
        """Return routes with streaming procedures that append to *seen*."""
        routes = rpc.Routes()

        @routes.route()
        async def count(to: int) -> AsyncIterator[int]:
            try:
                for i in range(to):
                    yield i
            finally:
                seen.append("closed")

        @routes.route()
        async def sums(*numbers: int) -> AsyncIterator[Any]:
            for number in numbers:
                yield rpc.RPCProgressReport(f"added {number}")  # a plain string is one argument
            yield rpc.RPCResult((sum(numbers),))
            seen.append("never")

        @routes.route()
        async def breaks() -> AsyncIterator[Any]:
            yield rpc.RPCErrorResult("shop.broken")
            seen.append("never")

        @routes.route()
        async def forever() -> AsyncIterator[str]:
            try:
                while True:
                    yield "x" * 1000
            finally:
                seen.append("closed")

        return routes

    async def test_progress(self, serve: Serve) -> None:
        """Each yield is progress for a caller that asked for it; the end is an empty result."""
        server = await serve(self.streaming([]))
        async with server.wamp() as peer:
            await peer.say([48, 1, {"receive_progress": True}, "count", [2]])
            assert [await peer.hear() for _ in range(3)] == [
                [50, 1, {"progress": True}, [0]],
                [50, 1, {"progress": True}, [1]],
                [50, 1, {}],
            ]

    async def test_unasked(self, serve: Serve) -> None:
        """A caller that didn't ask for progress gets the final result only."""
        server = await serve(self.streaming([]))
        async with server.wamp() as peer, server.wsrpc() as other:
            assert await peer.call("count", 5) == [50, 1, {}]
            assert await peer.call("sums", 1, 2) == [50, 1, {}, [3]]
            assert await other.ask("sums", [1, 2]) == {"id": 3, "result": 3}

    async def test_result_ends_it(self, serve: Serve) -> None:
        """A yielded result or error ends a stream: the code after that ``yield`` isn't run."""
        seen: list[str] = []
        server = await serve(self.streaming(seen))
        async with server.wamp() as peer:
            await peer.say([48, 1, {"receive_progress": True}, "sums", [4]])
            assert await peer.hear() == [50, 1, {"progress": True}, ["added 4"]]
            assert await peer.hear() == [50, 1, {}, [4]]
            assert await peer.call("breaks") == [8, 48, 1, {}, "shop.broken"]
        assert seen == []

    async def test_cancelled(self, serve: Serve) -> None:
        """A cancelled stream is closed, even if it never awaits anything."""
        seen: list[str] = []
        server = await serve(self.streaming(seen))
        async with server.wamp() as peer:
            await peer.say([48, 1, {"receive_progress": True}, "forever"])
            await peer.hear()
            await peer.say([49, 1, {"mode": "kill"}])
            while (heard := await peer.hear())[0] == 50:
                pass
            assert heard[:5] == [8, 48, 1, {}, CANCELED]
        assert seen == ["closed"]

    async def test_unasked_and_endless(self, serve: Serve) -> None:
        """An endless stream whose progress isn't wanted doesn't starve other calls."""
        server = await serve(self.streaming([]))
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "forever"])
            assert await peer.call("count", 1, number=2) == [50, 2, {}]


class TestCancelling:
    async def test_killnowait(self, serve: Serve) -> None:
        """By default and in unknown modes, CANCEL is answered at once and stops the handler."""
        gate = Gate()
        server = await serve(gated(gate))
        for options in ({}, {"mode": "killnowait"}, {"mode": "nonsense"}, {"mode": 5}):
            async with server.wamp() as peer:
                await peer.say([48, 1, {}, "wait"])
                assert await peer.ask([49, 1, options]) == [8, 48, 1, {}, CANCELED]
        await until(lambda: gate.cancelled == gate.arrived)

    async def test_kill(self, serve: Serve) -> None:
        """With ``kill`` a call is answered when its handler has finished."""
        routes, done = rpc.Routes(), asyncio.Event()
        held = asyncio.Event()

        @routes.route()
        async def wait() -> str:
            try:
                held.set()
                await done.wait()
            except asyncio.CancelledError:
                await done.wait()
                return "all the same"
            return "never"

        server = await serve(routes)
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "wait"])
            await held.wait()
            await peer.say([49, 1, {"mode": "kill"}])
            assert await peer.call("wait.not", number=2) == [
                8, 48, 2, {}, "wamp.error.no_such_procedure", ["no such procedure"],
            ]  # fmt: skip
            done.set()
            assert await peer.hear() == [50, 1, {}, ["all the same"]]

    async def test_kill_twice(self, serve: Serve) -> None:
        """A second CANCEL doesn't interrupt the clean-up of a handler that is being cancelled."""
        routes, seen, may_end = rpc.Routes(), list[str](), asyncio.Event()

        @routes.route()
        async def order() -> None:
            try:
                seen.append("begin")
                await asyncio.Event().wait()
            finally:
                seen.append("rolling back")
                await may_end.wait()
                seen.append("rolled back")

        server = await serve(routes)
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "order"])
            await until(lambda: seen)
            await peer.say([49, 1, {"mode": "kill"}])
            await until(lambda: "rolling back" in seen)
            await peer.say([49, 1, {"mode": "kill"}])
            assert (await peer.call("nothing", number=2))[2] == 2
            may_end.set()
            assert await peer.hear() == [8, 48, 1, {}, CANCELED]
        assert seen[-1] == "rolled back"

    async def test_skip(self, serve: Serve) -> None:
        """With ``skip`` a call is answered at once, and its handler continues."""
        gate = Gate()
        server = await serve(gated(gate))
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "wait"])
            assert await peer.ask([49, 1, {"mode": "skip"}]) == [8, 48, 1, {}, CANCELED]
            gate.opened.set()
            await until(lambda: gate.left)
            assert await peer.call("add", 1, 2, number=2) == [50, 2, {}, [3]]
        assert gate.cancelled == 0

    async def test_skip_has_a_deadline(self, serve: Serve) -> None:
        """A handler that continues after ``skip`` is still cancelled at the route's deadline."""
        gate = Gate()
        server = await serve(gated(gate, timeout=0.05))
        async with server.wamp("wamp.2.json.batched") as peer:
            await peer.say([48, 1, {}, "wait"], [49, 1, {"mode": "skip"}])
            assert await peer.hear() == [8, 48, 1, {}, CANCELED]
            await until(lambda: gate.cancelled)
            assert await peer.call("add", 1, 2, number=2) == [50, 2, {}, [3]]

    async def test_unknown_and_finished(self, serve: Serve) -> None:
        """A CANCEL for an unknown or an answered call is ignored."""
        server = await serve(gated(Gate()))
        async with server.wamp() as peer:
            assert await peer.call("add", 1, 2) == [50, 1, {}, [3]]
            await peer.say([49, 1, {}])
            await peer.say([49, 7, {}])
            assert await peer.call("add", 1, 2, number=2) == [50, 2, {}, [3]]

    async def test_in_flight_twice(self, serve: Serve) -> None:
        """A second call with the number of one in flight is a protocol violation in WAMP."""
        server = await serve(gated(Gate()))
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "wait"])
            answer = await peer.ask([48, 1, {}, "wait"])
            assert answer[0] == 3
            assert answer[2] == "wamp.error.protocol_violation"
            assert await peer.closed() == 1002

    async def test_in_flight_twice_wsrpc(self, serve: Serve) -> None:
        """A second call with the number of one in flight is ignored in wsrpc."""
        gate = Gate()
        server = await serve(gated(gate))
        async with server.wsrpc() as peer:
            await peer.say({"id": 3, "method": "wait", "params": [1]})
            await peer.say({"id": 3, "method": "wait", "params": [2]})
            assert await peer.ask("add", [1, 2], number=5) == {"id": 5, "result": 3}
            gate.opened.set()
            assert await peer.hear() == {"id": 3, "result": 1}
            assert await peer.ask("add", [1, 2]) == {"id": 3, "result": 3}

    async def test_threads_hold_their_place(self, serve: Serve) -> None:
        """A cancelled call in a thread counts against the limit until the thread is done."""
        routes, go, entered = rpc.Routes(), threading.Event(), []

        @routes.route(threaded=True)
        def block() -> None:
            entered.append(1)
            go.wait()

        server = await serve(routes, limits=rpc.CallLimits(calls=1, waiting=0))
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "block"])
            await until(lambda: entered)
            assert (await peer.ask([49, 1, {}]))[4] == CANCELED
            assert (await peer.call("block", number=2))[4] == "wamp.error.unavailable"
            go.set()


class TestDeadlines:
    @pytest.mark.parametrize(("route", "call"), [(None, 20), (0.02, None), (10, 20), (0.02, 9999)])
    async def test_shorter_one(self, serve: Serve, route: float | None, call: int | None) -> None:
        """A call ends at the shorter one of its own deadline and the route's."""
        gate = Gate()
        server = await serve(gated(gate, timeout=route))
        async with server.wamp() as peer:
            options = {} if call is None else {"timeout": call}
            answer = await peer.ask([48, 1, options, "wait"])
        assert answer == [8, 48, 1, {}, "wamp.error.timeout"]
        assert gate.cancelled == 1

    async def test_none(self, serve: Serve) -> None:
        """A ``timeout`` of 0 or null means no deadline."""
        server = await serve(gated(Gate()))
        async with server.wamp() as peer:
            assert (await peer.ask([48, 1, {"timeout": 0}, "add", [1, 2]]))[3] == [3]
            assert (await peer.ask([48, 2, {"timeout": None}, "add", [1, 2]]))[3] == [3]

    async def test_while_waiting(self, serve: Serve) -> None:
        """A call that waits for others to finish ends at its deadline, without running."""
        gate = Gate()
        server = await serve(gated(gate), limits=rpc.CallLimits(calls=1))
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "wait"])
            answer = await peer.ask([48, 2, {"timeout": 20}, "wait"])
        assert answer == [8, 48, 2, {}, "wamp.error.timeout"]
        assert gate.arrived == 1

    async def test_of_a_session_that_is_over(self, serve: Serve) -> None:
        """The deadline of a queued call is dropped with its session, and answers nothing later."""
        gate = Gate()
        server = await serve(gated(gate), limits=rpc.CallLimits(calls=1))
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "wait"], [48, 2, {"timeout": 20}, "wait"])
            assert (await peer.ask([6, {}, "x"]))[0] == 6
            assert (await peer.ask([1, "realm", {}]))[0] == 2
            assert await peer.ask([48, 3, {"timeout": 60}, "wait"]) == [
                8, 48, 3, {}, "wamp.error.timeout",
            ]  # fmt: skip


class TestLimits:
    async def test_order_and_refusal(self, serve: Serve) -> None:
        """Calls above the limit wait; those above the waiting limit are refused at once."""
        gate = Gate()
        server = await serve(gated(gate), limits=rpc.CallLimits(calls=2, waiting=2))
        async with server.wamp() as peer:
            await peer.say(*([48, n, {}, "wait", [n]] for n in range(1, 6)))
            refused = await peer.hear()
            assert refused[2] == 5
            assert refused[4] == "wamp.error.unavailable"
            assert gate.arrived == 2
            gate.opened.set()
            assert sorted([(await peer.hear())[1] for _ in range(4)]) == [1, 2, 3, 4]

    async def test_bytes_that_wait(self, serve: Serve) -> None:
        """A call that would exceed the byte limit of waiting calls is refused."""
        gate = Gate()
        limits = rpc.CallLimits(calls=1, waiting_bytes=100)
        server = await serve(gated(gate), limits=limits)
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "wait"])
            answer = await peer.call("wait", "x" * 200, number=2)
        assert answer[4] == "wamp.error.unavailable"

    async def test_cancel_what_waits(self, serve: Serve) -> None:
        """A waiting call that is cancelled is answered at once, in each mode, and never runs."""
        gate = Gate()
        server = await serve(gated(gate), limits=rpc.CallLimits(calls=1))
        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "wait"])
            for number, mode in enumerate(("kill", "killnowait", "skip"), 2):
                await peer.say([48, number, {}, "wait"])
                answer = await peer.ask([49, number, {"mode": mode}])
                assert answer == [8, 48, number, {}, CANCELED]
        assert gate.arrived == 1

    async def test_many_quick_ones_at_once(self, serve: Serve) -> None:
        """Quick calls in one batch are all answered, even if there are more than the limits."""
        server = await serve(gated(Gate()), limits=rpc.CallLimits(calls=5, waiting=5))
        async with server.wamp("wamp.2.json.batched") as peer:
            await peer.say(*([48, n, {}, "add", [n, 0]] for n in range(1, 201)))
            answers = [await peer.hear() for _ in range(200)]
        assert sorted(a[1] for a in answers) == list(range(1, 201))
        assert {a[0] for a in answers} == {50}

    async def test_one_call_that_asks_its_client(self, serve: Serve) -> None:
        """A call can call its client and get the answer, even if only one call may run."""
        routes = rpc.Routes()

        @routes.route()
        async def confirm(session: rpc.Session) -> Any:
            return await session.call("allow", "really?")

        server = await serve(routes, limits=rpc.CallLimits(calls=1, waiting=0))
        async with server.wamp() as peer, server.wsrpc() as other:
            assert (await peer.ask([64, 1, {}, "allow"]))[0] == 65
            invocation = await peer.call("confirm", number=2)
            assert invocation[0] == 68
            assert (await peer.call("confirm", number=3))[4] == "wamp.error.unavailable"
            assert await peer.ask([70, invocation[1], {}, ["yes"]]) == [50, 2, {}, ["yes"]]

            asked = await other.ask("confirm")
            assert (asked["method"], asked["params"]) == ("allow", ["really?"])
            await other.say({"id": asked["id"], "result": "no"})
            assert await other.hear() == {"id": 3, "result": "no"}

    async def test_message_too_large(self, serve: Serve) -> None:
        """A message of the maximum size is accepted; a larger one closes the socket with 1009."""
        server = await serve(gated(Gate()), limits=rpc.CallLimits(message=1000))
        async with server.wamp() as peer:
            await peer.ws.send_str('[48,1,{},"add",[1,2]]'.ljust(1000))
            assert await peer.hear() == [50, 1, {}, [3]]
            await peer.ws.send_str('[48,2,{},"add",[1,2]]'.ljust(1001))
            assert await peer.closed() == 1009


class TestSignals:
    async def test_context(self, serve: Serve) -> None:
        """A context variable set at a call's start is visible at its end, and in no other call."""
        gate, mark = Gate(), contextvars.ContextVar[int]("mark")
        server = await serve(gated(gate))
        seen: list[tuple[int, int, str, Any]] = []

        @server.calls.on_call_start.append
        async def start(details: rpc.CallDetails) -> None:
            mark.set(details.serial)

        @server.calls.on_call_success.append
        async def success(details: rpc.CallDetails) -> None:
            assert details.seconds > 0
            seen.append((mark.get(), details.serial, details.method, details.result))

        async with server.wamp() as peer:
            await peer.say(*([48, n, {}, "wait", [n]] for n in (1, 2, 3)))
            await until(lambda: gate.arrived == 3)
            gate.opened.set()
            for _ in range(3):
                await peer.hear()
        assert seen == [(n, n, "wait", n) for n in (1, 2, 3)]

    async def test_exactly_one_end(self, serve: Serve, complaints: Complaints) -> None:
        """Each started call has one success or fail; one that never starts has one fail only."""
        gate, routes = Gate(), rpc.Routes()

        @routes.route()
        async def fail() -> None:
            raise ValueError

        server = await serve(gated(gate), limits=rpc.CallLimits(calls=1, waiting=1))
        server.calls.default.add_rpc_routes(routes)
        told: list[tuple[str, int]] = []
        for name in ("start", "success", "fail"):

            async def receive(details: rpc.CallDetails, name: str = name) -> None:
                told.append((name, details.serial))

            getattr(server.calls, f"on_call_{name}").append(receive)

        async with server.wamp() as peer:
            await peer.call("add", 1, 2, number=1)
            await peer.call("add", "x", 2, number=2)
            await peer.call("nothing", number=3)
            await peer.call("fail", number=4)
            await peer.say([48, 5, {}, "wait"], [48, 6, {}, "wait"], [48, 7, {}, "wait"])
            assert (await peer.hear())[2] == 7
            await peer.ask([49, 6, {}])
            await peer.ask([49, 5, {}])
            await peer.call("add", 1, 2, number=8)
        assert sorted(told) == sorted([
            ("start", 1), ("success", 1), ("fail", 2), ("fail", 3), ("start", 4), ("fail", 4),
            ("start", 5), ("fail", 5), ("fail", 6), ("fail", 7), ("start", 8), ("success", 8),
        ])  # fmt: skip
        assert complaints() == ["a call failed: fail"]

    async def test_context_of_a_refused_call(self, serve: Serve) -> None:
        """A context variable set by a refused call's fail signal isn't visible in later calls."""
        gate, mark = Gate(), contextvars.ContextVar("mark", default=0)
        routes = gated(gate)

        @routes.route()
        async def look() -> int:
            return mark.get()

        server = await serve(routes, limits=rpc.CallLimits(calls=1, waiting=0))

        @server.calls.on_call_fail.append
        async def fail(details: rpc.CallDetails) -> None:
            mark.set(details.serial)

        async with server.wamp() as peer:
            await peer.say([48, 1, {}, "wait"])
            assert (await peer.call("look", number=2))[4] == "wamp.error.unavailable"
            gate.opened.set()
            assert (await peer.hear())[:2] == [50, 1]
            assert await peer.call("look", number=3) == [50, 3, {}, [0]]

    async def test_receiver_that_fails(self, serve: Serve, complaints: Complaints) -> None:
        """A signal receiver that raises is logged, and the call is answered as usual."""
        server = await serve(gated(Gate()))

        @server.calls.on_call_start.append
        async def start(details: rpc.CallDetails) -> None:
            raise ValueError

        async with server.wamp() as peer:
            assert await peer.call("add", 1, 2) == [50, 1, {}, [3]]
        assert len(complaints()) == 1


class TestRouteClasses:
    async def test_one_object_per_session(self, serve: Serve) -> None:
        """Each session has its own object, created at the first call and closed at the end."""
        routes, closed = rpc.Routes("shop."), []

        @routes.route_class("cart")
        class Cart:
            def __init__(self, session: rpc.Session, names: list[str]) -> None:
                self.items: list[str] = []
                names.append("made")

            @rpc.expose
            async def put(self, item: str) -> int:
                self.items.append(item)
                return len(self.items)

            @rpc.expose
            def init(self) -> list[str]:
                return self.items

            async def aclose(self) -> None:
                closed.append(list(self.items))

        calls, made = rpc.Application(), list[str]()
        calls.default.add_rpc_routes(routes)
        calls.set_default_arg("names", made)
        server = await serve(calls)
        async with server.wamp() as peer, server.wsrpc() as other:
            assert made == []
            assert await peer.call("shop.cart.put", "tea") == [50, 1, {}, [1]]
            assert await peer.call("shop.cart.put", "milk") == [50, 1, {}, [2]]
            assert await other.ask("shop.cart.put", {"item": "rum"}) == {"id": 3, "result": 1}
            assert await other.ask("shop.cart") == {"id": 3, "result": ["rum"]}
            assert made == ["made", "made"]
        await until(lambda: len(closed) == 2)
        assert sorted(closed) == [["rum"], ["tea", "milk"]]


async def test_frames_are_text_and_binary(serve: Serve) -> None:
    """JSON is sent in text frames, and MessagePack in binary frames."""
    server = await serve(gated(Gate()))
    for protocol, kind in (("wamp.2.json", WSMsgType.TEXT), ("wamp.2.msgpack", WSMsgType.BINARY)):
        async with server.wamp(protocol) as peer:
            await peer.say([48, 1, {}, "add", [1, 2]])
            assert (await peer.ws.receive()).type is kind
