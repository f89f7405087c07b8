"""
Encoding of messages as websocket frames.
"""

from __future__ import annotations

import pytest
from aiohttp import WSMsgType

from aiohttp_session_ws.connections.frames import encode_frame, encode_message

from .served import RawPeer, served


class TestEncodeMessage:
    @pytest.mark.parametrize(
        ("data", "payload", "opcode"),
        [
            ("é", "é".encode(), WSMsgType.TEXT),
            (b"x", b"x", WSMsgType.BINARY),
            (bytearray(b"x"), b"x", WSMsgType.BINARY),
            (memoryview(b"x"), b"x", WSMsgType.BINARY),
        ],
    )
    def test_what_can_be_sent(self, data: object, payload: bytes, opcode: WSMsgType) -> None:
        """Text is encoded as a text message, any bytes-like object as a binary one."""
        assert encode_message(data) == (payload, opcode, encode_frame(payload, opcode))

    def test_anything_else(self) -> None:
        """Data that is neither text nor bytes raises a TypeError that names broadcast_json()."""
        with pytest.raises(TypeError, match="broadcast_json"):
            encode_message({"a": 1})


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 100_000])
async def test_sizes(size: int) -> None:
    """A pushed message reaches the peer unchanged, with each form of the frame header."""
    async with served() as s:
        peer: RawPeer = await s.peer()
        assert s.manager.push(s.manager.open, b"x" * size) == (1, 0)

        assert await peer.frame() == (2, b"x" * size)
