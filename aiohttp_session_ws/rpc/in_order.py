"""
Requests of one session that are done one after another, in a task of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from . import wamp_messages as wamp
from .errors import RUNTIME_ERROR, UNAVAILABLE, RPCError, SessionGone
from .scope import Scope
from .sending import Sender, start
from .session import Session
from .wamp import Codec

__all__ = ["InOrder"]

log = logging.getLogger("aiohttp_session_ws")


@dataclass(slots=True, eq=False)
class InOrder:
    """
    SUBSCRIBE, REGISTER and their like: a topic may call its client, so reading can't wait for
    them.

    Args:
        session: Whose they are.
        scope: What it may do.
        sender: The way out.
        codec: How answers are encoded.

    Attributes:
        requests: The numbers of those that aren't answered yet.
    """

    session: Session
    scope: Scope
    sender: Sender
    codec: Codec
    requests: set[int] = field(default_factory=set)
    _queue: deque[tuple[int, int, Coroutine[Any, Any, None]]] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None

    def put(self, kind: int, request: int, work: Coroutine[Any, Any, None]) -> None:
        """
        Do something when what came before is done.

        Args:
            kind: Of the request.
            request: Its number.
            work: What to do, and to answer; what it raises is answered here.
        """
        if len(self._queue) > self.scope.limits.waiting:
            work.close()
            error = wamp.error(kind, request, UNAVAILABLE, ("too many at once",))
            self.sender.post(self.codec.encode(error))
            return
        self.requests.add(request)
        self._queue.append((kind, request, work))
        if self._task is None or self._task.done():
            self._task = start(self._run(), "requests in order")

    async def answer(self, request: int, frame: wamp.Frame) -> None:
        """
        Send the answer to a request.
        """
        self.requests.discard(request)
        await self.sender.send(self.codec.encode(frame))

    async def stop(self) -> None:
        """
        Give up what isn't done.
        """
        for _, _, work in self._queue:
            work.close()
        self._queue.clear()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        with contextlib.suppress(SessionGone):
            while self._queue:
                kind, request, work = self._queue.popleft()
                try:
                    await work
                except SessionGone:
                    raise
                except Exception as exc:  # noqa: BLE001  # it is explained
                    await self.answer(request, self._explain(kind, request, exc))

    def _explain(self, kind: int, request: int, failure: Exception) -> wamp.Frame:
        if isinstance(failure, RPCError):
            return wamp.error(kind, request, failure.uri, failure.args, failure.kwargs)
        uri = self.scope.uri_of(failure)
        if uri is None:
            uri = RUNTIME_ERROR
            if not (self.session.closed or self.sender.is_closed):
                log.error("a topic failed", exc_info=failure)
        return wamp.error(kind, request, uri)
