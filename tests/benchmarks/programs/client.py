"""
The websocket clients: one process with one epoll loop, and handshakes built by hand.

It reads a JSON line from stdin for each of :data:`OPS`, and answers with one on stdout; all
times are ``time.monotonic_ns()``. Websockets of a *group* are opened, waited for and dropped
together. A client answers close frames and pings, as browsers do.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

from .control import HOST, Answer, emit

Dialect: TypeAlias = Literal["ws", "eio"]  # a plain websocket; Engine.IO's protocol in one

CLOSE: Final = b"\x88\x82\0\0\0\0\x03\xe8"
PONG: Final = b"\x8a\x80\0\0\0\0"
EIO_CONNECT: Final = b"\x81\x82\0\0\0\x0040"
EIO_PONG: Final = b"\x81\x81\0\0\0\x003"
COOKIE: Final = "AIOHTTP_SESSION"
PER_ADDRESS: Final = 20_000  # sockets from one address to one port; there are 28,000 ports
now = time.monotonic_ns


class Socket:
    """
    One websocket, with the times of its events; 0 until they happen.
    """

    __slots__ = (
        *("buffer", "closed", "dialect", "ended", "head", "left", "messages", "opened"),
        *("received", "request", "sid", "sock", "started"),
    )

    def __init__(self, sid: str, request: bytes, dialect: Dialect, number: int) -> None:
        self.sid = sid
        self.request = request
        self.dialect = dialect
        self.buffer = b""
        self.head = False  # whether the response's headers are complete
        self.opened = self.closed = self.left = self.ended = self.received = self.messages = 0
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if number >= PER_ADDRESS:
            self.sock.bind((f"127.0.0.{1 + number // PER_ADDRESS}", 0))
        self.started = now()

    def frames(self) -> Iterable[tuple[int, bytes]]:
        """
        Take complete frames out of the buffer; yield opcode and payload.
        """
        while len(self.buffer) >= 2:
            length, offset = self.buffer[1] & 0x7F, 2
            if length == 126:
                length, offset = int.from_bytes(self.buffer[2:4]), 4
            elif length == 127:
                length, offset = int.from_bytes(self.buffer[2:10]), 10
            end = offset + length
            if len(self.buffer) < end:
                return
            opcode, payload = self.buffer[0] & 0x0F, self.buffer[offset:end]
            self.buffer = self.buffer[end:]
            yield opcode, payload

    def send(self, data: bytes) -> None:
        """
        Send a few bytes; ignore a closed connection.
        """
        with contextlib.suppress(OSError):
            self.sock.send(data)

    def gone(self) -> int:
        """
        Return when the server closed the websocket, 0 if it hasn't.
        """
        return self.left or self.closed or self.ended


class Client:
    """
    All clients.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, Socket] = {}
        self._groups: defaultdict[str, list[Socket]] = defaultdict(list)
        self._cookies: dict[str, str] = {}
        self._opening = 0  # handshakes in progress

    # -- Requests of the parent --

    def op_visit(self, port: int, sids: list[str]) -> Answer:
        """
        Load a page for each session, and keep the cookies.
        """
        waiting = deque(sids)
        with select.epoll() as epoll:
            socks: dict[int, tuple[socket.socket, str]] = {}

            def ask(sock: socket.socket) -> None:
                sid = waiting.popleft() if waiting else ""
                socks[sock.fileno()] = sock, sid
                if sid:
                    sock.send(f"GET /visit?sid={sid} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())

            for _ in range(16):
                sock = socket.create_connection((HOST, port))
                epoll.register(sock.fileno(), select.EPOLLIN)
                ask(sock)
            while any(sid for _, sid in socks.values()):
                for fd, _ in epoll.poll(1):
                    sock, sid = socks[fd]
                    head = sock.recv(65536).decode("latin-1")
                    assert head.endswith("hello"), head
                    cookie = head.partition(f"Set-Cookie: {COOKIE}=")[2].partition(";")[0]
                    self._cookies[sid] = f"Cookie: {COOKIE}={cookie}\r\n"
                    ask(sock)
            for sock, _ in socks.values():
                sock.close()
        return {}

    def op_connect(
        self,
        port: int,
        sids: list[str],
        group: str,
        path: str,
        dialect: Dialect,
        concurrency: int,
    ) -> Answer:
        """
        Open a websocket for each of the sessions.
        """
        waiting = deque(sids)
        done: list[Socket] = []
        begin = now()
        while waiting or self._opening:
            while waiting and self._opening < concurrency:
                sid = waiting.popleft()
                text = (
                    f"GET {path.replace('{sid}', sid)} HTTP/1.1\r\n"
                    f"Host: {HOST}:{port}\r\n"
                    f"Origin: http://{HOST}:{port}\r\n"
                    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Version: 13\r\n"
                    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                    f"{self._cookies.get(sid, '')}\r\n"
                )
                done.append(self._connect(port, Socket(sid, text.encode(), dialect, len(done))))
            self._turn(1.0)
        end = now()
        self._groups[group] += done
        times = sorted(one.opened - one.started for one in done if one.opened)
        return {
            "opened": len(times),
            "seconds": (end - begin) / 1e9,
            "median": times[len(times) // 2] if times else 0,
        }

    def op_wait_closed(self, group: str, timeout: float, sids: list[str] | None = None) -> Answer:
        """
        Wait until the server has closed all sockets of a group, or of some of its sessions.
        """
        waiting = [one for one in self._groups[group] if one.opened]
        if sids is not None:
            wanted = set(sids)
            waiting = [one for one in waiting if one.sid in wanted]
        everybody, deadline = list(waiting), time.monotonic() + timeout
        while waiting and time.monotonic() < deadline:
            self._turn(0.05)
            waiting = [one for one in waiting if not one.gone()]
        times = sorted(one.gone() for one in everybody if one.gone())
        return {
            "missing": len(waiting),
            "first": times[0] if times else 0,
            "last": times[-1] if times else 0,
        }

    def op_closed(self, group: str) -> Answer:
        """
        Return when the server closed each session of a group.
        """
        return {"closed": {one.sid: one.gone() for one in self._groups[group] if one.opened}}

    def op_wait_messages(self, group: str, timeout: float) -> Answer:
        """
        Wait until each socket of a group has received a message since the last such request.
        """
        waiting = [one for one in self._groups[group] if one.opened and not one.gone()]
        everybody, deadline = list(waiting), time.monotonic() + timeout
        while waiting and time.monotonic() < deadline:
            self._turn(0.05)
            waiting = [one for one in waiting if not one.messages]
        for one in everybody:
            one.messages = 0
        return {"missing": len(waiting), "last": max(one.received for one in everybody)}

    def op_echo(self, group: str, size: int, in_flight: int, seconds: float) -> Answer:
        """
        Send messages, and another one for each that is echoed; return their number and the time.
        """
        frame = bytes([0x81, 0x80 | size]) + bytes(4) + b"x" * size  # masked with zeros
        back = len(frame) - 4  # a server's frames have no mask
        sockets = {one.sock.fileno(): one for one in self._groups[group] if one.opened}
        begin, count = now(), 0
        end = begin + int(seconds * 1e9)
        for one in sockets.values():
            one.send(frame * in_flight)
        rest = dict.fromkeys(sockets, 0)
        while now() < end:
            for fd, _ in self._epoll.poll(0.05):
                if fd in sockets:
                    data = sockets[fd].sock.recv(1 << 18)
                    assert data, "closed while it echoed"
                    messages, rest[fd] = divmod(rest[fd] + len(data), back)
                    count += messages
                    sockets[fd].sock.send(frame * messages)
        return {"count": count, "seconds": (now() - begin) / 1e9}

    def op_drop(self, group: str) -> Answer:
        """
        Reset all connections of a group, which leaves no port in TIME_WAIT.
        """
        for one in self._groups.pop(group, []):
            if one.sock.fileno() >= 0:
                linger = struct.pack("ii", 1, 0)
                one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self._end(one)
        return {}

    # -- Events of sockets --

    def _connect(self, port: int, one: Socket) -> Socket:
        self._opening += 1
        error = one.sock.connect_ex((HOST, port))
        assert error in (0, errno.EINPROGRESS), os.strerror(error)
        self._sockets[one.sock.fileno()] = one
        self._epoll.register(one.sock.fileno(), select.EPOLLOUT)
        return one

    def _turn(self, timeout: float) -> None:
        for fd, event in self._epoll.poll(timeout, 512):
            one = self._sockets.get(fd)
            if one is None:
                continue
            if event & select.EPOLLOUT:
                one.send(one.request)
                self._epoll.modify(fd, select.EPOLLIN)
            else:
                self._read(one)

    def _read(self, one: Socket) -> None:
        try:
            data = one.sock.recv(1 << 16)
        except OSError:
            data = b""
        when = now()
        if not data:
            one.ended = when
            if not one.opened:
                self._opening -= 1
            self._end(one)
            return
        one.buffer += data
        if not one.head:
            head, end, rest = one.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            one.head, one.buffer = True, rest
            if one.dialect == "ws":
                self._opened(one, when)
        for opcode, payload in one.frames():
            if opcode == 8:
                one.closed = one.closed or when
                one.send(CLOSE)
            elif opcode == 9:
                one.send(PONG)
            elif one.dialect == "ws":
                one.messages, one.received = one.messages + 1, when
            else:
                self._engine_io(one, payload, when)

    def _engine_io(self, one: Socket, payload: bytes, when: int) -> None:
        if payload.startswith(b"42"):
            one.messages, one.received = one.messages + 1, when
        elif payload.startswith(b"40"):
            self._opened(one, when)
        elif payload.startswith(b"0"):
            one.send(EIO_CONNECT)
        elif payload == b"2":
            one.send(EIO_PONG)
        elif payload.startswith((b"41", b"1")):
            one.left = one.left or when

    def _opened(self, one: Socket, when: int) -> None:
        one.opened = when
        one.request = b""
        self._opening -= 1

    def _end(self, one: Socket) -> None:
        self._sockets.pop(one.sock.fileno(), None)
        one.sock.close()  # also removes it from epoll

    def serve(self) -> None:
        """
        Process the requests of the parent, and between them the frames of the servers.
        """
        os.set_blocking(0, False)
        self._epoll.register(0, select.EPOLLIN)
        buffer = b""
        while True:
            self._turn(1.0)
            try:
                data = os.read(0, 1 << 20)
            except BlockingIOError:
                continue
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                request: dict[str, Any] = json.loads(line)
                emit(OPS[request.pop("op")](self, **request))


OPS: Final = {
    name.removeprefix("op_"): method
    for name, method in vars(Client).items()
    if name.startswith("op_")
}

if __name__ == "__main__":
    emit({"port": 0})
    Client().serve()
