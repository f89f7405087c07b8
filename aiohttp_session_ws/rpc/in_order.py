"""
Requests of one session that are done one after another, in a task of their own; and the
procedures that its client has registered by them, for us to call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from .._tasks import is_cancelled
from . import errors, wamp_messages as wamp
from .errors import NotRegistered, RPCError, SessionGone
from .scope import Scope, encode_error
from .sending import Sender
from .session import Session, new_id
from .wamp import Codec

__all__ = ["InOrder"]

Handler: TypeAlias = Callable[[Any], Coroutine[Any, Any, None]]


def has_room(name: str, names: Collection[str], most: int, size: int) -> bool:
    """
    Tell whether one more name may be kept, of so many, which have so many characters together.
    """
    return len(names) < most and len(name) + sum(map(len, names)) <= size


@dataclass(slots=True, eq=False)
class InOrder:
    """
    REGISTER, SUBSCRIBE and their like: a topic may call its client, so reading can't wait for
    them.

    Args:
        session: Whose they are.
        scope: What it may do.
        sender: The way out.
        codec: How answers are encoded.

    Attributes:
        requests: The numbers of those that aren't answered yet.
        handlers: What does them, and answers, by their types.
    """

    session: Session
    scope: Scope
    sender: Sender
    codec: Codec
    requests: set[int] = field(default_factory=set)
    handlers: dict[type, Handler] = field(default_factory=dict)
    _registered: dict[str, int] = field(default_factory=dict)
    _queue: deque[tuple[Any, int]] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.handlers |= {wamp.Register: self._register, wamp.Unregister: self._unregister}

    def take(self, message: Any, size: int) -> None:
        """
        Do what a message asks for when what came before is done.

        Args:
            message: One that has a handler; what that raises is answered here.
            size: How many bytes its frame had.
        """
        if self._queue and not self._may_wait(size):
            self.sender.post(
                self._refusal(message, RPCError(errors.UNAVAILABLE, "too many at once"))
            )
            return
        self.requests.add(message.request)
        self._queue.append((message, size))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="requests in order")

    async def answer(self, request: int, frame: wamp.Frame) -> None:
        """
        Send the answer to a request.
        """
        self.requests.discard(request)
        await self.sender.send(self.codec.encode(frame))

    async def stop(self) -> None:
        """
        Give up what isn't done, and forget what is registered.
        """
        self._queue.clear()
        self._registered.clear()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        with contextlib.suppress(SessionGone):
            while self._queue:
                message, _ = self._queue.popleft()
                try:
                    await self.handlers[type(message)](message)
                except SessionGone:
                    raise
                except (Exception, asyncio.CancelledError) as exc:  # it is explained
                    if is_cancelled():
                        raise
                    gone = self.session.closed or self.sender.is_closed
                    error = self.scope.explain(exc, type(message).__name__.upper(), gone=gone)
                    self.requests.discard(message.request)
                    await self.sender.send(encode_error(partial(self._refusal, message), error))

    def _may_wait(self, size: int) -> bool:
        limits = self.sender.limits
        fits = sum(one for _, one in self._queue) + size <= limits.waiting_bytes
        return fits and len(self._queue) <= limits.waiting

    def _refusal(self, message: wamp.Asked, error: RPCError) -> bytes:
        frame = wamp.refused(message, error.uri, error.args, error.kwargs)
        return self.codec.encode(frame)

    def registration(self, name: str) -> int:
        """
        Return the number of a registration.

        Raises:
            NotRegistered: If there is none.
        """
        if name not in self._registered:
            raise NotRegistered(
                f"the client has not registered {name!r}: it has to REGISTER what it is asked"
            )
        return self._registered[name]

    async def _register(self, message: wamp.Register) -> None:
        name = message.procedure
        await self.scope.expect_allowed(self.session, "register", name)
        if name in self._registered:
            raise RPCError(errors.PROCEDURE_ALREADY_EXISTS, "registered already")
        limits = self.sender.limits
        if not has_room(name, self._registered, limits.registrations, limits.message):
            raise RPCError(errors.UNAVAILABLE, "too many registrations")
        self._registered[name] = number = new_id()
        await self.answer(message.request, wamp.registered(message.request, number))

    async def _unregister(self, message: wamp.Unregister) -> None:
        for name, number in self._registered.items():
            if number == message.registration:
                del self._registered[name]
                await self.answer(message.request, wamp.unregistered(message.request))
                return
        raise RPCError(errors.NO_SUCH_REGISTRATION, "no such registration")
