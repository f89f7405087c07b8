"""
The connection manager: its index, its tick, pushes, and the methods of a connection.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from aiohttp_session_ws._lineage import Lineage, Subject
from aiohttp_session_ws.close_codes import (
    NORMAL,
    SESSION_ENDED,
    TOO_MANY_CONNECTIONS,
    Close,
)
from aiohttp_session_ws.connections import manager as manager_module
from aiohttp_session_ws.connections.connection import (
    CLOSED,
    CLOSING,
    NO_LINEAGE,
    OPEN,
    OPENING,
    TrackedConnection,
)
from aiohttp_session_ws.connections.websocket import ServedWebSocket
from aiohttp_session_ws.options import PushQueue, Timeouts
from tests.support.peers import NORMAL_CLOSE

from .served import PATIENT, QUICK, answer, close_frame, served, until

LINEAGE = Lineage("token", 3, 1.0)


class Thing:
    """An object that may be registered by hand."""

    def __init__(self) -> None:
        self.closed_with: list[int] = []

    def close(self, code: int, message: bytes) -> None:
        """Record the code."""
        self.closed_with.append(code)


def handshake(session_ws_id: str = "a") -> TrackedConnection:
    """Return a handshake that isn't filed."""
    connection = TrackedConnection(session_ws_id, ServedWebSocket())
    connection.lineage = LINEAGE
    return connection


class TestFiling:
    async def test_handshake(self) -> None:
        """Orders find a handshake under each of its keys; queries for open connections don't."""
        async with served() as s:
            m, connection = s.manager, handshake()
            label = Subject("label", ("sid", "1"))
            m.add_handshake(connection)
            m.file_identity(connection, "ann", [label])
            subjects = [Subject("id", "a"), Subject("identity", "ann"), label]

            assert m.handshakes() == m.of_lineage("token") == [connection]
            assert [m.of_subject(subject) for subject in subjects] == [[connection]] * 3
            assert [list(m.open_of(subject)) for subject in subjects] == [[]] * 3
            assert (m.of("a"), m.all(), m.total) == ([], [], 1)

    async def test_open(self) -> None:
        """Each query finds an open connection, and finds it once."""
        async with served() as s:
            m, connection = s.manager, handshake()
            m.add_handshake(connection)
            m.file_identity(connection, "ann")
            m.open_connection(connection)
            subjects = [Subject("id", "a"), Subject("identity", "ann"), None]

            assert [list(m.open_of(subject)) for subject in subjects] == [[connection]] * 3
            assert m.of("a") == m.all() == m.of_subject(Subject("id", "a")) == [connection]
            assert (m.handshakes(), m.total, connection.state) == ([], 1, OPEN)
            assert [info.id for info in m.snapshot()] == [connection.id]

    async def test_handshake_comes_to_nothing(self) -> None:
        """A discarded handshake is removed from all indexes."""
        async with served() as s:
            m, connection = s.manager, handshake()
            m.add_handshake(connection)
            m.file_identity(connection, "ann", [Subject("label", ("sid", "1"))])
            m.discard_handshake(connection)

            assert connection.state is CLOSED
            assert [len(i) for i in (m.opening, m.lineages, m.identities, m.labels)] == [0] * 4

    async def test_refile(self) -> None:
        """A renewal files a connection, opening or open, under its new id and generation."""
        async with served() as s:
            m = s.manager
            opening, opened = handshake(), handshake()
            for connection in (opening, opened):
                m.add_handshake(connection)
            m.open_connection(opened)
            renewed = Lineage("token", 4, 1.0)
            for connection in (opening, opened):
                m.refile(connection, "b", renewed)
            both = {opening, opened}

            assert (m.of("a"), m.opening.of("a")) == ([], [])
            assert (m.of("b"), m.opening.of("b")) == ([opened], [opening])
            assert set(m.of_lineage("token")) == both
            assert {c.lineage for c in both} == {renewed}
            m.discard_handshake(opening)
            m.refile(opening, "c", LINEAGE)
            assert opening.session_ws_id == "b"

    async def test_no_lineage(self) -> None:
        """An object without a lineage isn't filed under one."""
        async with served() as s:
            connection = s.manager.add_by_hand("a", Thing())

            assert connection.lineage is NO_LINEAGE
            assert not s.manager.lineages


class TestByHand:
    async def test_two(self) -> None:
        """Two objects can be filed under the same id."""
        async with served() as s:
            thing, other = Thing(), Thing()
            both = [s.manager.add_by_hand("a", one) for one in (thing, other)]

            assert s.manager.of("a") == both
            assert s.manager.open.size == 2

    async def test_under_an_identity_and_a_lineage(self) -> None:
        """An object is found by its lineage and closed by its identity, and leaves all indexes."""
        async with served() as s:
            thing = Thing()
            s.manager.add_by_hand("a", thing, "ann", LINEAGE)
            found = s.manager.of_lineage("token")
            await s.manager.close_now(
                s.manager.of_subject(Subject("identity", "ann")), SESSION_ENDED
            )

            assert [c.ws for c in found] == [thing]
            assert thing.closed_with == [4401]
            indexes = s.manager.open, s.manager.identities, s.manager.lineages
            assert [len(index) for index in indexes] == [0, 0, 0]

    @pytest.mark.parametrize("identity", [None, "ann"])
    async def test_taken_out(self, identity: str | None) -> None:
        """An object removed by hand leaves the indexes, and isn't closed."""
        async with served() as s:
            thing, other = Thing(), Thing()
            connection = s.manager.add_by_hand("a", thing, identity)
            s.manager.remove_by_hand("a", other)
            s.manager.remove_by_hand("b", thing)
            s.manager.remove_by_hand("a", thing)
            s.manager.remove_by_hand("a", thing)

            assert connection.state is CLOSED
            assert (len(s.manager.open), len(s.manager.identities)) == (0, 0)
            assert thing.closed_with == []

    async def test_not_what_is_served(self) -> None:
        """A served socket can't be removed by hand."""
        async with served() as s:
            _, connection = await s.connect()
            s.manager.remove_by_hand(connection.session_ws_id, connection.ws)

            assert s.manager.all() == [connection]

    async def test_has_what_any_connection_has(self) -> None:
        """An object's connection has default attributes; an unknown one raises AttributeError."""
        async with served() as s:
            connection: Any = s.manager.add_by_hand("a", Thing())

            assert connection.request is None
            assert (connection.takes_pushes, connection.check_at) == (True, math.inf)
            assert connection.data == {}
            connection.data["x"] = 1
            assert connection.data == {"x": 1}
            with pytest.raises(AttributeError):
                _ = connection.nonsense


class TestConnection:
    async def test_close(self) -> None:
        """close() sends a code and a reason, and returns when the handler has left, too."""
        async with served() as s:
            peer, connection = await s.connect()
            frames, _ = await asyncio.gather(answer(peer), connection.close(4000, "bye"))
            await connection.close(4001)

            assert frames == [close_frame(Close(4000, "bye"))]
            assert connection.state is CLOSED
            assert s.left == [connection]

    async def test_close_by_its_own_handler(self) -> None:
        """close() in a connection's own handler returns when the socket is closed."""
        states: list[object] = []

        async def leave(connection: TrackedConnection) -> None:
            await connection.close(Close(4000))
            states.append(connection.state)

        async with served(leave=leave) as s:
            peer = await s.peer("/leave")
            frames = await answer(peer)
            await until(lambda: s.left)

            assert (frames, states) == ([close_frame(Close(4000))], [CLOSED])

    async def test_wrong_code(self) -> None:
        """close() with a code that no frame can carry raises ValueError and closes nothing."""
        async with served() as s:
            _, connection = await s.connect()
            with pytest.raises(ValueError, match="3000 to 4999"):
                await connection.close(1006)

            assert connection.state is OPEN

    def test_repr_tells_no_id(self) -> None:
        """The repr of a connection, which may be logged, doesn't contain its session ws id."""
        assert "secret" not in repr(TrackedConnection("secret", None))

    def test_gravest_order(self) -> None:
        """Of several orders that reject a handshake, the end of its session takes precedence."""
        connection = handshake()
        for close in (TOO_MANY_CONNECTIONS, SESSION_ENDED, NORMAL):
            connection.reject(close)

        assert connection.rejected_with == SESSION_ENDED


class TestRefused:
    async def test_counts_until_it_is_gone(self) -> None:
        """A refused handshake is in all() and in the total until it is closed."""
        totals: list[int] = []

        async with served() as s:

            async def refuse(connection: TrackedConnection) -> None:
                ws = connection.ws
                refused = TrackedConnection(None, ws, connection.request)
                telling = asyncio.ensure_future(
                    s.manager.close_refused(refused, TOO_MANY_CONNECTIONS)
                )
                await asyncio.sleep(0)
                totals.append(s.manager.total - s.manager.open.size)
                assert refused in s.manager.all()
                await telling
                totals.append(s.manager.total - s.manager.open.size)

            peer, connection = await s.connect("/deaf")
            telling = asyncio.ensure_future(refuse(connection))
            frames = await answer(peer)
            await telling
            assert connection.task is not None
            connection.task.cancel()

            assert frames == [close_frame(TOO_MANY_CONNECTIONS)]
            assert totals == [1, 0]


class TestEvict:
    async def test_open_one(self) -> None:
        """An open connection that is evicted is closed with the given code."""
        async with served() as s:
            peer, connection = await s.connect()
            s.manager.evict(connection, TOO_MANY_CONNECTIONS)

            assert await answer(peer) == [close_frame(TOO_MANY_CONNECTIONS)]

    async def test_opening_one(self) -> None:
        """A handshake that is evicted is rejected with the given code."""
        async with served() as s:
            connection = handshake()
            s.manager.add_handshake(connection)
            s.manager.evict(connection, TOO_MANY_CONNECTIONS)

            assert (connection.state, connection.rejected_with) == (OPENING, TOO_MANY_CONNECTIONS)


class TestRemoveGone:
    async def test_one_that_has_hung_up(self) -> None:
        """A connection whose client has closed is removed without the close engine."""
        async with served() as s:
            peer, connection = await s.connect()
            await peer.say(8, NORMAL_CLOSE)
            await until(lambda: s.left)

            assert (connection.state, connection.closing) == (CLOSED, None)
            assert (s.manager.total, s.manager.of_lineage("token")) == (0, [])

    async def test_one_that_is_there(self) -> None:
        """A connection that is open isn't removed."""
        async with served() as s:
            _, connection = await s.connect()

            assert not s.manager.remove_if_ended(connection)
            assert connection.state is OPEN

    async def test_one_that_somebody_is_told_of(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A registered connection is left to the engine, which may have to await the hook."""
        monkeypatch.setattr(manager_module, "TICK", 1000.0)
        async with served() as s:
            peer, connection = await s.connect("/deaf")
            connection.registered = True
            peer.vanish()
            await until(lambda: connection.disconnected)

            assert not s.manager.remove_if_ended(connection)
            assert s.manager.open.size == 1

    async def test_one_that_an_order_closes(self) -> None:
        """A connection that an order closes is left to the order."""
        async with served() as s:
            peer, connection = await s.connect("/deaf")
            closed = s.manager.close_now([connection], SESSION_ENDED)
            early = s.manager.remove_if_ended(connection)
            _ = await answer(peer)
            await until(lambda: connection.state is CLOSED)

            assert (early, s.manager.remove_if_ended(connection)) == (False, False)
            assert connection.task is not None
            connection.task.cancel()
            assert await closed == (0, 0)


class TestTick:
    @pytest.fixture(autouse=True)
    def hurry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Shorten the interval of the tick."""
        monkeypatch.setattr(manager_module, "TICK", 0.02)

    async def test_who_vanished(self) -> None:
        """A connection lost while its handler doesn't read is removed, its handler cancelled."""
        async with served(QUICK) as s:
            peer, connection = await s.connect("/deaf")
            peer.vanish()
            assert connection.task is not None
            await asyncio.wait({connection.task})

            assert (connection.state, connection.cancelled) == (CLOSED, True)
            assert connection.close_order is None

    async def test_who_said_goodbye(self) -> None:
        """A handler that has read its client's close frame isn't cancelled."""
        go = asyncio.Event()

        async def slow(connection: TrackedConnection) -> None:
            await connection.ws.receive()
            await go.wait()

        async with served(QUICK, slow=slow) as s:
            peer, connection = await s.connect("/slow")
            await peer.say(8, b"\x03\xe8")
            await until(lambda: connection.state is CLOSED)
            left_alone = not connection.cancelled and connection.close_order is None
            go.set()
            await until(lambda: s.left)

            assert left_alone

    async def test_what_is_due(self) -> None:
        """The callbacks of a tick get the connections whose ``check_at`` has come, no others."""
        seen: list[Sequence[TrackedConnection]] = []
        async with served() as s:
            s.manager.on_tick.append(seen.append)
            (_, early), (_, late) = await s.connect(), await s.connect()
            early.check_at = 0.0
            late.check_at = asyncio.get_running_loop().time() + 1000
            await until(lambda: [early] in seen)

            assert not any(late in due for due in seen)

    async def test_a_few_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many connections are checked in batches, and all are checked."""
        monkeypatch.setattr(manager_module, "CHECKED_AT_ONCE", 1)
        seen: list[Sequence[TrackedConnection]] = []
        async with served() as s:
            s.manager.on_tick.append(seen.append)
            connections = [(await s.connect())[1] for _ in range(3)]
            for connection in connections:
                connection.check_at = 0.0
            await until(lambda: connections == [c for due in seen[-3:] for c in due])

            assert all(len(due) <= 1 for due in seen)

    async def test_where_there_are_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If there are many connections, all those that are lost are closed."""
        monkeypatch.setattr(manager_module, "CHECKED_AT_ONCE", 1)
        async with served(QUICK) as s:
            connected = [await s.connect("/deaf") for _ in range(9)]
            for peer, _ in connected:
                peer.vanish()
            tasks = [connection.task for _, connection in connected if connection.task]
            await asyncio.wait(tasks)

            assert [connection.state for _, connection in connected] == [CLOSED] * 9

    async def test_who_cannot_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection whose check is near is checked in each tick, until its check is put off."""
        monkeypatch.setattr(manager_module, "CHECKED_AT_ONCE", 1)
        looks: list[Sequence[TrackedConnection]] = []
        async with served() as s:
            s.manager.on_tick.append(looks.append)
            one, *others = [(await s.connect())[1] for _ in range(22)]
            one.check_at = 0.0
            await until(lambda: [one] in looks)
            looks.clear()
            await until(lambda: looks.count([one]) >= 8)
            took, attended = len(looks), set(s.manager.checked_each_tick)
            one.check_at = math.inf
            await until(lambda: not s.manager.checked_each_tick)

            # Each tick checks six of the 22, one a batch: otherwise it would be every 22nd batch.
            assert (attended, took < 8 * 12) == ({one}, True)
            assert all(connection.state is OPEN for connection in others)

    async def test_who_is_gone(self) -> None:
        """A closed connection isn't checked in each tick, even if that is requested later."""
        async with served() as s:
            peer, connection = await s.connect()
            s.manager.check_each_tick(connection)
            _ = await asyncio.gather(answer(peer), s.manager.close_now([connection], NORMAL))
            at_once = set(s.manager.checked_each_tick)
            s.manager.check_each_tick(connection)  # as a check that ends by now may do

            assert (at_once, set(s.manager.checked_each_tick)) == (set(), set())

    async def test_one_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """A callback that fails is logged, and stops no other."""
        seen: list[object] = []

        def fail(due: Sequence[TrackedConnection]) -> None:
            raise LookupError("a bug")

        async with served() as s:
            s.manager.on_tick += [fail, seen.append]
            await s.connect()
            await until(lambda: len(seen) > 1)

            assert "LookupError" in caplog.text

    async def test_only_while_there_is_somebody(self) -> None:
        """There is no tick without connections."""
        seen: list[object] = []
        async with served() as s:
            s.manager.on_tick.append(seen.append)
            peer, connection = await s.connect()
            await asyncio.gather(answer(peer), s.manager.close_now([connection], NORMAL))
            loop, ticks = asyncio.get_running_loop(), asyncio.Queue[int]()
            for seconds in (0.1, 0.2):  # the last tick with a connection is over by the first
                loop.call_later(seconds, lambda: ticks.put_nowait(len(seen)))

            assert await ticks.get() == await ticks.get()


class TestFirstFrames:
    async def test_whose(self) -> None:
        """write_first() closes those that began before the order, except the one left out."""
        async with served() as s:
            found = [await s.connect("/echo?id=a") for _ in range(4)]
            (told, old), (_, new), (_, late), (_, spared) = found
            new.lineage = new.lineage._replace(began=5.0)
            late.started = old.started + 1.0
            written = s.manager.write_first(
                Subject("id", "a"), SESSION_ENDED, began=4.0, started=old.started, but=spared
            )
            assert list(written) == [old]
            assert await told.frame() == close_frame(SESSION_ENDED)
            assert {new.state, late.state, spared.state} == {OPEN}


class TestPush:
    async def test_who_takes_it(self) -> None:
        """A push is sent to open connections that take pushes, and to no others."""
        async with served() as s:
            (peer, takes), (other, refuses), (last, closing) = [
                await s.connect() for _ in range(3)
            ]
            refuses.takes_pushes = False
            s.manager.close_soon([closing], NORMAL)
            opening = handshake()
            s.manager.add_handshake(opening)
            pushed = s.manager.push([takes, refuses, closing, opening], "hello")
            s.manager.close_soon([takes, refuses], SESSION_ENDED)
            frames = [await answer(one) for one in (peer, other, last)]

            assert pushed == (1, 0)
            assert frames == [
                [(1, b"hello"), close_frame(SESSION_ENDED)],
                [close_frame(SESSION_ENDED)],
                [close_frame(NORMAL)],
            ]

    async def test_who_has_hung_up(self) -> None:
        """A push to a connection that is lost counts as neither delivered nor missed."""
        async with served() as s:
            _, connection = await s.connect()
            assert connection.transport is not None
            connection.transport.abort()

            assert s.manager.push([connection], "x") == (0, 0)

    async def test_compressed(self) -> None:
        """A push reaches a client that uses compression."""
        async with served(options={"compress": True}) as s:
            async with aiohttp.ClientSession() as session:
                ws = await session.ws_connect(s.url / "echo", compress=15)
                await until(lambda: s.manager.open.size)
                pushed = s.manager.push(s.manager.open, "hello")
                message = await ws.receive()
                await ws.close()

            assert (pushed, message.data) == ((1, 0), "hello")

    async def test_by_hand(self) -> None:
        """A push is sent to an object that has a send_frame(), and to no other object."""

        class Sink(Thing):
            taken: list[tuple[bytes, WSMsgType]] = []  # noqa: RUF012  one is made

            async def send_frame(self, payload: bytes, opcode: WSMsgType) -> None:
                self.taken.append((payload, opcode))

        async with served() as s:
            sink = Sink()
            s.manager.add_by_hand("a", sink)
            s.manager.add_by_hand("a", Thing())
            pushed = s.manager.push(s.manager.open, b"x")
            await until(lambda: sink.taken)

            assert pushed == (1, 0)
            assert sink.taken == [(b"x", WSMsgType.BINARY)]

    async def test_order(self) -> None:
        """A push doesn't overtake queued ones, and is missed if the queue is full."""
        queue = PushQueue(messages=2, patience=PATIENT.close)
        async with served(push_queue=queue) as s:
            peer, connection = await s.slow()
            transport = connection.transport
            assert transport is not None
            big = b"x" * 300_000
            results = [s.manager.push([connection], big)]
            await until(transport.get_write_buffer_size)
            results += [s.manager.push([connection], text) for text in ("one", "two")]
            frames = [await peer.frame() for _ in range(2)]

            assert results == [(1, 0), (1, 0), (0, 1)]
            assert frames == [(2, big), (1, b"one")]

    async def test_too_slow(self, caplog: pytest.LogCaptureFixture) -> None:
        """A connection that doesn't catch up is closed with 1013, and logged once."""
        timeouts = Timeouts(close=0.1, handler_grace=0.1)
        async with served(timeouts, push_queue=PushQueue(messages=1, patience=0.05)) as s:
            _, connection = await s.connect(receive_buffer=4096)
            transport = connection.transport
            assert transport is not None
            s.manager.push([connection], b"x" * 20_000_000)
            await until(transport.get_write_buffer_size)
            missed = [s.manager.push([connection], "x") for _ in range(3)]
            await until(lambda: connection.state in (CLOSING, CLOSED))

            assert missed == [(0, 1)] * 3
            assert connection.close_order is not None
            assert connection.close_order.code == 1013
            assert [r.levelno for r in caplog.records].count(logging.WARNING) == 1

    async def test_a_sender_that_is_cancelled(self) -> None:
        """Cancelling a handler's send doesn't stop the queue."""
        sending: list[asyncio.Task[None]] = []

        async def send(connection: TrackedConnection) -> None:
            await connection.ws.receive()
            task = asyncio.create_task(connection.ws.send_bytes(b"x" * 300_000))
            sending.append(task)
            await asyncio.wait({task})
            await connection.ws.receive()

        async with served(send=send) as s:
            peer, connection = await s.slow("/send")
            transport = connection.transport
            assert transport is not None
            await peer.say(1, b"go")
            await until(transport.get_write_buffer_size)
            big = s.manager.push([connection], b"y" * 300_000)
            await asyncio.sleep(0)
            sending[0].cancel()
            small = s.manager.push([connection], "last")
            frames = [await peer.frame() for _ in range(3)]

            assert (big, small) == ((1, 0), (1, 0))
            assert [len(frame[1]) for frame in frames if frame] == [300_000, 300_000, 4]
