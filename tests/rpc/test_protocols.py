"""The protocol modules of WAMP and wsrpc, without I/O."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from aiohttp_session_ws.rpc import wamp, wamp_messages as messages_of, wsrpc
from aiohttp_session_ws.rpc.errors import ProtocolViolation, RPCError

VECTORS = json.loads((pathlib.Path(__file__).parent / "vectors.json").read_text())
#: Messages that clients never send, or of features that the package doesn't have.
NEVER_HEARD = {
    "WELCOME", "CHALLENGE", "PUBLISHED", "SUBSCRIBED", "UNSUBSCRIBED", "EVENT", "RESULT",
    "REGISTERED", "UNREGISTERED", "INVOCATION", "INTERRUPT", "EVENT_RECEIVED",
}  # fmt: skip
JSON, MSGPACK = wamp.CODECS["wamp.2.json"], wamp.CODECS["wamp.2.msgpack"]
JSON_BATCHED = wamp.CODECS["wamp.2.json.batched"]
MSGPACK_BATCHED = wamp.CODECS["wamp.2.msgpack.batched"]


def messages(codec: wamp.Codec, frame: str | bytes) -> list[Any]:
    """Return all messages of a frame."""
    return [message for message, _ in codec.decode(frame)]


def frames(vector: dict[str, Any]) -> list[tuple[wamp.Codec, str | bytes]]:
    """Return the frames of a vector with their codecs."""
    found: list[tuple[wamp.Codec, str | bytes]] = [(JSON, text) for text in vector["json"]]
    return found + [(MSGPACK, bytes.fromhex(data)) for data in vector["msgpack"]]


class TestVectors:
    """The test vectors of the WAMP specification (wamp-proto, testsuite/singlemessage)."""

    @pytest.mark.parametrize("vector", [v for v in VECTORS if v["message"] not in NEVER_HEARD])
    def test_heard(self, vector: dict[str, Any]) -> None:
        """A client's message is decoded, to the same result in both encodings."""
        found = []
        for codec, frame in frames(vector):
            (message,) = messages(codec, frame)
            assert type(message).__name__.upper() == vector["message"]
            found.append(message)
        assert all(message == found[0] for message in found)

    @pytest.mark.parametrize("vector", [v for v in VECTORS if v["message"] in NEVER_HEARD])
    def test_not_heard(self, vector: dict[str, Any]) -> None:
        """A message that only a router sends, or of an unsupported feature, is a violation."""
        for codec, frame in frames(vector):
            with pytest.raises(ProtocolViolation):
                messages(codec, frame)

    @pytest.mark.parametrize(
        ("name", "frame"),
        [
            ("WELCOME", messages_of.welcome(9129137332, {"roles": {"broker": {}, "dealer": {}}})),
            ("ABORT", messages_of.abort("wamp.error.system_shutdown")),
            ("CHALLENGE", messages_of.challenge("wampcra", {})),
            ("GOODBYE", messages_of.goodbye("wamp.close.normal")),
            ("ERROR", messages_of.error(48, 7814135, RPCError("com.myapp.error"))),
            ("SUBSCRIBED", messages_of.subscribed(713845233, 5512315355)),
            ("UNSUBSCRIBED", messages_of.unsubscribed(85346237)),
            ("EVENT", messages_of.event(9823526, 112233445566, ["Hello, event!"], None)),
            ("RESULT", messages_of.result(7814135, ["Hello, world!"])),
            ("REGISTERED", messages_of.registered(25349185, 2103333224)),
            ("UNREGISTERED", messages_of.unregistered(788923562)),
            ("INVOCATION", messages_of.invocation(6131533, 9823526, (), None)),
        ],
    )
    def test_said(self, name: str, frame: list[Any]) -> None:
        """Each message that the server sends is encoded as in the specification."""
        vector = next(v for v in VECTORS if v["message"] == name)
        assert json.loads(JSON.encode(list(frame))) in [json.loads(t) for t in vector["json"]]
        assert MSGPACK.encode(list(frame)).hex() in vector["msgpack"]


class TestWamp:
    @pytest.mark.parametrize(
        "text",
        [
            "", "x", "5", "{}", "[]", '["48"]', "[48]", '[48, 1, {}]', '[48, 0, {}, "a"]',
            '[48, 9007199254740993, {}, "a"]', '[48, true, {}, "a"]', '[48, "1", {}, "a"]',
            '[48, 1, [], "a"]', '[48, 1, {}, 5]', '[48, 1, {}, "a", {}]',
            '[48, 1, {}, "a", [], []]',
            '[48, 1, {"timeout": -1}, "a"]', '[48, 1, {"timeout": "1"}, "a"]', "[99, 1]",
            '[48, 1, {"timeout": 1' + 400 * "0" + '}, "a"]',
            '[1, 5, {}]', '[48, 1, {}, "a", ["\\u0000!"]]', '[48, 1, {}, "a", ["\\u0000é"]]',
            "[" * 100_000, '[2, 1, {}]',
            '[48, 1, {}, "a", [' + "[" * 100_000 + "]",
        ],
    )  # fmt: skip
    def test_malformed(self, text: str) -> None:
        """A malformed message is a violation, and the error doesn't quote the message."""
        with pytest.raises(ProtocolViolation) as found:
            messages(JSON, text)
        assert str(found.value) in ("malformed message", "a batch of no messages")
        assert found.value.__cause__ is None

    def test_kinds_of_frames(self) -> None:
        """A text frame in a binary encoding is a violation, and so is the reverse."""
        with pytest.raises(ProtocolViolation):
            messages(JSON, b'[48,1,{},"a"]')
        with pytest.raises(ProtocolViolation):
            messages(MSGPACK, "x")

    @pytest.mark.parametrize(
        ("codec", "frame"),
        [
            (JSON_BATCHED, ""),
            (JSON_BATCHED, "[66,1,1]"),
            (JSON_BATCHED, "\x1e"),
            (MSGPACK_BATCHED, b""),
            (MSGPACK_BATCHED, b"\0\0\0"),
            (MSGPACK_BATCHED, b"\0\0\0\0"),
            (MSGPACK_BATCHED, b"\0\0\0\x09\x93\x42\x01\x01"),
        ],
    )
    def test_batches_that_are_none(self, codec: wamp.Codec, frame: str | bytes) -> None:
        """An empty batch is a violation, and so is a truncated one."""
        with pytest.raises(ProtocolViolation):
            messages(codec, frame)

    def test_batches(self) -> None:
        """A batch is decoded to its messages in order, and one message is sent as a batch."""
        one, two = msgspec.msgpack.encode([66, 1, 1]), msgspec.msgpack.encode([66, 2, 1])
        batch = b"".join(len(m).to_bytes(4, "big") + m for m in (one, two))

        assert [m.request for m in messages(MSGPACK_BATCHED, batch)] == [1, 2]
        assert [m.request for m in messages(JSON_BATCHED, "[66,1,1]\x1e[66,2,1]\x1e")] == [1, 2]
        assert JSON_BATCHED.encode([35, 1]) == b"[35,1]\x1e"
        assert MSGPACK_BATCHED.encode([35, 1]) == b"\0\0\0\x03\x92\x23\x01"

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**53), 2**53)
            | st.binary()
            | st.text("abc"),
            lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
            max_leaves=20,
        )
    )
    def test_bytes_in_json(self, value: Any) -> None:
        """Bytes survive a round trip through JSON, at any depth."""
        text = JSON.encode(messages_of.result(1, [value])).decode()
        (call,) = messages(JSON, text.replace("[50,1,{}", '[48,1,{},"a"', 1))

        assert call.args == [value]

    def test_bytes_in_structs(self) -> None:
        """Bytes inside a struct are encoded in JSON as WAMP binary strings."""

        class Blob(msgspec.Struct):
            data: bytes

        assert json.loads(JSON.encode(messages_of.result(1, [Blob(b"a")])))[3] == [
            {"data": "\0YQ=="}
        ]

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Decoding any text raises nothing but ``ProtocolViolation``."""
        for codec in (JSON, JSON_BATCHED):
            with contextlib.suppress(ProtocolViolation):
                messages(codec, text)

    @given(st.binary())
    def test_any_bytes(self, data: bytes) -> None:
        """Decoding any bytes raises nothing but ``ProtocolViolation``."""
        for codec in (MSGPACK, MSGPACK_BATCHED):
            with contextlib.suppress(ProtocolViolation):
                messages(codec, data)


class TestWsrpc:
    @pytest.mark.parametrize(
        ("params", "args", "kwargs"),
        [
            ("[1, 2]", [1, 2], {}),
            ('{"a": 1}', (), {"a": 1}),
            ("null", (), {}),
            ("5", (5,), {}),
            ('"x"', ("x",), {}),
        ],
    )
    def test_params(self, params: str, args: Any, kwargs: Any) -> None:
        """``params`` is decoded to positional, named, or one positional argument."""
        found = wsrpc.decode(f'{{"id": 3, "method": "m", "params": {params}}}')

        assert found == wsrpc.Request(3, "m", args, kwargs)

    def test_without_params(self) -> None:
        """A request without ``params`` has no arguments."""
        assert wsrpc.decode('{"id": 3, "method": "m"}') == wsrpc.Request(3, "m", (), {})

    @pytest.mark.parametrize(
        ("frame", "result", "error"),
        [
            ('{"id": 4, "result": 5}', 5, None),
            ('{"id": 4, "result": null}', None, None),
            ('{"id": 4}', None, None),
            ('{"id": 4, "error": "Route not found", "result": null}', None, "Route not found"),
            ('{"id": 4, "error": {}}', None, {}),
            ('{"id": 4, "error": null, "result": 1}', 1, None),
        ],
    )
    def test_replies(self, frame: str, result: Any, error: Any) -> None:
        """A reply with an ``error`` that isn't null is an error, whatever its ``result``."""
        assert wsrpc.decode(frame) == wsrpc.Reply(4, result, error)

    @pytest.mark.parametrize(
        "frame", ['{"x": 1}', '{"method": "m"}', '{"id": null, "x": 1}', '{"method": 5}']
    )
    def test_events(self, frame: str) -> None:
        """An object without an id is an event."""
        assert wsrpc.decode(frame) == wsrpc.Event(json.loads(frame))

    @pytest.mark.parametrize(
        "frame",
        [
            "", "x", "[]", "5", '{"id": "3", "method": "m"}', '{"id": 3, "method": 5}',
            '{"id": 0}', b"{}", "[" * 9999,
        ],
    )  # fmt: skip
    def test_garbage(self, frame: str | bytes) -> None:
        """A frame that isn't valid wsrpc is a violation."""
        with pytest.raises(ProtocolViolation):
            wsrpc.decode(frame)

    def test_errors(self) -> None:
        """Built-in errors get wsrpc's type names; an application's error keeps its URI."""
        told = json.loads(wsrpc.error(3, RPCError("wamp.error.runtime_error")))
        own = json.loads(wsrpc.error(3, RPCError("shop.sold_out", ["tea"], 2)))

        assert told == {"id": 3, "error": {"type": "InternalError", "message": "internal error"}}
        assert own == {"id": 3, "error": {"type": "shop.sold_out", "message": '["tea"]'}}

    def test_bytes(self) -> None:
        """Bytes are encoded as Base64."""
        assert wsrpc.result(3, b"\0\1") == b'{"id":3,"result":"AAE="}'

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Decoding any text raises nothing but ``ProtocolViolation``."""
        with contextlib.suppress(ProtocolViolation):
            wsrpc.decode(text)
