"""
Encoding of websocket frames: one frame for many connections.
"""

from __future__ import annotations

import struct
from typing import Final

from aiohttp import WSMsgType

__all__: list[str] = []

_FIN: Final = 0x80
_HEAD_8: Final = struct.Struct("!BB").pack
_HEAD_16: Final = struct.Struct("!BBH").pack
_HEAD_64: Final = struct.Struct("!BBQ").pack


def encode_message(data: object) -> tuple[bytes, WSMsgType, bytes]:
    """
    Return a message's payload, its opcode, and the server's frame that carries both.

    Raises:
        TypeError: If *data* is neither text nor bytes.
    """
    if isinstance(data, str):
        payload, opcode = data.encode(), WSMsgType.TEXT
    elif isinstance(data, bytes | bytearray | memoryview):
        payload, opcode = bytes(data), WSMsgType.BINARY
    else:
        msg = (
            f"can't push {type(data).__name__}, only str or bytes: for other data use"
            " send_session_json(), send_identity_json() or broadcast_json()"
        )
        raise TypeError(msg)
    return payload, opcode, encode_frame(payload, opcode)


def encode_frame(payload: bytes, opcode: WSMsgType) -> bytes:
    """
    Return an unmasked, uncompressed frame (RFC 6455, 5.2).
    """
    size = len(payload)
    if size < 126:
        return _HEAD_8(_FIN | opcode, size) + payload
    if size < 65_536:
        return _HEAD_16(_FIN | opcode, 126, size) + payload
    return _HEAD_64(_FIN | opcode, 127, size) + payload
