"""
The RPC clients, in one process; handshakes and frames are built by hand.

It reads a JSON line from stdin for each of :data:`OPS`, and answers with one on stdout.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from typing import Any, Final

from .control import HOST, Answer, emit

HELLO: Final = b'[1,"r",{"roles":{"caller":{}}}]'
#: Per dialect: the subprotocol, the opening messages with the beginnings of their answers, a
#: call, and a text that each result contains.
DIALECTS: Final[dict[str, tuple[str, tuple[tuple[bytes, bytes], ...], bytes, bytes]]] = {
    "plain": ("", (), b"", b""),
    "wsrpc": ("", (), b'{"id":%d,"method":"add","params":[2,3]}', b'"result":5'),
    "wamp": ("wamp.2.json", ((HELLO, b"[2"),), b'[48,%d,{},"add",[2,3]]', b"[5]"),
    "subscribed": ("wamp.2.json", ((HELLO, b"[2"), (b'[32,1,{},"news"]', b"[33")), b"", b""),
}


def frame(payload: bytes) -> bytes:
    """
    Return a text frame, masked with zeros.
    """
    size = len(payload)
    head = bytes([size | 0x80]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return b"\x81" + head + bytes(4) + payload


def payloads(data: bytes) -> tuple[list[bytes], bytes]:
    """
    Return the payloads of complete text frames, and the remaining bytes.
    """
    found = []
    while len(data) >= 2:
        size, start = data[1] & 0x7F, 2
        if size == 126:
            size, start = int.from_bytes(data[2:4]), 4
        if len(data) < start + size:
            break
        if data[0] & 15 == 1:
            found.append(data[start : start + size])
        data = data[start + size :]
    return found, data


def connect(port: int, path: str, dialect: str) -> tuple[socket.socket, bytes]:
    """
    Open a websocket, and join; return the socket, and what it has received after that.
    """
    protocol, opening, *_ = DIALECTS[dialect]
    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    asked = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{asked}\r\n".encode()
    )
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, data = data.partition(b"\r\n\r\n")
    assert b" 101 " in head, head
    for said, begins in opening:
        sock.sendall(frame(said))
        while True:
            found, data = payloads(data)
            if any(one.startswith(begins) for one in found):
                break
            data += sock.recv(65536)
    return sock, data


class Caller:
    """
    All clients.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def op_open(self, port: int, path: str, dialect: str, count: int) -> Answer:
        """
        Open sockets, and keep them open; those of wsrpc answer their first ping.
        """
        opened = [connect(port, path, dialect) for _ in range(count)]
        if dialect == "wsrpc":
            for sock, data in opened:
                found, _ = payloads(data or sock.recv(4096))
                ping = json.loads(found[0])
                sock.sendall(frame(json.dumps({"id": ping["id"], "result": None}).encode()))
        self._sockets += [sock for sock, _ in opened]
        return {}

    def op_call(self, port: int, dialect: str, in_flight: int, seconds: float) -> Answer:
        """
        Call repeatedly, a new call for each result; return the number of results.
        """
        *_, call, contained = DIALECTS[dialect]
        sock, rest = connect(port, "/ws", dialect)
        number, count = 0, 0
        due, end = in_flight, time.monotonic() + seconds
        while time.monotonic() < end:
            if due:
                sock.sendall(b"".join(frame(call % (number + k + 1)) for k in range(due)))
                number += due
            assert select.select([sock], [], [], 10)[0], "no answer"
            found, rest = payloads(rest + sock.recv(1 << 18))
            due = 0
            for answer in found:
                if contained in answer.replace(b" ", b""):
                    due += 1
                else:  # a ping of wsrpc
                    assert b'"ping"' in answer, answer
                    ping = json.loads(answer)
                    pong = {"id": ping["id"], "result": ping["params"]}
                    sock.sendall(frame(json.dumps(pong).encode()))
            count += due
        sock.close()
        return {"count": count}


OPS: Final = {
    name.removeprefix("op_"): method
    for name, method in vars(Caller).items()
    if name.startswith("op_")
}

if __name__ == "__main__":
    emit({"port": 0})
    caller = Caller()
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        emit(OPS[request.pop("op")](caller, **request))
