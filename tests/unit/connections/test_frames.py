"""
Frames as aiohttp's own client reads them.
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
        """A text becomes a text message, bytes of any kind a binary one."""
        assert encode_message(data) == (payload, opcode, encode_frame(payload, opcode))

    def test_anything_else(self) -> None:
        """The error names what there is instead."""
        with pytest.raises(TypeError, match="broadcast_json"):
            encode_message({"a": 1})


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 100_000])
async def test_sizes(size: int) -> None:
    """Each size has its form of header; a peer reads what was pushed."""
    async with served() as s:
        peer: RawPeer = await s.peer()
        assert s.manager.push(s.manager.open, b"x" * size) == (1, 0)

        assert await peer.frame() == (2, b"x" * size)
