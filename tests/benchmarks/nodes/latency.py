"""
How long it takes from an order on one process to the close frame at a client of another.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Final

from ..peers import cookie, handshake
from ..report import line, median, ratio
from ..server import HOST
from .child import Child, child
from .roles import bare, node

EACH: Final = 30  # orders per round


class Listener(asyncio.Protocol):
    """
    A client that notes when the first frame comes.
    """

    def __init__(self, hello: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.came: asyncio.Future[float] = loop.create_future()
        self._hello = hello
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """
        Shake hands.
        """
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        """
        Note the time.
        """
        now = time.monotonic()
        if self.opened.done():
            if not self.came.done():
                self.came.set_result(now)
            return
        self._buffer += data
        if b"\r\n\r\n" in self._buffer:
            if self._buffer.startswith(b"HTTP/1.1 101 "):
                self.opened.set_result(None)
            else:
                self.opened.set_exception(ConnectionError(self._buffer.decode()))


async def listen(port: int, number: int) -> Listener:
    """
    Open a websocket of a session.
    """
    hello = handshake("/ws", await cookie(number))
    loop = asyncio.get_running_loop()
    _, listener = await loop.create_connection(lambda: Listener(hello), HOST, port)
    await listener.opened
    return listener


async def latencies(
    orders: Child, port: int, turn: int, flood: Child | None = None
) -> list[float]:
    """
    Return the milliseconds that each of some orders takes.

    Args:
        orders: Who gives them.
        port: Where the process is that has the sockets.
        turn: The number of the round.
        flood: Who begins something else when the sockets are open.
    """
    numbers = range(turn * EACH, (turn + 1) * EACH)
    listeners = [await listen(port, number) for number in numbers]
    if flood is not None:
        await flood.ask("start")
        await asyncio.sleep(0.2)
    await orders.ask("begin", [f"{number:032x}" for number in numbers])
    came = [await listener.came for listener in listeners]
    began = await orders.ask("began")
    for listener in listeners:
        listener.transport.abort()
    return [(b - a) * 1e3 for a, b in zip(began, came, strict=True)]


async def measure(url: str, rounds: int) -> None:
    """
    Give orders with the package and with Redis alone, one after the other.
    """
    async with AsyncExitStack() as stack:
        roles = (node, node, bare, bare)
        a, b, bare_a, bare_b = [
            await stack.enter_async_context(child(role, url)) for role in roles
        ]
        port, bare_port = await b.ask("port"), await bare_b.ask("port")
        floors, ours = [], []
        for turn in range(1 + rounds):
            floors.append(median(await latencies(bare_a, bare_port, turn)))
            ours.append(median(await latencies(a, port, turn)))
    line(
        "order to close frame, p50",
        f"{ratio(floors[1:], ours[1:]):.2f} x",
        f"floor {median(floors[1:]):.2f} ms, with {median(ours[1:]):.2f} ms"
        f" ({min(ours[1:]):.2f} to {max(ours[1:]):.2f}); target <= 1.25 x",
    )
