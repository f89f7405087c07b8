"""
The Lua scripts: they merge records as a node does in memory, and number them.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from aiohttp_session_ws._lineage import Kind, Lineage, Subject
from aiohttp_session_ws.close_codes import RECONNECT
from aiohttp_session_ws.redis.decoding import read_message, read_numbers, read_order, read_record
from aiohttp_session_ws.redis.encoder import Encoder
from aiohttp_session_ws.redis.entries import AnyEntry, Entry, SubjectEntry
from aiohttp_session_ws.redis.io import scripts
from aiohttp_session_ws.redis.io.scripts import END_OTHERS, FIND, HEARTBEAT, LEAVE, WRITE, Script
from aiohttp_session_ws.redis.messages import CloseSession, PublishedOrder, Record, encode_record
from aiohttp_session_ws.redis.rows import Shape
from aiohttp_session_ws.sessions.records import (
    Change,
    IdNote,
    LineageEnded,
    LineageRenewed,
    Records,
    SubjectEnded,
)
from tests.support import PATIENCE

TAG = "{p}:"
KINDS: tuple[Kind, ...] = ("id", "id", "identity")


class Scripts:
    """Runs the scripts in Redis."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.encoder = Encoder("p", "a/1", lambda record: record)

    async def run(self, script: Script, *args: Any) -> Any:
        """Run a script."""
        return await self.client.eval(script.text, *args)

    async def write(self, *entries: AnyEntry) -> Any:
        """Write entries; return the merged records where Redis knew more."""
        args = self.encoder.arguments(entries, "orders")
        assert args is not None
        return await self.run(WRITE, *args)

    async def all_records(self) -> dict[bytes, Record | None]:
        """Return all records by their keys."""
        keys = [key async for key in self.client.scan_iter("{p}:*:*")]
        return {key: read_record(await self.client.get(key) or b"") for key in keys}

    async def end_others(
        self,
        lineage: Lineage,
        subjects: Sequence[Subject],
        since: float,
        deadline: float = math.inf,
    ) -> Any:
        """End other sessions, if the given one is alive."""
        changes = (SubjectEnded(Subject("identity", "ann"), 50.0, 60.0),)
        args = self.encoder.end_others_arguments(
            changes, "orders", lineage, subjects, since, 30.0, deadline
        )
        return await self.run(END_OTHERS, *args)

    async def beat(self, node: str = "a/1", *, serves: bool = True) -> list[bytes]:
        """Send a heartbeat."""
        answer: list[bytes] = await self.run(HEARTBEAT, 1, TAG, node, str(int(serves)), "epoch")
        return answer

    async def find(self, first: int, last: int, most: int = 100) -> tuple[int, set[bytes]]:
        """Return the number that the search reached, and the keys that it found."""
        reached, _, *found = await self.run(FIND, 1, TAG, first, last, most)
        return int(float(reached)), set(found[::2])


@pytest.fixture
async def redis(redis_port: int) -> AsyncIterator[Scripts]:
    """An empty Redis."""
    async with Redis(port=redis_port, db=7) as client:
        await client.flushdb()
        yield Scripts(client)
        await client.flushdb()


def change(rng: random.Random) -> Change:
    """Return a random change of one of a few lineages and ids."""
    token, at = f"t{rng.randrange(3)}", 1000 + rng.randrange(6) + 0.25
    ttl = 100.0 + rng.randrange(3)
    match rng.randrange(5):
        case 0:
            return LineageEnded(token, at, rng.random() < 0.5, ttl)
        case 1:
            login = rng.random() < 0.5
            seen, generation = rng.random() < 0.5, rng.randrange(1, 4)
            return LineageRenewed(token, generation, rng.randrange(3), at, login, seen, ttl)
        case 2:
            kind, value = rng.choice(["id", "identity"]), f"x{rng.randrange(3)}"
            return SubjectEnded(Subject(kind, value), at, ttl)  # type: ignore[arg-type]
    return IdNote(f"x{rng.randrange(3)}", token, at, ttl)


def single(rng: random.Random) -> SubjectEntry:
    """Return a random order that ends one of a few subjects, or closes its sockets."""
    ends, kinds = rng.random() < 0.7, KINDS
    shape = Shape(ends, rng.choice(kinds), RECONNECT, 100.0 + rng.randrange(3) if ends else 0.0)
    at = 1000 + rng.randrange(6) + 0.25
    return SubjectEntry(shape, at, f"x{rng.randrange(3)}", 0 if ends else rng.randrange(1, 9))


def entry(*changes: Change) -> Entry:
    """Return an entry of the outbox with some records."""
    return Entry(PublishedOrder(changes))


def essence(record: Record | None) -> Any:
    """Return a record without the fields that Redis keeps as the TTL of its key."""
    match record:
        case LineageEnded(token, at, carries):
            return token, at, carries
        case LineageRenewed() | SubjectEnded() | IdNote():
            return record[:-1]
    return record


class TestMerge:
    async def test_as_in_memory(self, redis: Scripts) -> None:
        """Redis merges a random sequence of changes to the same records as memory."""
        rng = random.Random(11)
        for _ in range(60):
            await redis.client.flushdb()
            records = Records()
            for _ in range(rng.randrange(1, 14)):
                some = [change(rng) for _ in range(rng.randrange(1, 3))]
                for one in some:
                    records.merge(one)
                await redis.write(entry(*some))
            for record in records:
                text = await redis.client.get(TAG + encode_record(record).key)
                assert text is not None
                assert essence(read_record(text)) == essence(record)

    async def test_known(self, redis: Scripts) -> None:
        """Writing less than Redis knows returns the merged record; writing the same, nothing."""
        ended = LineageEnded("t", 5.0, carries=False, ttl=60.0)
        await redis.write(entry(ended))
        renewed = LineageRenewed("t", 1, 0, 6.0, True, seen=False, ttl=60.0)
        (known,) = await redis.write(entry(renewed))
        assert read_record(known) == ended
        assert await redis.write(entry(ended)) == []

    async def test_rows(self, redis: Scripts) -> None:
        """Orders in rows lead to the same records and the same reply as orders in full."""
        rng = random.Random(12)
        for _ in range(40):
            orders = [single(rng) for _ in range(rng.randrange(1, 12))]
            before = entry(*[change(rng) for _ in range(6)])
            kept = []
            for full in (False, True):
                await redis.client.flushdb()
                await redis.write(before)
                entries = [Entry(one.as_published_order("a/1")) if full else one for one in orders]
                known = await redis.write(*entries)
                kept.append((await redis.all_records(), sorted(known)))
            assert kept[0] == kept[1]

    @pytest.mark.parametrize("state", ["new", "list", "word", "thousandth"])
    async def test_alone(self, redis: Scripts, state: str) -> None:
        """A single order is recorded, numbered and filed as in full, whatever Redis contains."""
        rng = random.Random(state)
        for _ in range(20):
            orders, before = [single(rng) for _ in range(6)], entry(change(rng))
            kept = []
            for full in (False, True):
                await redis.client.flushdb()
                await redis.write(before)
                await redis.client.delete(f"{TAG}recent")
                if state == "list":
                    await redis.client.rpush(f"{TAG}recent", "foreign")
                elif state == "word":
                    await redis.client.set(f"{TAG}seq", "foreign")
                elif state == "thousandth":
                    await redis.client.set(f"{TAG}seq", scripts.MOST + 997)
                found: list[Any] = []
                for one in orders:
                    try:
                        known = await redis.write(
                            Entry(one.as_published_order("a/1")) if full else one
                        )
                        found.append(sorted(known))
                    except ResponseError as exc:
                        found.append(type(exc))
                numbers = await redis.client.get(f"{TAG}seq")
                floor = await redis.client.get(f"{TAG}floor")
                kept.append((await redis.all_records(), found, numbers, floor))
                if await redis.client.type(f"{TAG}recent") == b"zset":
                    found.append(await redis.client.zrange(f"{TAG}recent", 0, -1, withscores=True))
            assert kept[0] == kept[1]

    @pytest.mark.parametrize("ends", [False, True])
    async def test_alone_refused(self, redis: Scripts, ends: bool) -> None:
        """A single order that can't be recorded is published without a number."""
        shape = Shape(ends=ends, kind="id", close=RECONNECT, ttl=60.0)
        await redis.client.set(f"{TAG}seq", "foreign")
        async with redis.client.pubsub() as pubsub:
            await pubsub.subscribe("orders")
            with pytest.raises(ResponseError):
                await redis.write(SubjectEntry(shape, 5.0, "x", 0 if ends else 1))
            assert (await _message(pubsub)).startswith(b"0:0\n{")

    @pytest.mark.parametrize("way", ["alone", "row", "full"])
    async def test_a_close_order_that_comes_late(self, redis: Scripts, way: str) -> None:
        """A close order that arrives after a later one doesn't replace it, but has a number."""
        shape = Shape(ends=False, kind="id", close=RECONNECT, ttl=0.0)
        await redis.write(SubjectEntry(shape, 9.0, "x", 1))
        late = SubjectEntry(shape, 5.0, "x", 2)
        match way:
            case "alone":
                await redis.write(late)
            case "row":
                await redis.write(late, SubjectEntry(shape, 5.0, "y", 3))
            case "full":
                await redis.write(Entry(late.as_published_order("a/1")))
        record = read_record(await redis.client.get(TAG + 'close:id:"x"') or b"")

        assert record == CloseSession(Subject("id", "x"), "a/1/1", 9.0, RECONNECT)
        assert await redis.client.get(TAG + "seq") == (b"3" if way == "row" else b"2")

    async def test_row_over_others(self, redis: Scripts) -> None:
        """Values of another type under its keys don't stop a row."""
        for key in ('end:id:"x"', 'of:"x"', 'close:id:"x"'):
            await redis.client.lpush(TAG + key, "foreign")
        await redis.write(
            SubjectEntry(Shape(ends=True, kind="id", close=RECONNECT, ttl=60.0), 5.0, "x"),
            SubjectEntry(Shape(ends=False, kind="id", close=RECONNECT, ttl=0.0), 5.0, "x", 1),
        )
        for key in ('end:id:"x"', 'close:id:"x"'):
            assert read_record(await redis.client.get(TAG + key) or b"") is not None

    async def test_other_version(self, redis: Scripts) -> None:
        """A record of another version is overwritten by an end, but not by a renewal."""
        await redis.client.set(TAG + 'lineage:"t"', "[2,true]")
        renewed = LineageRenewed("t", 1, 0, 6.0, True, seen=False, ttl=60.0)
        await redis.write(entry(renewed))
        assert await redis.client.get(TAG + 'lineage:"t"') == b"[2,true]"
        ended = LineageEnded("t", 5.0, carries=False, ttl=60.0)
        await redis.write(entry(ended))
        text = await redis.client.get(TAG + 'lineage:"t"')
        assert text is not None
        assert read_record(text) == ended


class TestPublish:
    async def test_numbers(self, redis: Scripts) -> None:
        """Each record gets a number, and is published with it."""
        async with redis.client.pubsub() as pubsub:
            await pubsub.subscribe("orders")
            subject = Subject("id", "x")
            await redis.write(
                Entry(
                    PublishedOrder(
                        (SubjectEnded(subject, 1.0, 60.0),),
                        (CloseSession(subject, "n", 1.0, RECONNECT),),
                    )
                ),
                entry(LineageEnded("t", 1.0, carries=False, ttl=60.0)),
            )
            message = await _message(pubsub)
        numbers = read_numbers(message)
        assert numbers is not None
        assert numbers[:2] == (1, 3)
        body = read_message(numbers[2])
        assert body is not None
        sender, orders = body
        assert (sender, len(orders)) == ("a/1", 2)
        assert all(read_order(order) for order in orders)
        reached, keys = await redis.find(1, 3)
        assert reached == 3
        assert keys == {b'{p}:end:id:"x"', b'{p}:close:id:"x"', b'{p}:lineage:"t"'}

    async def test_derived(self, redis: Scripts) -> None:
        """A record that Redis itself derives from others is published, too."""
        await redis.write(entry(IdNote("x", "t", 3.0, 60.0)))
        async with redis.client.pubsub() as pubsub:
            await pubsub.subscribe("orders")
            await redis.write(entry(SubjectEnded(Subject("id", "x"), 5.0, 60.0)))
            _ = await _message(pubsub)
            message = await _message(pubsub)
        numbers = read_numbers(message)
        assert numbers is not None
        assert numbers[:2] == (3, 3)
        body = read_message(numbers[2])
        assert body is not None
        assert body[0] == ""
        order = read_order(body[1][0])
        assert order is not None
        assert order.changes == (LineageEnded("t", 5.0, carries=False, ttl=60.0),)

    async def test_many(self, redis: Scripts) -> None:
        """An order may have more records than Lua can pass to a command at once."""
        changes = [LineageEnded(f"t{n}", 1.0, carries=False, ttl=60.0) for n in range(5000)]
        await redis.write(entry(*changes))
        assert await redis.client.get("{p}:seq") == b"5000"
        first, keys = await redis.find(1, 5000, 300)
        assert (first, len(keys)) == (500, 500)


async def _message(pubsub: Any) -> bytes:
    async with asyncio.timeout(PATIENCE):
        async for message in pubsub.listen():
            if message["type"] == "message":
                data: bytes = message["data"]
                return data
    raise AssertionError("no message")


class TestEndOthers:
    ME = Lineage("me", 2, 10.0)
    SUBJECTS = (Subject("id", "x"), Subject("identity", "ann"), Subject("label", "phone"))

    async def test_alive(self, redis: Scripts) -> None:
        """A session without any records may end the others, once."""
        assert await redis.end_others(self.ME, self.SUBJECTS, 10.0) == 1
        assert await redis.end_others(self.ME, self.SUBJECTS, 10.0) == 0

    @pytest.mark.parametrize(
        "record",
        [
            LineageEnded("me", 1.0, carries=True, ttl=60.0),
            LineageRenewed("me", 3, 0, 1.0, False, seen=True, ttl=60.0),
            LineageRenewed("me", 4, 3, 1.0, False, seen=False, ttl=60.0),
            SubjectEnded(Subject("id", "x"), 10.0, 60.0),
            SubjectEnded(Subject("identity", "ann"), 10.0, 60.0),
            SubjectEnded(Subject("label", "phone"), 10.0, 60.0),
        ],
    )
    async def test_over(self, redis: Scripts, record: Change) -> None:
        """A session that has ended or was replaced doesn't end the others."""
        await redis.write(entry(record))
        assert await redis.end_others(self.ME, self.SUBJECTS, 10.0) == 0
        ended = await redis.client.get('{p}:end:identity:"ann"')
        assert ended is None or b"50.0" not in ended

    @pytest.mark.parametrize(
        "record",
        [
            LineageRenewed("me", 2, 1, 1.0, False, seen=True, ttl=60.0),
            LineageRenewed("me", 3, 2, 1.0, False, seen=False, ttl=60.0),
            SubjectEnded(Subject("id", "x"), 9.0, 60.0),
            SubjectEnded(Subject("identity", "ann"), 9.0, 60.0),
            SubjectEnded(Subject("label", "phone"), 9.0, 60.0),
        ],
    )
    async def test_lives(self, redis: Scripts, record: Change) -> None:
        """A session that is the newest generation, or began after an end, may end the others."""
        await redis.write(entry(record))
        assert await redis.end_others(self.ME, self.SUBJECTS, 10.0) == 1

    async def test_since(self, redis: Scripts) -> None:
        """Only an end of the identity after the request's arrival concerns the session."""
        await redis.write(entry(SubjectEnded(Subject("identity", "ann"), 15.0, 60.0)))
        assert await redis.end_others(self.ME, self.SUBJECTS, 10.0) == 0
        assert await redis.end_others(self.ME, self.SUBJECTS, 20.0) == 1

    @pytest.mark.parametrize("subject", [Subject("id", "x"), Subject("label", "phone")])
    async def test_since_it_began(self, redis: Scripts, subject: Subject) -> None:
        """An end of the id or a label concerns the session even before the request's arrival."""
        await redis.write(entry(SubjectEnded(subject, 15.0, 60.0)))
        assert await redis.end_others(self.ME, self.SUBJECTS, 20.0) == 0

    async def test_too_late(self, redis: Scripts) -> None:
        """After the deadline nothing is ended."""
        seconds, _ = await redis.client.time()
        assert await redis.end_others(self.ME, self.SUBJECTS, 10.0, seconds) == 0
        assert await redis.end_others(self.ME, self.SUBJECTS, 10.0, seconds + 3600.0) == 1

    async def test_refused(self, redis: Scripts) -> None:
        """An order that can't be recorded raises an error, and isn't published."""
        await redis.client.set(f"{TAG}seq", "foreign")
        async with redis.client.pubsub() as pubsub:
            await pubsub.subscribe("orders")
            with pytest.raises(ResponseError):
                await redis.end_others(self.ME, self.SUBJECTS, 10.0)
            await redis.client.publish("orders", "the first")
            assert await _message(pubsub) == b"the first"


class TestHeartbeat:
    async def test_members(self, redis: Scripts) -> None:
        """The list of members has a new version whenever a node joins or leaves."""
        versions = [(await redis.beat())[4]]
        versions.append((await redis.beat())[4])
        versions.append((await redis.beat("b/1"))[4])
        versions.append((await redis.beat("script/1", serves=False))[4])
        await redis.run(LEAVE, 1, TAG, "b/1")
        versions.append((await redis.beat())[4])
        assert versions == [b"1", b"1", b"2", b"2", b"3"]
        assert await redis.client.zrange("{p}:nodes", 0, -1) == [b"a/1"]

    async def test_lost(self, redis: Scripts) -> None:
        """A Redis that has lost its data has another epoch, and counts anew."""
        await redis.write(entry(LineageEnded("t", 1.0, carries=False, ttl=60.0)))
        before = await redis.beat()
        await redis.client.flushdb()
        await redis.run(HEARTBEAT, 1, TAG, "a/1", "1", "another")
        after = await redis.beat()
        assert (before[1], after[1]) == (b"1", b"0")
        assert before[2] != after[2]
        assert before[3] == after[3] != b""

    async def test_trimmed(self, redis: Scripts) -> None:
        """A record from long ago can't be found by its number any more, which is reported."""
        for n in range(5):
            await redis.write(entry(LineageEnded(f"t{n}", 1.0, carries=False, ttl=60.0)))
        await redis.beat()
        marks: Any = await redis.client.zrange("{p}:marks", 0, -1, withscores=True)
        (mark, score), *_ = marks
        assert mark == b"5"
        await redis.client.zadd("{p}:marks", {mark: score - scripts.KEPT - 1})
        await redis.write(entry(LineageEnded("new", 1.0, carries=False, ttl=60.0)))
        await redis.beat()
        assert (await redis.run(FIND, 1, TAG, 1, 6, 100))[:2] == [b"6", b"5"]
        assert (await redis.find(1, 6))[1] == {b'{p}:lineage:"new"'}

    @pytest.mark.parametrize("batch", [1, 5])
    async def test_counted_anew(self, redis: Scripts, batch: int) -> None:
        """If only the last number was lost, new numbers find no records that had them before."""
        for n in range(30):
            await redis.write(SubjectEntry(Shape(True, "id", RECONNECT, 60.0), 1.0, f"old {n}"))
        await redis.beat()
        await redis.client.set("{p}:floor", 20)
        await redis.client.delete("{p}:seq")
        new = [
            SubjectEntry(Shape(True, "id", RECONNECT, 60.0), 2.0, f"new {n}") for n in range(25)
        ]
        for n in range(0, 25, batch):
            await redis.write(*new[n : n + batch])
        found: set[bytes] = set()
        first = 1
        while first <= 25:  # a few records at a time
            reached, keys = await redis.find(first, 25, 3)
            first, found = reached + 1, found | keys
        assert found == {f'{{p}}:end:id:"new {n}"'.encode() for n in range(25)}
        assert await redis.client.get("{p}:floor") is None
        assert await redis.client.zcard("{p}:marks") == 0

    async def test_ttl(self, redis: Scripts) -> None:
        """A heartbeat returns the longest TTL of any node, until that expires."""
        told = []
        for own in (0, 500, 900, 500, 0):
            answer: Any = await redis.run(HEARTBEAT, 1, TAG, "a/1", "1", "epoch", "", own)
            told.append(int(answer[7]))
            await redis.client.expire("{p}:ttl", 7)
        assert told == [0, 500, 900, 900, 900]
        assert await redis.client.ttl("{p}:ttl") <= 7  # no node that needs it sends heartbeats
        assert int((await redis.run(HEARTBEAT, 1, TAG, "a/1", "1", "epoch", "", 900))[7]) == 900
        assert await redis.client.ttl("{p}:ttl") > 7

    async def test_ttl_unreadable(self, redis: Scripts) -> None:
        """An invalid value under the key of the TTL is replaced."""
        for make in (redis.client.set, redis.client.lpush):
            await redis.client.delete("{p}:ttl")
            await make("{p}:ttl", "x")
            assert (await redis.beat())[7] == b"0"
            answer: Any = await redis.run(HEARTBEAT, 1, TAG, "a/1", "1", "epoch", "", 500)
            assert (answer[5], answer[7]) == (b"", b"500")

    async def test_clock_ahead(self, redis: Scripts) -> None:
        """The largest difference that a node has reported after a set-back counts for all."""
        times = []
        for ahead in ("0.000000", "70.500000", "3.000000", ""):
            answer: Any = await redis.run(HEARTBEAT, 1, TAG, "a/1", "1", "epoch", ahead)
            times.append((float(answer[0]), float(answer[6])))
        assert [ahead for _, ahead in times] == [0.0, 70.5, 70.5, 70.5]
        (first, _), *rest = times
        assert all(70.5 <= at - first < 80.5 for at, _ in rest)

    @pytest.mark.parametrize(
        ("ahead", "untold"), [("0.000000", 0.0), ("", scripts.MAX_CLOCK_ADVANCE)]
    )
    async def test_clock_goes_on(self, redis: Scripts, ahead: str, untold: float) -> None:
        """The time never runs back, even if no node is left that reports the difference."""
        last = float((await redis.beat())[0]) + 500.0
        await redis.client.set("{p}:clock", f"0.000000 {last:.6f}")
        answer: Any = await redis.run(HEARTBEAT, 1, TAG, "b/1", "1", "epoch", ahead)
        assert float(answer[0]) == pytest.approx(last + untold, abs=1e-3)
        assert float((await redis.beat())[0]) > float(answer[0])

    async def test_clock_unreadable(self, redis: Scripts) -> None:
        """An invalid value under the key of the clock is replaced."""
        for make in (redis.client.set, redis.client.lpush):
            await redis.client.delete("{p}:clock")
            await make("{p}:clock", "x")
            assert float((await redis.beat())[6]) == 0.0
            assert (await redis.beat())[5] == b""
