"""
Running one call: finding the handler, binding its arguments, and sending the answer.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from .._logging import log
from .._tasks import maybe_await
from . import errors
from .call import Call, CallDetails, Dialect
from .errors import RPCError, RPCErrorResult, RPCResult
from .host import Host, Scope, encode_error
from .lifecycle import wait_until_done
from .sending import Sender
from .session import Session
from .table import RouteClass

__all__ = ["Performer"]

_YIELD_EVERY: Final = 32  # parts of a stream after which control returns to the event loop


@dataclass(slots=True, eq=False)
class Performer:
    """
    Runs the calls of one session.

    Args:
        session: The session.
        scope: The scope of its realm.
        host: The application, whose signals report the calls.
        sender: Sends the answers.
        dialect: Encodes the answers.
        unanswered: The calls that have not been answered, by number.
    """

    session: Session
    scope: Scope
    host: Host
    sender: Sender
    dialect: Dialect
    unanswered: dict[int, Call] = field(default_factory=dict)
    _objects: dict[RouteClass, Any] = field(default_factory=dict)

    async def perform(self, call: Call, wait: Callable[[Call], Awaitable[None]] | None) -> None:
        """
        Run a call to its end, and answer it unless it has been answered already.

        Args:
            call: A new call.
            wait: Waits until the call may start; ``None`` if it may start at once.

        Raises:
            SessionGone: If the socket is closed before the answer is sent.
        """
        value: Any = None
        failure: BaseException | None = None
        data = b""
        try:
            if call.cancelled:
                raise asyncio.CancelledError
            if wait is not None:
                await wait(call)
            value = await self._invoke(call)
            if isinstance(value, RPCErrorResult):
                raise RPCError(value.uri, *value.args, **(value.kwargs or {}))
            data = self.dialect.result(call.number, value)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  # it is answered below
            failure = exc
        call.finished = True
        error = None if failure is None else self._error_for(call, failure)
        if failure is None:
            if self.host.on_success:
                await self.host.on_success.send(self._details(call, value))
        elif self.host.on_fail:
            cancelled = isinstance(failure, asyncio.CancelledError)
            await self.host.on_fail.send(
                self._details(call, error=error if cancelled else failure)
            )
        if not call.answered:
            call.answered = call.sending = True
            self.unanswered.pop(call.number, None)
            if error is not None:
                data = self._encode(call, error)
            if not self.sender.write_soon(data):
                await self.sender.send(data)

    def answer_error(self, call: Call, error: RPCError) -> None:
        """
        Answer a call with an error at once, whatever its task is doing.
        """
        call.answered = True
        self.unanswered.pop(call.number, None)
        self.sender.post(self._encode(call, error))

    async def refuse_new(self, call: Call, error: RPCError) -> None:
        """
        Refuse a call before it starts.
        """
        self.answer_error(call, error)
        if call.deadline is not None:
            call.deadline.cancel()
        if self.host.on_fail:
            report = self.host.on_fail.send(self._details(call, error=error))
            # In a context of its own, like calls that start, not in the context of the reader.
            await asyncio.create_task(report, name="report a refused call")

    def set_deadline(self, call: Call, timeout: float) -> None:
        """
        End a call after *timeout* seconds, unless it has an earlier deadline.
        """
        loop = asyncio.get_running_loop()
        when = loop.time() + timeout
        if call.deadline is not None:
            if call.deadline.when() <= when:
                return
            call.deadline.cancel()
        call.deadline = loop.call_at(when, self._expire, call, context=contextvars.Context())

    def _expire(self, call: Call) -> None:
        if call.finished or (call.answered and call.cancelled):
            return
        call.expired = True
        if not call.answered:  # a call cancelled with mode skip has been answered
            self.answer_error(call, RPCError(errors.TIMEOUT))
        call.interrupt()

    def _encode(self, call: Call, error: RPCError) -> bytes:
        return encode_error(partial(self.dialect.error, call.number), error)

    async def close_objects(self) -> None:
        """
        Close and discard the session's objects of route classes.
        """
        objects, self._objects = self._objects, {}
        for owner, one in reversed(objects.items()):
            if owner.closes:
                try:
                    await maybe_await(one.aclose())
                except Exception:
                    log.exception("aclose() of %s failed", owner.name)

    async def _invoke(self, call: Call) -> Any:
        """
        Run the handler of a call.
        """
        if self.scope.realm.guard is not None:
            await self.scope.expect_allowed(self.session, "call", call.name)
        run = self._prepare(call)
        host = self.host
        if host.on_start or host.on_success or host.on_fail:
            call.started = time.perf_counter()
            if host.on_start:
                await host.on_start.send(self._details(call))
        value = run()
        if inspect.isawaitable(value):
            value = await value
        return await self._stream(call, value) if hasattr(value, "__anext__") else value

    def _prepare(self, call: Call) -> Callable[[], Any]:
        """
        Find the handler and bind its arguments; return a function that runs it.
        """
        handler, session = self.scope.realm.rpc_handler, self.session
        if handler is not None:
            return partial(handler, call.request(session))
        procedure, parts = self.scope.find(call.name)
        function = procedure.signature.function
        values, named = self.scope.binder(procedure.signature).bind(session, call, parts)
        if procedure.owner is not None:
            function = partial(function, self._object(procedure.owner))
        if procedure.timeout is not None:
            self.set_deadline(call, procedure.timeout)
        if procedure.threaded:
            function = partial(_in_thread, function)
        return partial(function, *values, **named)

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
                    await self.sender.send(self.dialect.result(call.number, part, progress=True))
                count += 1
                if not count % _YIELD_EVERY:
                    await asyncio.sleep(0)
            return RPCResult()
        finally:
            close = getattr(parts, "aclose", None)
            if close is not None:
                await close()

    def _object(self, owner: RouteClass) -> Any:
        if owner not in self._objects:
            self._objects[owner] = self.scope.call(owner.signature, self.session)
        return self._objects[owner]

    def _error_for(self, call: Call, failure: BaseException) -> RPCError:
        """
        Return the error to send to the peer for a failure.
        """
        if isinstance(failure, asyncio.CancelledError) and call.cancelled:
            return RPCError(errors.TIMEOUT if call.expired else errors.CANCELED)
        gone = self.session.closed or self.sender.is_closed
        return self.scope.error_for(failure, call.name, gone=gone)

    def _details(
        self, call: Call, result: Any = None, error: BaseException | None = None
    ) -> CallDetails:
        seconds = time.perf_counter() - call.started if call.finished and call.started else 0.0
        return CallDetails(
            self.session, call.name, call.number, call.args, call.kwargs, result, error, seconds
        )


async def _in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """
    Run a function in a thread and wait until it returns, even if cancelled: a thread can't be.
    """

    def run() -> Any:
        try:
            return function(*args, **kwargs)
        except StopIteration as exc:  # a future rejects it, so the call would never end
            raise RuntimeError("StopIteration in a thread") from exc

    return await wait_until_done(asyncio.create_task(asyncio.to_thread(run)))
