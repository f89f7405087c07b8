"""
Records and orders as text for Redis: decoding is the inverse of encoding.
"""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from aiohttp_session_ws._lineage import Lineage, Subject
from aiohttp_session_ws.close_codes import RECONNECT, Close
from aiohttp_session_ws.redis import rows
from aiohttp_session_ws.redis.decoding import (
    read_message,
    read_numbers,
    read_order,
    read_record,
)
from aiohttp_session_ws.redis.encoder import Encoder, Message, body_of
from aiohttp_session_ws.redis.entries import SubjectEntry
from aiohttp_session_ws.redis.messages import (
    CloseSession,
    PublishedOrder,
    Record,
    encode_record,
    envelope,
    keys_of_lookup,
    order_text,
)
from aiohttp_session_ws.redis.rows import (
    Row,
    Shape,
    SingleOrderDecoder,
    SingleOrderMessage,
    cell_text,
    is_row,
    orders_of,
    read_orders,
    read_row,
    row_text,
)
from aiohttp_session_ws.registry.order import Refresh
from aiohttp_session_ws.sessions.records import (
    IdNote,
    LineageEnded,
    LineageRenewed,
    SubjectEnded,
)

VALUES = ["plain", 'quoted " \\ \n', "half a pair \ud800", "☃", 7, -(2**70), ("a", 1, ("b",))]
ENDED = LineageEnded("tok", 1.25, carries=True, ttl=60.0, minor=False)
RECORDS: list[Record] = [
    ENDED,
    LineageEnded('tok"en', 1763740000.1234567, carries=False, ttl=3600.0, minor=True),
    LineageRenewed("t", 3, 2, 1.5, True, seen=True, ttl=9.0),
    LineageRenewed("t", 2**53, 0, 1.5, True, seen=False, ttl=9.5),
    *[SubjectEnded(Subject("id", value), 1.1, 60.0) for value in VALUES],
    SubjectEnded(Subject("label", ("device", "x,y")), 1.1, 60.0),
    *[IdNote(value, "to,k", 0.0, 60.0) for value in VALUES],
    CloseSession(Subject("identity", "ann"), "a/1/7", 2.5, Close(4000, 'moved, "house"')),
]


def text_of(order: PublishedOrder) -> str:
    """Encode an order by the JSON of its records."""
    changes, closes = (
        [encode_record(record).text for record in records]
        for records in (order.changes, order.closes)
    )
    return order_text(order, changes, closes)


class TestRecords:
    @pytest.mark.parametrize("number", range(len(RECORDS)))
    def test_round_trip(self, number: int) -> None:
        """A record is decoded as it was encoded, to the last digit."""
        record = RECORDS[number]
        assert read_record(encode_record(record).text) == record

    def test_key(self) -> None:
        """A look-up asks for exactly the keys of the records about its lineage and subjects."""
        ended = encode_record(SubjectEnded(Subject("id", "x"), 1.0, 1.0)).key
        note = encode_record(IdNote("x", "t", 1.0, 1.0)).key
        lineage = encode_record(LineageEnded("t", 1.0, carries=False, ttl=1.0)).key
        close = encode_record(CloseSession(Subject("id", "x"), "n", 1.0, RECONNECT)).key
        keys = keys_of_lookup("t", [Subject("id", "x")], closes=True)
        assert sorted(keys) == sorted([ended, note, lineage, close])

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "7",
            "null",
            "{}",
            "[1]",
            '[2,"ended",1,0,9,0,"x"]',
            '[1,"ended",1,0,9,0,7]',
            '[1,"ended",1,0,0,0,"x"]',
            '[1,"ended",NaN,0,9,0,"x"]',
            '[1,"renewed",-1,0,1,1,0,9,"x"]',
            '[1,"renewed",1.5,0,1,1,0,9,"x"]',
            '[1,"renewed",1,0,1,9,0,9,"x"]',
            '[1,"before",1,9,["nobody","x"]]',
            '[1,"before",1,9,["id",null]]',
            '[1,"before",1,9,["id",{}]]',
            '[1,"improved","x"]',
            b"\xff",
        ],
    )
    def test_unreadable(self, text: str | bytes) -> None:
        """A record of another version or kind, or with invalid values, is decoded as None."""
        assert read_record(text) is None


class TestOrders:
    def test_round_trip(self) -> None:
        """An order with all its parts is decoded as it was encoded."""
        changes = [r for r in RECORDS if not isinstance(r, CloseSession)]
        closes = [r for r in RECORDS if isinstance(r, CloseSession)]
        refresh = Refresh(Lineage("t", 4, 1.5), ("a", 1), 2.5, ("a", 0))
        order = PublishedOrder(
            tuple(changes),
            tuple(closes),
            Close(4001, "why"),
            "the operator",
            "17",
            refresh,
            held=True,
        )
        assert read_order(text_of(order)) == order

    @pytest.mark.parametrize("how", [{}, {"held": True}, {"written_back": True}])
    def test_short(self, how: dict[str, bool]) -> None:
        """An order with nothing but what it ends is decoded as it was encoded."""
        order = PublishedOrder((ENDED,), **how)  # type: ignore[arg-type]
        assert read_order(text_of(order)) == order

    @pytest.mark.parametrize("more", [",7]", "]7", "] [[],[]]"])
    def test_more(self, more: str) -> None:
        """An order with unknown parts is decoded as None: it isn't carried out in part."""
        refresh = Refresh(Lineage("t", 4, 1.5), ("a", 1), 2.5, ("a", 0))
        text = text_of(PublishedOrder((ENDED,), refresh=refresh))
        assert read_order(text) is not None
        assert read_order(text.removesuffix("]") + more) is None

    def test_message(self) -> None:
        """A message has its numbers, its sender, and an order on each line."""
        changes = [r for r in RECORDS if not isinstance(r, CloseSession)]
        orders = [text_of(PublishedOrder((change,))) for change in changes[:4]]
        body = envelope("a/1", orders).encode()
        assert read_numbers(b"9:4\n" + body) == (6, 9, body)
        assert read_numbers(b"0:0\n" + body) == (0, 0, body)
        assert read_message(body) == ("a/1", orders)

    @pytest.mark.parametrize("ends", [False, True])
    def test_row(self, ends: bool) -> None:
        """The orders of a row are decoded as they were given, at once or one by one."""
        shape = Shape(ends, "id", Close(4000, 'moved, "house"\t'), 60.5 if ends else 0.0)
        times = [1763740000.1234567 + n for n in range(len(VALUES))]
        cells = [cell_text(at, value) for at, value in zip(times, VALUES, strict=True)]
        line = row_text(shape, 0 if ends else 7, cells)
        assert is_row(line)
        assert read_row(line) == (shape, 0 if ends else 7, times, VALUES)
        orders = read_orders(line, "a/1")
        assert orders is not None
        for number, order in enumerate(orders):
            subject = Subject("id", VALUES[number])
            if ends:
                end = SubjectEnded(subject, times[number], 60.5)
                assert order == PublishedOrder((end,), (), shape.close)
            else:
                close = CloseSession(subject, f"a/1/{7 + number}", times[number], shape.close)
                assert order == PublishedOrder((), (close,))

    def test_message_of_rows(self) -> None:
        """A message keeps the sequence of its orders, and the positions of its rows are right."""
        message = Message("a/1")
        closes = Shape(ends=False, kind="id", close=RECONNECT, ttl=0.0)
        ends = Shape(ends=True, kind="label", close=RECONNECT, ttl=9.0)
        for number in (1, 2, 4):
            message.add(SubjectEntry(closes, 1.5, f"x{number}", number))
        message.add_line("[[],[]]")
        message.add(SubjectEntry(ends, 1.5, ("sid", "y")))
        message.add(SubjectEntry(ends, 1.5, ("sid", "z")))
        body, places = message.finish()
        _, lines = read_message(body) or ("", [])
        assert [len(read_orders(line, "a/1") or ()) for line in lines] == [2, 1, 1, 2]
        rows = [body[first - 1 : last].decode() for first, last in places]
        assert rows == [line for line in lines if is_row(line)]

    @pytest.mark.parametrize("ends", [False, True])
    def test_alone(self, ends: bool) -> None:
        """A single order is encoded as with others, and its record is appended."""
        encoder = Encoder("p", "a/1", lambda record: record)
        shape = Shape(ends, "id", RECONNECT, 9.0 if ends else 0.0)
        entry = SubjectEntry(shape, 1.5, "x", 0 if ends else 7)
        alone = encoder.arguments([entry], "orders")
        message = Message("a/1")
        message.add(entry)
        body, (place,) = message.finish()
        assert alone is not None
        general, short = alone[:9], alone[9:]
        assert general == [1, "{p}:", "orders", body, "1", '"a/1', 1, *place]
        full = entry.as_published_order("a/1")
        stored = encode_record((*full.changes, *full.closes)[0])
        assert short == [stored.key, stored.text, stored.ttl, *(['of:"x"'] if ends else [])]

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "ends",
            'ends\tid\t4401\t""\t9001\t9.0',
            'ends\tid\t4401\t""\t9001\t9.0\t1.5',
            'ends\tid\t4401\t""\t9001\t9.0\tnan\t"x"',
            'ends\tid\t4401\t""\t9001\t9.0\tsoon\t"x"',
            'ends\tid\t4401\t""\t9001\t0\t1.5\t"x"',
            'ends\tid\t4401\t""\t9001\t9.0\t1.5\tnull',
            'ends\tid\t4401\t""\t9001\t9.0\t1.5\t"x","y"',
            'ends\tid\t4401\t""\t9001\t9.0\t1.5\t{}',
            'ends\tus\t4401\t""\t9001\t9.0\t1.5\t"x"',
            'pings\tid\t4401\t""\t9001\t9.0\t1.5\t"x"',
            'closes\tid\tx\t""\t9001\t1\t1.5\t"x"',
            'closes\tid\t4403\t""\t9001\t-1\t1.5\t"x"',
        ],
    )
    def test_unreadable_row(self, line: str) -> None:
        """A row of another version, or with invalid values, is decoded as None."""
        assert read_row(line) is None
        assert read_orders(line, "a/1") is None

    @pytest.mark.parametrize("ends", [False, True])
    def test_one(self, ends: bool) -> None:
        """The fast decoder reads a message of one order if its head is known, its value plain."""
        encoder, reader = Encoder("p", "a/1", lambda record: record), SingleOrderDecoder()
        shape = Shape(ends, "id", RECONNECT, 9.0 if ends else 0.0)

        def message(value: Hashable, number: int = 7) -> bytes:
            entry = SubjectEntry(shape, 1.5, value, 0 if ends else number)
            return b"12:1\n" + body_of(encoder.arguments([entry], "orders") or ())

        first = message("x")
        assert reader.read(first) is None
        _, _, body = read_numbers(first) or (0, 0, b"")
        sender, (line,) = read_message(body) or ("", [""])
        row = read_row(line)
        assert row is not None
        reader.remember(body, sender, row)
        for value in ("x", "", "a word", "#!~[]", "x" * 500):
            one = SingleOrderMessage(12, "a/1", shape, 0 if ends else 9, 1.5, value)
            assert reader.read(message(value, 9)) == one
        others: list[Hashable] = [1, ("x", 1), "x" * 2000]
        others += ['a "word"', "tab\tand\n", "\\", "\u0663", "\ud800", "\x7f"]
        assert not any(reader.read(message(value)) for value in others)

    @pytest.mark.parametrize("ends", [False, True])
    def test_not_one(self, ends: bool) -> None:
        """An order that the fast decoder accepts is decoded as by the general one."""
        rng, reader = random.Random(2), SingleOrderDecoder()
        shape = Shape(ends, "id", RECONNECT, 9.0 if ends else 0.0)
        row = Row(shape, 0 if ends else 7, [1.5], ["x"])
        body = envelope("a/1", [row_text(shape, row.first, [cell_text(1.5, "x")])]).encode()
        reader.remember(body, "a/1", row)
        good = b"12:1\n" + body
        assert reader.read(good) is not None
        for _ in range(5000):
            broken = bytearray(good)
            broken[rng.randrange(len(broken))] = rng.choice(b'0179 -+."\\\t\n:a[]\xff')
            found = reader.read(bytes(broken))
            if found is None:
                continue
            first, last, rest = read_numbers(bytes(broken)) or (0, 0, b"")
            assert (first, last) == (found.last, found.last)
            _, (line,) = read_message(rest) or ("", [""])
            assert list(read_orders(line, "a/1") or ()) == list(
                orders_of(Row(shape, found.first, [found.at], [found.value]), "a/1")
            )

    def test_many_beginnings(self) -> None:
        """The number of remembered heads is bounded."""
        reader, shape = SingleOrderDecoder(), Shape(ends=True, kind="id", close=RECONNECT, ttl=9.0)
        row = Row(shape, 0, [1.5], ["x"])
        line = row_text(shape, 0, [cell_text(1.5, "x")])
        for number in range(rows.KNOWN + 1):
            reader.remember(envelope(f"a/{number}", [line]).encode(), f"a/{number}", row)
        assert reader.read(b"1:1\n" + envelope("a/0", [line]).encode()) is None
        assert reader.read(b"1:1\n" + envelope(f"a/{rows.KNOWN}", [line]).encode()) is not None

    @pytest.mark.parametrize("data", [b"", b"x", b"1:\n", b":1\n", b"-1:1\n", b"1\n", b"1:1"])
    def test_no_numbers(self, data: bytes) -> None:
        """Data that doesn't begin with numbers is decoded as None."""
        assert read_numbers(data) is None

    def test_garbage(self) -> None:
        """Decoding arbitrary bytes raises nothing."""
        rng = random.Random(1)
        shape = Shape(ends=False, kind="id", close=RECONNECT, ttl=0.0)
        row = row_text(shape, 3, [cell_text(1.5, value) for value in VALUES])
        order = text_of(PublishedOrder((ENDED, SubjectEnded(Subject("id", "x"), 1.1, 60.0))))
        text = envelope("x", [order, row]).encode()
        for _ in range(2000):
            broken = bytearray(text)
            for _ in range(rng.randrange(1, 6)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            message = read_message(bytes(broken))
            for line in message[1] if message else ():
                _ = read_orders(line, "x")
