"""
The control channel of a measured server: JSON lines on stdin and stdout.

A request ``{"op": "close_session", "sid": "s1"}`` calls the method ``op_close_session(sid="s1")``,
whose dictionary is the answer. Times are ``time.monotonic_ns()``, one clock for all processes
of a machine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

Answer: TypeAlias = dict[str, Any]

HOST: Final = "127.0.0.1"
BACKLOG: Final = 1024
now = time.monotonic_ns


def emit(answer: Answer) -> None:
    """
    Write an answer as one line.
    """
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class Control:
    """
    A server that answers requests on its control channel.

    Attributes:
        open: How many sockets are open, counted by the subclass.
    """

    def __init__(self) -> None:
        self.open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._buffer = b""

    def listen(self, port: int) -> None:
        """
        Report that the server is ready, and answer requests from now on.
        """
        os.set_blocking(0, False)
        asyncio.get_running_loop().add_reader(0, self._readable)
        emit({"port": port})

    def _readable(self) -> None:
        data = os.read(0, 1 << 20)
        if not data:
            os._exit(0)  # the parent has ended
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            task = asyncio.get_running_loop().create_task(self._answer(json.loads(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Answer) -> None:
        op = request.pop("op")
        try:
            emit(await getattr(self, f"op_{op}")(**request) or {})
        except Exception:
            emit({"error": traceback.format_exc()})
            raise

    async def op_count(self) -> Answer:
        """
        Return how many sockets are open.
        """
        return {"open": self.open}

    async def op_collect(self) -> Answer:
        """
        Collect garbage.
        """
        return {"collected": gc.collect()}

    async def op_close_session(self, sid: str) -> Answer:
        """
        Close the sockets of a session in this process.
        """
        begin = now()
        await self.close_session(sid)
        return {"begin": begin, "end": now()}

    async def op_shutdown(self) -> Answer:
        """
        Shut the server down.
        """
        begin = now()
        await self.shutdown()
        return {"begin": begin, "end": now()}

    async def op_broadcast(self, size: int) -> Answer:
        """
        Send one text to all sockets.
        """
        text = "x" * size
        begin = now()
        await self.broadcast(text)
        return {"begin": begin, "end": now()}

    async def op_close_sessions(self, sids: list[str], pause: float) -> Answer:
        """
        Close the sockets of sessions in this process, one session after another.
        """
        return await self._each(self.close_session, sids, pause)

    async def op_orders(self, sids: list[str], pause: float) -> Answer:
        """
        Order the close of sessions on all processes, one order after another.
        """
        return await self._each(self.order, sids, pause)

    async def _each(
        self, act: Callable[[str], Awaitable[None]], sids: list[str], pause: float
    ) -> Answer:
        begins = []
        for sid in sids:
            await asyncio.sleep(pause)
            begins.append(now())
            await act(sid)
        return {"begins": begins}

    async def op_flood(self, count: int, marker: str, name: str = "nobody") -> Answer:
        """
        Give orders for sessions that don't exist, then one for *marker*: when its socket
        is closed, all orders before it have been processed.
        """
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                await self.order(f"{name}{number}")

        begin = now()
        await asyncio.gather(*[worker() for _ in range(64)])
        await self.order(marker)
        return {"begin": begin}

    async def close_session(self, sid: str) -> None:
        """
        Close a session's sockets in this process.
        """
        raise NotImplementedError

    async def shutdown(self) -> None:
        """
        Close all sockets, as the server does when it stops.
        """
        raise NotImplementedError

    async def broadcast(self, text: str) -> None:
        """
        Send a text to all sockets of this process.
        """
        raise NotImplementedError

    async def order(self, sid: str) -> None:
        """
        Order the close of a session's sockets on all processes.
        """
        raise NotImplementedError
