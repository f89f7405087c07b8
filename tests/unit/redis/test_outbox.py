"""
The outbox: orders that time out, that Redis refuses to record, or that are lost on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ResponseError

from aiohttp_session_ws.close_codes import SESSION_ENDED
from aiohttp_session_ws.exceptions import RedisUnavailable
from aiohttp_session_ws.redis.encoder import Encoder, body_of
from aiohttp_session_ws.redis.entries import Entry, SubjectEntry
from aiohttp_session_ws.redis.io import outbox as module, watchdog
from aiohttp_session_ws.redis.io.outbox import Outbox
from aiohttp_session_ws.redis.io.scripts import Script
from aiohttp_session_ws.redis.messages import PublishedOrder
from aiohttp_session_ws.redis.rows import Shape
from aiohttp_session_ws.sessions.records import LineageEnded
from tests.support import PATIENCE, until


class Line:
    """A fake connection to Redis, whose replies a test decides."""

    def __init__(self, answer: Callable[[list[str]], Any]) -> None:
        self.answer = answer
        self.batches: list[list[str]] = []
        self.bodies: list[bytes] = []
        self.waiting: list[asyncio.Future[Any]] = []

    def channel(self, name: str) -> str:
        """Return the name of a channel."""
        return name

    def run(self, script: Script, *args: Any) -> asyncio.Future[Any]:
        """Record a run of a script; reply with the test's answer, or never if that is None."""
        count = int(args[0]) - 1
        keys = [str(key).rpartition(":")[2] for key in args[2 : 2 + count]]
        self.batches.append(keys)
        self.bodies.append(body_of(args) if args[count + 4] else b"")
        future = asyncio.get_running_loop().create_future()
        answer = self.answer(keys)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        elif answer is not None:
            future.set_result(answer)
        else:
            self.waiting.append(future)
        return future


class Box:
    """An outbox with a fake connection."""

    def __init__(
        self,
        answer: Callable[[list[str]], Any],
        monkeypatch: Any,
        wait: Callable[[], float] = lambda: 0.0,
    ) -> None:
        monkeypatch.setattr(watchdog, "REPLY_TIMEOUT", 0.05)
        monkeypatch.setattr(module, "SOON", 0.01)
        monkeypatch.setattr(module, "MAX_RETRY_DELAY", 0.1)
        encoder = Encoder("p", "a/1", lambda record: record)
        self.published: list[bytes] = []
        told = self.published.append
        self.outbox = Outbox(lambda: None, "p", encoder, lambda _: None, told, wait)  # type: ignore[arg-type, return-value]
        self.line = Line(answer)
        self.outbox.link.drop = self.reconnect  # type: ignore[method-assign]

    def connect(self) -> None:
        """Connect the outbox."""
        self.outbox.link.line = self.line  # type: ignore[assignment]
        self.outbox.connected(self.line)  # type: ignore[arg-type]

    def reconnect(self, why: str) -> None:
        """Fail all pending replies and connect again, as after a failure."""
        for future in self.line.waiting:
            if not future.done():
                future.set_exception(RedisUnavailable(why))
                _ = future.exception()
        self.line.waiting.clear()
        asyncio.get_running_loop().call_soon(self.connect)

    @property
    def told(self) -> int:
        """How many orders were published."""
        return sum(body.count(b'"ended"') for body in self.line.bodies)

    def put(self, *names: str) -> list[Entry]:
        """Put an order for each name, which ends a lineage."""
        changes = [LineageEnded(name, 1.0, carries=False, ttl=60.0) for name in names]
        entries = [Entry(PublishedOrder((change,))) for change in changes]
        for entry in entries:
            self.outbox.put(entry)
        return entries

    def put_single(self, name: str) -> list[SubjectEntry]:
        """Put an order that ends one id and does nothing else."""
        entry = SubjectEntry(Shape(ends=True, kind="id", close=SESSION_ENDED, ttl=60.0), 1.0, name)
        self.outbox.put(entry)
        return [entry]


class TestOutbox:
    async def test_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An order is sent in the same turn of the event loop in which it is put."""
        box = Box(lambda keys: [], monkeypatch)
        box.connect()
        box.put("x")
        assert box.line.batches == [['"x"']]
        assert await box.outbox.drain(1.0) == []
        assert len(box.published) == 1

    async def test_in_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Orders that wait for a tick are sent together; a full batch doesn't wait."""
        waits = [0.02]
        box = Box(lambda keys: [], monkeypatch, lambda: waits[0])
        box.connect()
        entries = box.put("x", "y")
        assert box.line.batches == []
        await entries[1].wait(20)
        assert box.line.batches == [['"x"', '"y"']]
        waits[0] = 3600.0
        entries = box.put(*[f"n{n}" for n in range(module.BATCH)])
        await entries[-1].wait(20)
        assert entries[-1].stored
        waits[0] = 0.0
        box.put("z")
        assert box.line.batches[-1] == ['"z"']

    async def test_poison(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An order that times out is found by halving its batch, and doesn't block the others."""
        poison = '"n13"'
        box = Box(lambda keys: None if poison in keys else [], monkeypatch)
        entries = box.put(*[f"n{n}" for n in range(40)])
        box.connect()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*[e.wait(20) for n, e in enumerate(entries) if n != 13])
        assert not entries[13].stored
        late = box.put("later")
        await late[0].wait(20)
        assert late[0].stored
        box.line.answer = lambda keys: []
        assert await box.outbox.drain(20) == []
        assert entries[13].stored

    @pytest.mark.parametrize("alone", [False, True])
    async def test_refused(self, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
        """An order that Redis refuses to record is published once, kept, and recorded later."""
        box = Box(lambda keys: OutOfMemoryError("command not allowed"), monkeypatch)
        box.connect()
        entries = box.put_single("x") if alone else box.put("x", "y")
        await until(lambda: len(box.line.batches) >= 8)
        assert len(box.outbox) == len(entries)
        assert all(entry.published and not entry.stored for entry in entries)
        told = [body for body in box.line.bodies if body]
        assert len(told) == len(entries)
        box.line.answer = lambda keys: []
        assert await box.outbox.drain(20) == []
        assert all(entry.stored for entry in entries)

    async def test_refused_with_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A new order that is refused together with a published one is published, too."""
        monkeypatch.setattr(module, "MAX_RETRY_DELAY", 3600.0)
        box = Box(lambda keys: OutOfMemoryError("command not allowed"), monkeypatch)
        box.connect()
        box.put("x")
        await until(lambda: len(box.line.batches) >= 2)
        box.line.answer = lambda keys: None
        await until(lambda: box.line.waiting)
        box.outbox.link.line = None
        box.put("y")
        box.line.answer = lambda keys: OutOfMemoryError("command not allowed")
        box.reconnect("cut")
        await until(lambda: any(b'"y"' in body for body in box.line.bodies))
        box.outbox.stop()

    async def test_published_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``publish_again()`` publishes a refused order once more, whatever state it is in."""
        answers: list[Any] = [OutOfMemoryError("command not allowed")]
        box = Box(lambda keys: answers[0], monkeypatch)
        box.connect()
        box.put("x")
        for how in ("aside", "on its way", "published on its way", "cut off"):
            await until(lambda: len(box.line.batches) >= 2)
            if how != "aside":
                answers[0] = None
                await until(lambda: box.line.waiting)
            if how == "published on its way":  # perhaps before a node subscribed
                box.outbox.publish_again()
                answers[0] = OutOfMemoryError("command not allowed")
                box.line.waiting.pop().set_exception(answers[0])
                answers[0] = None
                await until(lambda: box.line.waiting)
            if how == "cut off":
                box.outbox.link.line = None
                box.outbox.disconnected("cut")
                answers[0] = OutOfMemoryError("command not allowed")
                box.line.waiting.clear()
            box.line.bodies.clear()
            box.outbox.publish_again()
            if how == "cut off":
                box.connect()
            answers[0] = OutOfMemoryError("command not allowed")
            for future in box.line.waiting:
                future.set_exception(answers[0])
            box.line.waiting.clear()
            await until(lambda: len(box.line.bodies) >= 4)
            assert len([body for body in box.line.bodies if body]) == 1
        box.outbox.stop()

    async def test_published_again_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``publish_again()`` publishes many refused orders at once, not with one retry each."""
        box = Box(lambda keys: OutOfMemoryError("command not allowed"), monkeypatch)
        box.connect()
        count = 5 * module.BATCH
        entries = box.put(*[f"n{n}" for n in range(count)])
        await until(lambda: all(entry.published for entry in entries))
        box.line.bodies.clear()
        box.outbox.publish_again()
        assert box.told >= count - module.BATCH  # one retry may be in flight
        box.outbox.stop()

    async def test_published_again_after_a_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``publish_again()`` also publishes an order whose retry was lost with the connection."""
        answers: list[Any] = [OutOfMemoryError("command not allowed")]
        box = Box(lambda keys: answers[0], monkeypatch)
        box.connect()
        box.put("x")
        await until(lambda: box.outbox.refused)
        answers[0] = None
        await until(lambda: box.line.waiting)
        box.outbox.disconnected("cut")
        box.outbox.publish_again()
        box.line.bodies.clear()
        box.reconnect("cut")
        await until(lambda: box.line.bodies)
        assert b'"x"' in box.line.bodies[0]
        box.outbox.stop()

    @pytest.mark.parametrize(
        "error", [ResponseError("BUSY Redis is busy"), BusyLoadingError("Redis is loading")]
    )
    async def test_busy(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        """Orders that a busy Redis rejects are retried together, not one by one."""
        box = Box(lambda keys: error, monkeypatch)
        box.connect()
        entries = [box.put(f"n{n}")[0] for n in range(100)]
        await until(lambda: len(box.line.batches) > 8)
        assert not any(entry.alone or entry.published for entry in entries)
        tried = len(box.line.batches)
        box.line.answer = lambda keys: []
        assert await box.outbox.drain(20) == []
        assert all(entry.stored for entry in entries)
        assert len(box.line.batches) <= tried + 3

    async def test_one_after_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Orders that were set aside alone are retried at once when one of them succeeds."""
        monkeypatch.setattr(module, "MAX_RETRY_DELAY", 3600.0)
        box = Box(lambda keys: ResponseError("ERR whatever"), monkeypatch)
        box.connect()
        entries = [box.put(f"n{n}")[0] for n in range(100)]
        await until(lambda: all(entry.alone for entry in entries))
        box.line.answer = lambda keys: []
        assert await box.outbox.drain(20) == []

    async def test_idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``wait_idle()`` ignores an order that can't be recorded: lost records needn't wait."""
        poison = '"n3"'
        box = Box(lambda keys: None if poison in keys else [], monkeypatch)
        box.connect()
        box.put(*[f"n{n}" for n in range(10)])
        async with asyncio.timeout(PATIENCE):
            await box.outbox.wait_idle()
        assert len(box.outbox) == 1
        box.outbox.stop()

    async def test_idle_while_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``wait_idle()`` waits while Redis refuses writes: rewritten records would pile up."""
        box = Box(lambda keys: OutOfMemoryError("command not allowed"), monkeypatch)
        box.connect()
        box.put("x")
        idle = asyncio.create_task(box.outbox.wait_idle())
        await until(lambda: len(box.line.batches) >= 3)
        assert not idle.done()
        box.line.answer = lambda keys: []
        await idle

    @pytest.mark.parametrize("order", ["before the others", "behind one"])
    async def test_alone_after_a_cut(self, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
        """An order that timed out is sent alone, also after a reconnect."""
        poison, first = '"n1"', order == "before the others"
        box = Box(lambda keys: None if poison in keys else [], monkeypatch)
        box.connect()
        entries = box.put("n0", "n1", "n2")
        await until(lambda: entries[1].alone and not box.line.waiting)
        monkeypatch.setattr(watchdog, "REPLY_TIMEOUT", 3600.0)
        box.line.answer = lambda keys: None
        if not first:
            box.put("n3")
        await until(lambda: box.line.batches[-1] == [poison])
        if first:
            box.put("n3", "n4")
        box.outbox.disconnected("cut")
        box.line.batches.clear()
        box.reconnect("cut")
        await until(lambda: len(box.line.batches) >= 2)
        assert box.line.batches == (
            [[poison], ['"n3"', '"n4"']] if first else [['"n3"'], [poison]]
        )
        box.outbox.stop()

    async def test_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The timeout of a batch starts anew when Redis replies to another one."""
        loop, ahead = asyncio.get_running_loop(), 0.0
        real, dropped = loop.time, list[str]()
        box = Box(lambda keys: None, monkeypatch)
        monkeypatch.setattr(watchdog, "REPLY_TIMEOUT", 3600.0)
        monkeypatch.setattr(watchdog, "STALL", 1e9)
        monkeypatch.setattr(loop, "time", lambda: real() + ahead)
        box.outbox.link.drop = dropped.append  # type: ignore[method-assign, assignment]
        box.connect()
        box.put("a", "b")
        ahead = 3000.0
        box.line.waiting[0].set_result([])
        await until(lambda: len(box.outbox) == 1)
        ahead = 5000.0
        for _ in range(10):
            await asyncio.sleep(0)
        assert not dropped
        ahead = 7000.0
        await until(lambda: dropped)
        box.outbox.stop()

    async def test_stall(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stall of this process times out no batch: its reply may be there, but not read yet."""
        loop, ahead = asyncio.get_running_loop(), 0.0
        real, dropped = loop.time, list[str]()
        box = Box(lambda keys: None, monkeypatch)
        monkeypatch.setattr(watchdog, "REPLY_TIMEOUT", 3600.0)
        monkeypatch.setattr(loop, "time", lambda: real() + ahead)
        box.outbox.link.drop = dropped.append  # type: ignore[method-assign, assignment]
        box.connect()
        box.put("a")
        ahead = 9000.0
        for _ in range(10):
            await asyncio.sleep(0)
        box.line.waiting[0].set_result([])
        assert await box.outbox.drain(20) == []
        assert not dropped

    async def test_answered_too_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A reply in the turn that drops the connection is ignored; the order is sent again."""
        box, failures = Box(lambda keys: None, monkeypatch), list[Any]()
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
        box.connect()
        entries = box.put("a")
        box.line.waiting.pop().set_result([])
        box.outbox.disconnected("cut")
        box.line.answer = lambda keys: []
        box.reconnect("cut")
        assert await box.outbox.drain(20) == []
        assert entries[0].stored
        assert len(box.line.batches) == 2
        assert not failures

    async def test_in_script(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A refusal of Redis 6.2, with its code word behind the position, is recognized."""
        error = ResponseError("Error running script (call to f_1): @user_script:9: -MISCONF Disk")
        box = Box(lambda keys: error, monkeypatch)
        box.connect()
        box.put("x")
        await until(lambda: box.outbox.refused == "MISCONF")
        box.outbox.stop()

    async def test_broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Orders that were in flight when the connection broke are sent again, in their order."""
        box = Box(lambda keys: None, monkeypatch)
        box.connect()
        entries = box.put("a", "b", "c")
        box.line.answer = lambda keys: []
        box.outbox.disconnected("cut")
        box.reconnect("cut")
        assert await box.outbox.drain(20) == []
        assert all(entry.stored for entry in entries)
        assert [key for keys in box.line.batches[2:] for key in keys] == ['"a"', '"b"', '"c"']

    async def test_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond its limit the outbox drops the oldest orders."""
        monkeypatch.setattr(module, "DEPTH", 3)
        box = Box(lambda keys: [], monkeypatch)
        box.put("a", "b", "c", "d")
        left = await box.outbox.drain(0.01)
        assert [entry.order.changes[0].token for entry in left] == ["b", "c", "d"]  # type: ignore[union-attr]
