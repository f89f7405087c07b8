"""
The close engine: peers and handlers that end when asked to, and those that don't.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import ssl
import weakref
from typing import Any
from unittest import mock

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from aiohttp_session_ws.close_codes import (
    NORMAL,
    RECONNECT,
    SESSION_ENDED,
    SLOW_CONSUMER,
    Close,
)
from aiohttp_session_ws.connections import closing
from aiohttp_session_ws.connections.close_order import Closing, ends_with_close
from aiohttp_session_ws.connections.connection import (
    CLOSED,
    CLOSING,
    TrackedConnection,
)
from aiohttp_session_ws.connections.websocket import ServedWebSocket
from aiohttp_session_ws.options import Timeouts

from .served import (
    NORMAL_CLOSE,
    PATIENT,
    QUICK,
    RawPeer,
    answer,
    close_frame,
    served,
    until,
)

ENDED = close_frame(SESSION_ENDED)


async def sync(*peers: RawPeer) -> list[list[tuple[int, bytes]]]:
    """Answer as all peers at once; return the frames that each has received."""
    return await asyncio.gather(*map(answer, peers))


class TestFrames:
    async def test_are_written_before_anything_is_awaited(self) -> None:
        """The close frames of an order are with the kernel when close_now() returns."""
        async with served() as s:
            peers = [await s.peer(path) for path in ("/echo", "/deaf", "/echo")]
            connections = s.manager.all()
            done = s.manager.close_now(connections, SESSION_ENDED)
            written = [(c.state, c.ws.closed, c.ws.close_code) for c in connections]
            for connection in connections:
                assert connection.transport is not None
                assert not connection.transport.get_write_buffer_size()
            frames = await sync(*peers)
            s.manager.timeouts = QUICK
            s.manager.close_soon(s.manager.all(), NORMAL)

            assert written == [(CLOSING, True, 4401)] * 3
            assert frames == [[ENDED]] * 3
            for connection in connections:  # the deaf handler still runs
                assert connection.task is not None
                connection.task.cancel()
            await done

    async def test_slices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A large order writes one slice of its close frames at once, and the others later."""
        monkeypatch.setattr(closing, "AT_ONCE", 0)
        monkeypatch.setattr(closing, "SLICE", 1)
        async with served() as s:
            peers = [await s.peer() for _ in range(5)]
            connections = s.manager.all()
            done = s.manager.close_now(connections, SESSION_ENDED)
            at_once = sum(c.state is CLOSING for c in connections)
            ordered = [c.close_order for c in connections]
            frames, result = await asyncio.gather(sync(*peers), done)

            assert (at_once, ordered) == (1, [SESSION_ENDED] * 5)
            assert (frames, result) == ([[ENDED]] * 5, (0, 0))

    async def test_orders_share_a_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Orders in one event loop iteration share its limit of frames; the next has its own."""
        monkeypatch.setattr(closing, "AT_ONCE", 3)
        monkeypatch.setattr(closing, "SLICE", 1)
        async with served() as s:
            peers = [await s.peer() for _ in range(8)]
            *connections, last, but_one = s.manager.all()
            done = [
                s.manager.close_now(connections[first : first + 2], SESSION_ENDED)
                for first in (0, 2, 4)
            ]
            states = [connection.state is CLOSING for connection in connections]
            await asyncio.sleep(0)
            done.append(s.manager.close_now([last, but_one], SESSION_ENDED))
            in_the_next_turn = last.state, but_one.state
            frames, *results = await asyncio.gather(sync(*peers), *done)

            assert states == [True, True, True, False, True, False]
            assert in_the_next_turn == (CLOSING, CLOSING)
            assert (frames, results) == ([[ENDED]] * 8, [(0, 0)] * 4)

    async def test_answers_wait_for_the_last_frame(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A transport whose client answers early is closed only after the order's last frame."""
        monkeypatch.setattr(closing, "BATCH", 1)
        monkeypatch.setattr(closing, "AT_ONCE", 0)
        monkeypatch.setattr(closing, "SLICE", 1)
        async with served() as s:
            (first, one), (last, two) = await s.connect(), await s.connect()
            done = s.manager.close_now([one, two], SESSION_ENDED)
            assert isinstance(one.closing, Closing)
            one.closing.data_received(b"\x88\x80\0\0\0\0")
            assert one.transport is not None
            waited = not one.transport.is_closing()
            code, frames, _ = await asyncio.gather(first.closed(), answer(last), done)

            assert waited
            assert (code, frames) == (4401, [ENDED])

    async def test_outside_of_any_task(self) -> None:
        """An order may be given in a callback of the event loop."""
        async with served() as s:
            peers = [await s.peer(path) for path in ("/echo", "/deaf")]
            loop = asyncio.get_running_loop()
            s.manager.timeouts = Timeouts(close=PATIENT.close, handler_grace=0.0)
            loop.call_soon(s.manager.close_soon, s.manager.all(), RECONNECT)
            frames = await sync(*peers)
            await until(lambda: not s.manager.open.size)

            assert frames == [[close_frame(RECONNECT)]] * 2

    async def test_is_the_last_one(self) -> None:
        """The close frame of an order is the last frame: aiohttp adds none of its own."""
        async with served() as s:
            peer, connection = await s.connect()
            frames, _ = await asyncio.gather(
                answer(peer), s.manager.close_now([connection], SESSION_ENDED)
            )

            assert frames == [ENDED]
            assert connection.ws.close_code == 4401

    async def test_empty_order(self) -> None:
        """An order for no connections completes."""
        async with served() as s:
            done = s.manager.close_now([], SESSION_ENDED)

            assert await done == (0, 0)


class TestPeers:
    @pytest.mark.parametrize("path", ["/echo", "/deaf"])
    async def test_polite(self, path: str) -> None:
        """A client that answers the close frame isn't aborted, though its handler doesn't read."""
        timeouts = Timeouts(close=PATIENT.close, handler_grace=0.01)
        async with served(timeouts if path == "/deaf" else PATIENT) as s:
            peer, connection = await s.connect(path)
            _, result = await asyncio.gather(
                answer(peer), s.manager.close_now([connection], SESSION_ENDED)
            )

            assert result == (0, int(path == "/deaf"))
            assert connection.state is CLOSED

    async def test_mute_and_its_handler_was_receiving(self) -> None:
        """A mute client whose handler was receiving is disconnected before the deadline."""
        async with served() as s:
            peer, connection = await s.connect()

            assert await s.manager.close_now([connection], SESSION_ENDED) == (0, 0)
            assert await peer.closed() == 4401

    async def test_mute_and_its_handler_was_not(self) -> None:
        """A mute client whose handler wasn't receiving is aborted at the deadline."""
        async with served(QUICK) as s:
            peer, connection = await s.connect("/deaf")

            assert await s.manager.close_now([connection], SESSION_ENDED) == (1, 1)
            assert await peer.closed() == 4401

    async def test_hangs_up_instead_of_an_answer(self) -> None:
        """A client that disconnects instead of answering isn't aborted."""
        async with served() as s:
            peer, connection = await s.connect()
            done = s.manager.close_now([connection], SESSION_ENDED)
            peer.close()

            assert await done == (0, 0)

    async def test_answers_in_two_pieces(self) -> None:
        """A close frame is recognized if it arrives in two pieces."""
        async with served() as s:
            peer, connection = await s.connect("/deaf")
            done = s.manager.close_now([connection], SESSION_ENDED)
            assert await peer.frame() == ENDED
            await peer.send(b"\x88\x82\0\0")
            await peer.send(b"\0\0\x03\xe8")
            ended = await peer.frame()
            assert connection.task is not None
            connection.task.cancel()

            assert ended is None
            assert (await done)[0] == 0

    async def test_talks_on(self) -> None:
        """A message that arrives after the order doesn't reach the handler."""
        heard: list[Any] = []

        async def listen(connection: TrackedConnection) -> None:
            async for message in connection.ws:
                heard.append(message.data)

        async with served(listen=listen) as s:
            peer, connection = await s.connect("/listen")
            await peer.say(1, b"before")
            await until(lambda: heard)
            done = s.manager.close_now([connection], SESSION_ENDED)
            await peer.say(1, b"after")
            frames, _ = await asyncio.gather(answer(peer), done)

            assert (heard, frames) == (["before"], [ENDED])

    async def test_what_was_queued(self) -> None:
        """A message that arrived before the order, but wasn't read, doesn't reach the handler."""
        go = asyncio.Event()
        heard: list[WSMsgType] = []

        async def late(connection: TrackedConnection) -> None:
            await connection.ws.receive()
            await go.wait()
            heard.append((await connection.ws.receive()).type)

        async with served(late=late) as s:
            peer, connection = await s.connect("/late")
            await peer.say(1, b"one")
            await until(lambda: not connection.ws.receiving)
            await peer.say(1, b"two")
            done = s.manager.close_now([connection], SESSION_ENDED)
            go.set()
            await asyncio.gather(answer(peer), done)

            assert heard == [WSMsgType.CLOSED]

    async def test_stuck(self) -> None:
        """A peer that doesn't read is aborted, and its unsent data is discarded."""
        async with served(QUICK) as s:
            peer, connection = await s.stuck()

            assert (await s.manager.close_now([connection], SESSION_ENDED))[0] == 1
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() == 0
            peer.close()

    async def test_a_full_queue_is_no_reason_to_cut(self) -> None:
        """A client that has sent more than its handler reads isn't aborted if it answers."""
        async with served(Timeouts(close=PATIENT.close, handler_grace=0.01)) as s:
            peer, connection = await s.connect("/deaf")
            transport = connection.transport
            assert transport is not None
            frame = b"\x82\xfe\xff\xff\0\0\0\0" + bytes(65535)
            while transport.is_reading():
                await peer.send(frame)
            done = s.manager.close_now([connection], SESSION_ENDED)
            await answer(peer)

            assert (await done)[0] == 0

    async def test_had_closed_already(self) -> None:
        """A close that the client has begun is completed with the client's code."""
        async with served() as s:
            peer, connection = await s.connect()
            await peer.say(8, NORMAL_CLOSE)
            await until(lambda: connection.ws.closed)
            await s.manager.close_now([connection], SESSION_ENDED)

            assert await peer.closed() == 1000

    async def test_the_handler_is_closing(self) -> None:
        """A close that a handler has begun keeps its code, and the order waits for its answer."""

        async def leave(connection: TrackedConnection) -> None:
            await connection.ws.close(code=4000)

        async with served(leave=leave) as s:
            peer, connection = await s.connect("/leave")
            await until(lambda: connection.ws.closed)
            done = s.manager.close_now([connection], SESSION_ENDED)
            frames, result = await asyncio.gather(answer(peer), done)

            assert (frames, result) == ([close_frame(Close(4000))], (0, 0))
            assert connection.ws.close_code == 4000


class TestTls:
    async def test_polite(self, tls: ssl.SSLContext) -> None:
        """A TLS client that answers the close frame isn't aborted, and its socket is closed."""
        async with served(tls=tls) as s:
            peer, connection = await s.connect()
            frames, result = await asyncio.gather(
                answer(peer), s.manager.close_now([connection], SESSION_ENDED)
            )

            assert (frames, result) == ([ENDED], (0, 0))
            assert connection.tls_socket.fileno() == -1

    @pytest.mark.parametrize("says_so", ["never", "before", "after"])
    async def test_stuck(self, tls: ssl.SSLContext, says_so: str) -> None:
        """A TLS peer that doesn't read is aborted, whether or not it sends close_notify."""
        async with served(QUICK, tls=tls) as s:
            peer, connection = await s.stuck()
            assert connection.transport is not None
            if says_so == "before":
                await peer.notify()  # type: ignore[attr-defined]  # it is a TlsPeer
                await until(connection.transport.is_closing)
            done = s.manager.close_now([connection], SESSION_ENDED)
            if says_so == "after":
                await peer.notify()  # type: ignore[attr-defined]
            aborted, _ = await done
            await until(lambda: connection.tls_socket.fileno() == -1)

            assert aborted == 1
            peer.close()

    async def test_closed_twice(self, tls: ssl.SSLContext) -> None:
        """A TLS transport that was closed twice, so that asyncio loses it, is aborted."""
        async with served(QUICK, tls=tls) as s:
            peer, connection = await s.stuck()
            assert connection.transport is not None
            connection.transport.close()
            connection.transport.close()
            aborted, _ = await s.manager.close_now([connection], SESSION_ENDED)
            await until(lambda: connection.tls_socket.fileno() == -1)

            assert aborted == 1
            peer.close()

    async def test_closed_twice_and_gone(self, tls: ssl.SSLContext) -> None:
        """A TLS transport that was closed twice isn't aborted if its client disconnects."""
        async with served(PATIENT, tls=tls) as s:
            peer, connection = await s.stuck()
            assert connection.transport is not None
            connection.transport.close()
            connection.transport.close()
            done = s.manager.close_now([connection], SESSION_ENDED)
            peer.close()

            aborted, _ = await done
            assert aborted == 0


class TestHandlers:
    async def test_a_stuck_socket_delays_no_other(self) -> None:
        """A handler whose socket is gone is cancelled while another socket is still closing."""
        timeouts = Timeouts(close=PATIENT.close, handler_grace=0.01)
        async with served(timeouts) as s:
            slow, stuck = await s.stuck()
            peer, connection = await s.connect("/deaf")
            done = s.manager.close_now([stuck, connection], SESSION_ENDED)
            await answer(peer)
            assert connection.task is not None
            await asyncio.wait({connection.task})

            assert connection.cancelled
            assert stuck.state is CLOSING
            slow.close()
            await done

    async def test_each_has_its_grace(self) -> None:
        """A handler whose grace is over is cancelled, and not one whose grace is longer."""
        async with served(Timeouts(close=PATIENT.close, handler_grace=0.2)) as s:
            first, early = await s.connect("/deaf")
            second, late = await s.connect("/deaf")
            dones = [s.manager.close_now([early], SESSION_ENDED)]
            await answer(first)
            s.manager.timeouts = PATIENT
            dones.append(s.manager.close_now([late], SESSION_ENDED))
            await answer(second)
            await until(lambda: early.cancelled)

            assert not late.cancelled
            assert late.task is not None
            late.task.cancel()
            await asyncio.gather(*dones)

    async def test_that_leaves_is_not_cancelled(self) -> None:
        """A handler that reads ends by itself and is not cancelled."""
        async with served() as s:
            peer, connection = await s.connect()
            _, result = await asyncio.gather(
                answer(peer), s.manager.close_now([connection], SESSION_ENDED)
            )

            assert result == (0, 0)
            assert s.left == [connection]

    async def test_that_goes_on_is_named(self, caplog: pytest.LogCaptureFixture) -> None:
        """A handler that suppresses its cancellation is logged; the order doesn't wait for it."""
        stop = asyncio.Event()

        async def stubborn(connection: TrackedConnection) -> None:
            while not stop.is_set():
                try:
                    await stop.wait()
                except asyncio.CancelledError:
                    continue

        async with served(QUICK, stubborn=stubborn) as s:
            peer, connection = await s.connect("/stubborn")
            _, result = await asyncio.gather(
                answer(peer), s.manager.close_now([connection], SESSION_ENDED)
            )
            await until(lambda: "is still running after its socket was closed" in caplog.text)

            assert result == (0, 1)
            assert s.manager.orphans() == [connection]
            stop.set()
            await until(lambda: not s.manager.orphans())

    async def test_that_was_left_behind(self) -> None:
        """A later order cancels a handler that outlived its socket."""
        async with served(Timeouts(close=PATIENT.close, handler_grace=0.01)) as s:
            peer, connection = await s.connect("/deaf")
            gone = s.manager.start_close(connection, NORMAL)
            await answer(peer)
            await gone
            left_alone = not connection.cancelled

            assert left_alone
            assert await s.manager.close_now(s.manager.of("session"), SESSION_ENDED) == (0, 1)

    async def test_ends_its_own_session(self) -> None:
        """A handler may end its own session: all sockets are closed, and the handler continues."""
        results: list[Any] = []

        async def suicide(connection: TrackedConnection) -> None:
            await connection.ws.receive()
            results.append(await s.manager.close_now(s.manager.of("session"), SESSION_ENDED))
            results.append((await connection.ws.receive()).type)

        async with served(suicide=suicide) as s:
            other, peer = await s.peer(), await s.peer("/suicide")
            await peer.say(1, b"now")
            frames = await sync(other, peer)
            await until(lambda: len(s.left) == 2)

            assert frames == [[ENDED]] * 2
            assert results == [(0, 0), WSMsgType.CLOSED]

    async def test_child_ends_its_own_session(self) -> None:
        """An order by a child task of a handler waits for the socket, but not for the handler."""
        results: list[Any] = []

        async def parent(connection: TrackedConnection) -> None:
            async def child() -> None:
                results.append(await s.manager.close_now([connection], SESSION_ENDED))
                results.append(connection.state)

            await asyncio.create_task(child())

        async with served(parent=parent) as s:
            peer = await s.peer("/parent")
            frames = await answer(peer)
            await until(lambda: s.left)

            assert frames == [ENDED]
            assert results == [(0, 0), CLOSED]

    async def test_of_a_handshake(self) -> None:
        """A handshake that hangs, and has no socket yet, is cancelled when the grace is over."""

        async def hang() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                s.manager.discard_handshake(connection)

        async with served(QUICK) as s:
            task = asyncio.create_task(hang())
            connection = TrackedConnection("session", ServedWebSocket(), None, task)
            s.manager.add_handshake(connection)

            assert await s.manager.close_now([connection], SESSION_ENDED) == (0, 1)
            await asyncio.wait({task})
            assert s.manager.opening.size == 0

    async def test_of_a_handshake_that_comes_to_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An order skips connections that are removed before it, or before its slice."""
        monkeypatch.setattr(closing, "AT_ONCE", 0)
        monkeypatch.setattr(closing, "SLICE", 1)
        async with served() as s:
            task = asyncio.current_task()
            first, second = (
                TrackedConnection("session", ServedWebSocket(), None, task) for _ in range(2)
            )
            for connection in (first, second):
                s.manager.add_handshake(connection)
            thing = s.manager.add_by_hand("session", self)
            done = s.manager.close_now([first, second, thing], SESSION_ENDED)
            for connection in (first, second):
                s.manager.discard_handshake(connection)
            s.manager.remove_by_hand("session", self)

            assert await done == (0, 0)
            assert await s.manager.close_now([first, second, thing], NORMAL) == (0, 0)
            assert await s.manager.start_close(first, NORMAL) == (0, 0)


class TestOrders:
    async def test_two_at_a_time(self) -> None:
        """Of two simultaneous orders the first sets the close code, and both complete."""
        async with served() as s:
            peer, connection = await s.connect()
            first = s.manager.close_now([connection], SESSION_ENDED)
            second = s.manager.close_now([connection], RECONNECT)
            frames, *results = await asyncio.gather(answer(peer), first, second)

            assert frames == [ENDED]
            assert results == [(0, 0), (0, 0)]

    async def test_the_earlier_deadline_counts(self) -> None:
        """An order with a shorter deadline applies it to a close that an earlier order began."""
        async with served() as s:
            peer, connection = await s.connect("/deaf")
            first = s.manager.close_now([connection], SESSION_ENDED)
            s.manager.timeouts = QUICK
            assert (await s.manager.close_now([connection], RECONNECT))[0] == 1
            s.manager.timeouts = Timeouts(handler_grace=0.0)
            assert connection.task is not None
            connection.task.cancel()
            await first
            peer.close()

    async def test_a_cancelled_caller_stops_nothing(self) -> None:
        """Cancelling the caller of an order doesn't stop the close."""
        async with served() as s:
            peer, connection = await s.connect()

            async def order() -> None:
                await s.manager.close_now([connection], SESSION_ENDED)

            task = asyncio.create_task(order())
            await until(lambda: connection.state is CLOSING)
            task.cancel()
            frames = await answer(peer)
            await until(lambda: connection.state is CLOSED)

            assert frames == [ENDED]

    async def test_leaving(self) -> None:
        """A socket whose handler returns is closed with 1000 and removed."""

        async def leave(connection: TrackedConnection) -> None:
            """Do nothing."""

        async with served(leave=leave) as s:
            (peer, connection) = await s.connect("/leave")
            frames = await answer(peer)
            await until(lambda: connection.state is CLOSED)

            assert frames == [close_frame(NORMAL)]
            assert not s.manager.open.size

    async def test_no_task_per_socket(self) -> None:
        """Closing served sockets starts no task."""
        async with served() as s:
            peers = [await s.peer() for _ in range(3)]
            before = len(asyncio.all_tasks())
            done = s.manager.close_now(s.manager.all(), SESSION_ENDED)

            assert len(asyncio.all_tasks()) == before
            await asyncio.gather(sync(*peers), done)


class TestByHand:
    @staticmethod
    def thing(close: Any) -> Any:
        return type("Thing", (), {"close": close})()

    async def test_one_that_hangs_holds_no_other(self) -> None:
        """An object whose close() hangs has a deadline of its own, and delays no other."""
        waiting = asyncio.Event()

        async def hang(self: object) -> None:
            waiting.set()
            await asyncio.Event().wait()

        async with served(Timeouts(close=1.0, handler_grace=0.01)) as s:
            s.manager.add_by_hand("session", self.thing(hang))
            peer, connection = await s.connect("/deaf")
            done = asyncio.ensure_future(s.manager.close_now(s.manager.of("session"), NORMAL))
            await waiting.wait()
            await answer(peer)
            assert connection.task is not None
            await asyncio.wait({connection.task})
            still_waiting = not done.done()

            assert still_waiting
            assert await done == (1, 1)
            assert not s.manager.open.size

    async def test_code_and_message(self) -> None:
        """The code and the message are passed to a close() that takes them."""
        told: list[Any] = []

        def close(self: object, code: int, message: bytes) -> None:
            told.append((code, message))

        def bare(self: object) -> None:
            told.append("bare")

        async with served() as s:
            for one in (close, bare):
                s.manager.add_by_hand("session", self.thing(one))

            assert await s.manager.close_now(s.manager.of("session"), SLOW_CONSUMER) == (0, 0)
            assert told == [(1013, b"too slow"), "bare"]

    async def test_one_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """An object whose close() raises is logged, counted as aborted, and removed."""

        async def fail(self: object) -> None:
            raise LookupError("a bug")

        async with served() as s:
            s.manager.add_by_hand("session", self.thing(fail))

            assert await s.manager.close_now(s.manager.of("session"), NORMAL) == (1, 0)
            assert "LookupError" in caplog.text
            assert not s.manager.open.size

    async def test_one_that_refuses_to_be_cancelled(self) -> None:
        """A close() that suppresses its cancellation is left behind at the deadline."""
        stop = asyncio.Event()

        async def stubborn(self: object) -> None:
            while not stop.is_set():
                try:
                    await stop.wait()
                except asyncio.CancelledError:
                    continue

        async with served(QUICK) as s:
            s.manager.add_by_hand("session", self.thing(stubborn))

            assert await s.manager.close_now(s.manager.of("session"), NORMAL) == (1, 0)
            stop.set()

    async def test_a_websocket_of_aiohttp(self) -> None:
        """A bare WebSocketResponse may be registered, as in 1.1.1, and is closed."""

        async def bare(connection: TrackedConnection) -> None:
            """Do nothing."""

        async with served(bare=bare) as s:
            there = asyncio.Event()
            stop = asyncio.Event()

            async def handler(request: web.Request) -> web.WebSocketResponse:
                ws = web.WebSocketResponse()
                await ws.prepare(request)
                s.manager.add_by_hand("session", ws)
                there.set()
                async for _ in ws:
                    pass
                stop.set()
                return ws

            app = web.Application()
            app.router.add_get("/", handler)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            peer = await RawPeer.open(s.url.with_host(host).with_port(port))
            await there.wait()
            result = await s.manager.close_now(s.manager.of("session"), SESSION_ENDED)
            await stop.wait()

            assert result == (0, 0)
            assert await peer.closed() == 4401
            peer.close()
            await runner.cleanup()


class TestOtherEndpoints:
    async def test_a_websocket_that_another_library_has_opened(self) -> None:
        """A websocket that another library has opened is closed by its own close()."""
        connections: list[TrackedConnection] = []

        async def handler(request: web.Request) -> web.WebSocketResponse:
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            connection = TrackedConnection("adopted", ws, request, asyncio.current_task())
            s.manager.add_handshake(connection)
            s.manager.open_connection(connection)
            connections.append(connection)
            async for _ in ws:
                pass
            s.manager.handler_exited(connection)
            return ws

        async with served() as s:
            runner, url = await start(handler)
            peer = await RawPeer.open(url)
            await until(lambda: connections)
            frames, result = await asyncio.gather(
                answer(peer), s.manager.close_now(connections, SESSION_ENDED)
            )

            assert (frames[0], result) == (ENDED, (0, 0))
            peer.close()
            await runner.cleanup()

    async def test_a_stream(self) -> None:
        """A stream is closed, and its handler, which reads nothing, cancelled at once."""
        connections: list[TrackedConnection] = []

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"data: x\n\n")
            connection = TrackedConnection("stream", response, request, asyncio.current_task())
            s.manager.add_handshake(connection)
            s.manager.open_connection(connection)
            connections.append(connection)
            try:
                await asyncio.Event().wait()
            finally:
                s.manager.handler_exited(connection)
            return response

        async with served() as s:
            runner, url = await start(handler)
            peer = await RawPeer.connect(url)
            await until(lambda: connections)
            result = await s.manager.close_now(connections, SESSION_ENDED)

            assert result == (0, 1)
            assert (await peer.receive()).endswith(b"data: x\n\n\r\n")
            peer.close()
            await runner.cleanup()


async def start(handler: Any) -> tuple[web.AppRunner, Any]:
    """Serve one handler of aiohttp; return its runner and its URL."""
    from yarl import URL

    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    return runner, URL.build(scheme="http", host=host, port=port, path="/")


class TestLastWords:
    async def test_before_the_close_frame(self) -> None:
        """The last words, which may depend on the close, are sent before the close frame."""
        async with served() as s:
            peer, connection = await s.connect()
            connection.last_words = lambda close: f"goodbye {close.code}"
            frames, _ = await asyncio.gather(
                answer(peer), s.manager.close_now([connection], SESSION_ENDED)
            )

            assert frames == [(1, b"goodbye 4401"), ENDED]

    async def test_bytes(self) -> None:
        """Last words in bytes are sent as a binary message; ``None`` sends no message."""
        async with served() as s:
            (peer, one), (other, two) = await s.connect(), await s.connect()
            one.last_words = lambda close: b"\x01"
            two.last_words = lambda close: None
            frames, _ = await asyncio.gather(
                sync(peer, other), s.manager.close_now([one, two], SESSION_ENDED)
            )

            assert frames == [[(2, b"\x01"), ENDED], [ENDED]]

    async def test_no_order_no_words(self) -> None:
        """A handler that returns without an order sends no last words."""

        async def leave(connection: TrackedConnection) -> None:
            connection.last_words = lambda close: "never"

        async with served(leave=leave) as s:
            peer = await s.peer("/leave")

            assert await answer(peer) == [close_frame(NORMAL)]

    async def test_not_behind_what_waits(self) -> None:
        """Last words are dropped if the transport's write buffer isn't empty."""
        async with served(QUICK) as s:
            peer, connection = await s.stuck()
            connection.last_words = lambda close: "late"
            assert connection.transport is not None
            written = connection.transport.get_write_buffer_size()
            s.manager.close_soon([connection], SESSION_ENDED)
            frame = connection.transport.get_write_buffer_size() - written

            assert frame == 2 + len(ENDED[1])
            peer.close()

    async def test_not_before_what_is_being_compressed(self) -> None:
        """Last words are dropped while a thread compresses a message that is being sent."""

        async def send(connection: TrackedConnection) -> None:
            await connection.ws.receive()
            sending = asyncio.create_task(connection.ws.send_bytes(os.urandom(5_000_000)))
            for _ in range(3):  # until the thread compresses
                await asyncio.sleep(0)
            s.manager.close_soon([connection], SESSION_ENDED)
            await asyncio.wait({sending})

        async with (
            served(options={"compress": True}, send=send) as s,
            aiohttp.ClientSession() as session,
            session.ws_connect(s.url / "send", compress=15) as ws,
        ):
            await until(lambda: s.manager.open.size)
            (connection,) = s.manager.all()
            connection.last_words = lambda close: "goodbye"
            await ws.send_str("go")
            message = await ws.receive()

            assert (message.type, message.data) == (WSMsgType.CLOSE, 4401)

    async def test_a_bug_in_them(self, caplog: pytest.LogCaptureFixture) -> None:
        """An error in the last words is logged, and the socket is still closed."""
        async with served() as s:
            peer, connection = await s.connect()
            connection.last_words = lambda close: str(1 // 0)
            frames, result = await asyncio.gather(
                answer(peer), s.manager.close_now([connection], SESSION_ENDED)
            )

            assert (frames, result) == ([ENDED], (0, 0))
            assert "ZeroDivisionError" in caplog.text

    async def test_compressed(self) -> None:
        """Last words to a client that has agreed on compression are compressed."""
        async with (
            served(options={"compress": True}) as s,
            aiohttp.ClientSession() as session,
            session.ws_connect(s.url / "echo", compress=15) as ws,
        ):
            await until(lambda: s.manager.open.size)
            (connection,) = s.manager.all()
            words = "goodbye" * 100
            connection.last_words = lambda close: words
            transport = connection.transport
            assert transport is not None
            with mock.patch.object(transport, "write", wraps=transport.write) as write:
                s.manager.close_soon([connection], SESSION_ENDED)
            assert await ws.receive_str() == words
            message = await ws.receive()

            assert (message.type, message.data) == (WSMsgType.CLOSE, 4401)
            assert sum(len(call.args[0]) for call in write.call_args_list) < len(words)

    async def test_not_compressed(self) -> None:
        """Last words to a client that offers no compression are sent uncompressed."""
        async with served(options={"compress": True}) as s:
            peer, connection = await s.connect()
            connection.last_words = lambda close: "goodbye"
            frames, _ = await asyncio.gather(
                answer(peer), s.manager.close_now([connection], SESSION_ENDED)
            )

            assert frames == [(1, b"goodbye"), ENDED]  # a raw peer offers no compression


class TestHook:
    async def test_is_called_once(self) -> None:
        """The hook is called once for a registered connection, when the index has lost it."""
        seen: list[tuple[TrackedConnection, bool]] = []
        async with served() as s:
            s.manager.on_removed = lambda c: seen.append((c, c in set(s.manager.open)))
            (peer, one), (other, two) = await s.connect(), await s.connect()
            one.registered = True
            await asyncio.gather(sync(peer, other), s.manager.close_now([one, two], SESSION_ENDED))

            assert seen == [(one, False)]
            assert two.state is CLOSED

    @pytest.mark.parametrize("how", ["sync", "async"])
    async def test_that_fails(self, how: str, caplog: pytest.LogCaptureFixture) -> None:
        """A hook that fails is logged, and the order is done."""

        def fail(connection: TrackedConnection) -> Any:
            if how == "sync":
                raise LookupError("a bug")
            return self._fail()

        async with served() as s:
            s.manager.on_removed = fail
            peer, connection = await s.connect()
            connection.registered = True
            await asyncio.gather(answer(peer), s.manager.close_now([connection], NORMAL))

            assert "unregister() failed" in caplog.text

    async def _fail(self) -> None:
        raise LookupError("a bug")

    async def test_that_hangs(self, caplog: pytest.LogCaptureFixture) -> None:
        """An order waits for a hook that hangs until a timeout, which is logged."""

        async def hang(connection: TrackedConnection) -> None:
            await asyncio.Event().wait()

        async with served(Timeouts(close=0.5, handler_grace=0.5)) as s:
            s.manager.on_removed = hang
            peer, connection = await s.connect()
            connection.registered = True
            await asyncio.gather(answer(peer), s.manager.close_now([connection], NORMAL))

            assert connection.state is CLOSED
            assert "takes too long" in caplog.text


class TestMemory:
    async def test_nothing_is_kept(self) -> None:
        """A closed connection's websocket is kept alive by no timer and no order."""

        async def closed() -> weakref.ref[ServedWebSocket]:
            peer, connection = await s.connect()
            ref = weakref.ref(connection.ws)
            await asyncio.gather(answer(peer), s.manager.close_now([connection], SESSION_ENDED))
            task = connection.task
            assert task is not None
            await asyncio.wait({task})
            s.left.clear()
            peer.close()
            return ref

        async with served(options={"compress": False, "heartbeat": 30.0}) as s:
            ref = await closed()
            await until(lambda: not s.manager.open.size)
            gc.collect()  # aiohttp's own reference cycles

            assert ref() is None

    async def test_timers_hold_no_context(self) -> None:
        """The engine's timers don't keep the context of an order's caller alive."""
        held: contextvars.ContextVar[Any] = contextvars.ContextVar("held")

        class Thing:
            pass

        async def order(connection: TrackedConnection) -> weakref.ref[Thing]:
            thing = Thing()
            held.set(thing)
            s.manager.close_soon([connection], SESSION_ENDED)
            return weakref.ref(thing)

        async with served() as s:
            peer, connection = await s.connect("/deaf")
            ref = await asyncio.create_task(order(connection))
            await until(lambda: ref() is None)

            assert connection.state is CLOSING
            peer.close()
            assert connection.task is not None
            connection.task.cancel()


class TestCloseFrameOfAClient:
    @pytest.mark.parametrize("size", [0, 2, 3, 60, 125])
    def test_is_found_behind_anything(self, size: int) -> None:
        """A client's close frame is found whatever its payload, and whatever precedes it."""
        mask = b"\x11\x22\x33\x44"
        payload = ((4401).to_bytes(2) + b"r" * 123)[:size]
        masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
        frame = bytes([0x88, 0x80 | size]) + mask + masked

        assert ends_with_close(frame)
        assert ends_with_close(b"\x81\x81\0\0\0\0x" + frame)
        assert not ends_with_close(frame[:-1] if size else frame[:-2])

    @pytest.mark.parametrize(
        "data", [b"", b"\x88", b"\x81\x81\0\0\0\0x", b"\x88\x82\0\0\0\0\0\1", b"x" * 500]
    )
    def test_is_not_seen_in_anything_else(self, data: bytes) -> None:
        """Texts, invalid codes and incomplete frames are not taken for a close frame."""
        assert not ends_with_close(data)
