"""
The calls of one session that are running, or wait to be run.

Each call runs in a task of its own and is answered exactly once, by that task, or at once by
whoever cancels it. It counts against the limits until its answer is with the transport and
its task has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ..exceptions import WebSocketDisconnect
from ..signals import Signal
from .errors import (
    CANCELED,
    RUNTIME_ERROR,
    TIMEOUT,
    UNAVAILABLE,
    RPCError,
    RPCErrorResult,
    RPCResult,
    SessionGone,
)
from .routes import RouteClass
from .scope import Scope, Target
from .sending import Sender, start
from .session import Session

__all__ = ["CallDetails", "EventDetails"]

log = logging.getLogger("aiohttp_session_ws")

_TURN: Final = 32  # parts of a stream after which others have their turn
_GONE: Final = (SessionGone, WebSocketDisconnect)


@dataclass(frozen=True, slots=True)
class CallDetails:
    """
    A call, as the signals tell of it.

    Attributes:
        session: Whose call.
        method: The name that was called.
        serial: The number that the peer has given it.
        args: Positional arguments, as they came.
        kwargs: Named arguments, as they came.
        result: What the handler returned; ``None`` until it has.
        error: What it failed with; ``None`` unless it has.
        seconds: How long it took; 0 at the start.
    """

    session: Session
    method: str
    serial: int
    args: Sequence[Any] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    result: Any = field(default=None, repr=False)
    error: BaseException | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EventDetails:
    """
    What a client has said that needs no answer: an event of wsrpc's.

    Attributes:
        session: Whose event.
        data: The object.
    """

    session: Session
    data: Mapping[str, Any] = field(repr=False)


class CallSignals:
    """
    The signals of an application.
    """

    __slots__ = ("on_event", "on_fail", "on_start", "on_success")

    def __init__(self, owner: object) -> None:
        self.on_start: Signal[CallDetails] = Signal(owner)
        self.on_success: Signal[CallDetails] = Signal(owner)
        self.on_fail: Signal[CallDetails] = Signal(owner)
        self.on_event: Signal[EventDetails] = Signal(owner)


class Dialect(Protocol):
    """
    What a call becomes on the wire. Each may raise what msgspec says of a value.
    """

    def result(self, number: int, value: Any) -> bytes: ...

    def progress(self, number: int, value: Any) -> bytes: ...

    def error(self, number: int, error: RPCError) -> bytes: ...


class Call:
    """
    One call of a peer's.

    Attributes:
        number: The peer's for it.
        name: What is called.
        args: Positional arguments.
        kwargs: Named arguments.
        progress: Whether the peer wants the parts of a stream.
        size: How many bytes its frame had.
        task: What runs it.
        begun: Whether that has taken its first step.
        answering: Whether its result is known, so that it can't be cancelled any more.
        answered: Whether an answer is on its way, or nobody wants one.
        given_up: Whether it was cancelled.
        expired: Whether its deadline has passed.
        deadline: When that is.
        started: When it began, by the performance counter.
    """

    __slots__ = (
        "answered",
        "answering",
        "args",
        "begun",
        "deadline",
        "expired",
        "given_up",
        "kwargs",
        "name",
        "number",
        "progress",
        "size",
        "started",
        "task",
    )

    def __init__(
        self,
        number: int,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        size: int,
        progress: bool = False,
    ) -> None:
        self.number = number
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.size = size
        self.progress = progress
        self.task: asyncio.Task[None] | None = None
        self.begun = self.answering = self.answered = self.given_up = self.expired = False
        self.deadline: asyncio.TimerHandle | None = None
        self.started = 0.0


class Calls:
    """
    The calls of one session.

    Args:
        session: Whose.
        scope: What may be called.
        signals: Who wants to know.
        sender: The way out.
        dialect: What goes out.
    """

    __slots__ = (
        "_bytes",
        "_dialect",
        "_limits",
        "_objects",
        "_running",
        "_scope",
        "_sender",
        "_session",
        "_signals",
        "_unanswered",
        "_waiting",
    )

    def __init__(
        self,
        session: Session,
        scope: Scope,
        signals: CallSignals,
        sender: Sender,
        dialect: Dialect,
    ) -> None:
        self._session = session
        self._scope = scope
        self._signals = signals
        self._limits = scope.limits
        self._sender = sender
        self._dialect = dialect
        self._running: set[Call] = set()
        self._unanswered: dict[int, Call] = {}
        self._waiting: deque[Call] | None = None
        self._bytes = 0  # of what waits
        self._objects: dict[RouteClass, Any] | None = None

    def __contains__(self, number: int) -> bool:
        return number in self._unanswered

    async def take(self, call: Call, timeout: float | None = None) -> None:
        """
        Run a call now, or when there is room, or refuse it.

        Args:
            call: A new one, whose number isn't in use.
            timeout: Seconds that the peer gives it.
        """
        self._unanswered[call.number] = call
        if timeout:
            self._set_deadline(call, timeout)
        if len(self._running) >= self._limits.calls:
            await asyncio.sleep(0)  # many calls may have come at once, and not had their turn
        if not (self._waiting or len(self._running) >= self._limits.calls or self._sender.is_full):
            self._begin(call)
            return
        if self._waiting is None:
            self._waiting = deque()
            self._sender.on_room = self._go_on
        many = len(self._waiting) >= self._limits.waiting
        if many or self._bytes + call.size > self._limits.waiting_bytes:
            await self._refuse(call)
            return
        self._waiting.append(call)
        self._bytes += call.size
        if self._sender.is_full:
            self._sender.watch()

    def cancel(self, number: int, mode: object) -> None:
        """
        Give up a call; nothing happens if it is answered, or unknown.

        Args:
            number: Of the call.
            mode: ``kill``, ``skip``, or anything else for ``killnowait``.
        """
        call = self._unanswered.get(number)
        if call is None or call.answering:
            return
        if call.task is None:  # it waits
            self._withdraw(call)
        elif mode == "kill":
            self._interrupt(call)
        else:
            self._answer_now(call, RPCError(CANCELED))
            if mode != "skip":
                self._interrupt(call)

    def interrupt(self) -> set[asyncio.Task[None]]:
        """
        Cancel all calls but the one that asks for this; they are not answered any more.

        Returns:
            What runs them.
        """
        self._waiting = None
        self._unanswered.clear()
        own, tasks = asyncio.current_task(), set()
        for call in self._running:
            call.answered = True
            if call.task is not None and call.task is not own:
                self._interrupt(call)
                tasks.add(call.task)
        return tasks

    async def stop(self, grace: float) -> None:
        """
        End all calls.

        Args:
            grace: Seconds to wait for them.
        """
        tasks = self.interrupt()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                log.warning("a call goes on though its session is over: %s", task.get_coro())

    async def close_objects(self) -> None:
        """
        Let the session's objects of route classes go.
        """
        objects, self._objects = self._objects, None
        for owner, one in reversed((objects or {}).items()):
            if owner.closes:
                try:
                    result = one.aclose()
                    if inspect.isawaitable(result):
                        await result
                except Exception:
                    log.exception("aclose() of %s failed", owner.name)

    def _begin(self, call: Call) -> None:
        self._running.add(call)
        task = _start_task(self._run(call))
        call.task = task

    def _go_on(self) -> None:
        """
        Begin what waits, as far as there is room.
        """
        while (
            self._waiting and len(self._running) < self._limits.calls and not self._sender.is_full
        ):
            call = self._waiting.popleft()
            self._bytes -= call.size
            self._begin(call)
        if self._waiting and self._sender.is_full:
            self._sender.watch()

    def _withdraw(self, call: Call) -> None:
        if self._waiting is not None:
            self._waiting.remove(call)
            self._bytes -= call.size
        call.given_up = True
        self._begin(call)  # which finds that, and answers

    @staticmethod
    def _interrupt(call: Call) -> None:
        call.given_up = True
        if call.begun and call.task is not None:  # the first step would not be taken
            call.task.cancel()

    def _set_deadline(self, call: Call, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + timeout
        if call.deadline is not None:
            if call.deadline.when() <= when:
                return
            call.deadline.cancel()
        call.deadline = loop.call_at(when, self._expire, call, context=contextvars.Context())

    def _expire(self, call: Call) -> None:
        if call.answering or call.answered:
            return
        call.expired = True
        if call.task is None:
            self._withdraw(call)
        else:
            self._answer_now(call, RPCError(TIMEOUT))
            self._interrupt(call)

    def _answer_now(self, call: Call, error: RPCError) -> None:
        call.answered = True
        self._unanswered.pop(call.number, None)
        self._sender.post(self._dialect.error(call.number, error))

    async def _refuse(self, call: Call) -> None:
        error = RPCError(UNAVAILABLE, "too many calls at once")
        if call.deadline is not None:
            call.deadline.cancel()
        self._answer_now(call, error)
        if self._signals.on_fail:
            await self._signals.on_fail.send(self._details(call, error=error))

    async def _run(self, call: Call) -> None:
        call.task = asyncio.current_task()
        call.begun = True
        try:
            await self._perform(call)
        except SessionGone:
            pass  # nobody is there to hear the answer
        finally:
            self._running.discard(call)
            if call.deadline is not None:
                call.deadline.cancel()
            if self._waiting:
                self._go_on()

    async def _perform(self, call: Call) -> None:
        """
        Run a call to its end, and answer.
        """
        value: Any = None
        failure: BaseException | None = None
        data = b""
        try:
            if call.given_up:
                raise asyncio.CancelledError
            target = self._scope.find(call.name)
            if self._scope.guarded:
                await self._scope.expect_allowed(self._session, "call", call.name)
            value = await self._invoke(call, target)
            if isinstance(value, RPCErrorResult):
                raise RPCError(value.uri, *value.args, **(value.kwargs or {}))
            call.answering = True
            data = self._dialect.result(call.number, value)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  # it is explained below
            call.answering = True
            failure = exc
        error = None if failure is None else self._explain(call, failure)
        await self._tell_end(call, value, failure if error is None else error, failure)
        if call.answered:
            return
        call.answered = True
        self._unanswered.pop(call.number, None)
        if error is not None:
            data = self._encode_error(call, error)
        await self._sender.send(data)

    async def _tell_end(
        self, call: Call, value: Any, told: BaseException | None, failure: BaseException | None
    ) -> None:
        if failure is None:
            if self._signals.on_success:
                await self._signals.on_success.send(self._details(call, value))
        elif self._signals.on_fail:
            error = told if isinstance(failure, asyncio.CancelledError) else failure
            await self._signals.on_fail.send(self._details(call, error=error))

    async def _invoke(self, call: Call, target: Target) -> Any:
        """
        Bind the arguments and run the handler.
        """
        function, kind = target.function, target.kind
        what = call.name, call.args, call.kwargs
        values, named = target.bind(self._session, what)
        if target.owner is not None:
            function = functools.partial(function, self._object(target.owner))
        if target.timeout is not None:
            self._set_deadline(call, target.timeout)
        if self._signals.on_start or self._signals.on_success or self._signals.on_fail:
            call.started = time.perf_counter()
            if self._signals.on_start:
                await self._signals.on_start.send(self._details(call))
        if kind == "coroutine":
            value = await function(*values, **named)
        elif kind == "thread":
            value = await _in_thread(functools.partial(function, *values, **named))
        else:
            value = function(*values, **named)
            if inspect.isawaitable(value):
                value = await value
        if kind == "stream" or isinstance(value, AsyncIterator):
            value = await self._stream(call, value)
        return value

    async def _stream(self, call: Call, parts: AsyncIterator[Any]) -> Any:
        """
        Send the parts of a stream, each when the peer has room; return its result.
        """
        count = 0
        try:
            async for part in parts:
                if isinstance(part, RPCResult | RPCErrorResult):
                    return part
                if call.progress and not call.answered:
                    await self._sender.send(self._dialect.progress(call.number, part))
                count += 1
                if not count % _TURN:
                    await asyncio.sleep(0)
            return RPCResult()
        finally:
            close = getattr(parts, "aclose", None)
            if close is not None:
                await close()

    def _object(self, owner: RouteClass) -> Any:
        if self._objects is None:
            self._objects = {}
        if owner not in self._objects:
            self._objects[owner] = self._scope.make(owner, self._session)
        return self._objects[owner]

    def _explain(self, call: Call, failure: BaseException) -> RPCError:
        """
        Return what the peer is told of a failure; log what it isn't.
        """
        if isinstance(failure, RPCError):
            return failure
        if isinstance(failure, asyncio.CancelledError) and call.given_up:
            return RPCError(TIMEOUT if call.expired else CANCELED)
        uri = self._scope.uri_of(failure)
        if uri is not None:
            return RPCError(uri)
        gone = self._session.closed or self._sender.is_closed
        if not (gone and _is_gone(failure)):
            log.error("a call failed: %s", call.name, exc_info=failure)
        return RPCError(RUNTIME_ERROR)

    def _encode_error(self, call: Call, error: RPCError) -> bytes:
        try:
            return self._dialect.error(call.number, error)
        except Exception:
            log.exception("an error of %s can't be encoded", call.name)
            return self._dialect.error(call.number, RPCError(RUNTIME_ERROR))

    def _details(
        self, call: Call, result: Any = None, error: BaseException | None = None
    ) -> CallDetails:
        ended = result is not None or error is not None or call.answering
        seconds = time.perf_counter() - call.started if ended and call.started else 0.0
        return CallDetails(
            self._session, call.name, call.number, call.args, call.kwargs, result, error, seconds
        )


def _is_gone(failure: BaseException) -> bool:
    if isinstance(failure, BaseExceptionGroup):
        return all(_is_gone(one) for one in failure.exceptions)
    return isinstance(failure, (*_GONE, ConnectionError, asyncio.CancelledError))


async def _in_thread(function: Callable[[], Any]) -> Any:
    """
    Run a function in a thread, and stay until it is done: it can't be cancelled.
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, contextvars.copy_context().run, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()
        raise


def _start_task(coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    if sys.version_info >= (3, 12):
        loop = asyncio.get_running_loop()
        return asyncio.Task(coro, loop=loop, name="call", eager_start=True)
    return start(coro, "call")
