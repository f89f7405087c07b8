"""
The connection for commands: resends them after a reconnect, and detects when Redis is away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from ...exceptions import RedisUnavailable
from ..entries import Argument
from .connect import REPLY_TIMEOUT, MakeClient, fail, needs_other_server, reason
from .line import Line, Link
from .scripts import Script
from .watchdog import Watchdog

__all__: list[str] = []

CHUNK: Final = 1000  # keys in one MGET
AT_ONCE: Final = 2  # MGETs in flight


class _Command:
    """
    A pending command; unless *repeat* is false it survives the loss of its connection.
    """

    __slots__ = ("answer", "args", "repeat", "script", "since")

    def __init__(
        self, script: Script | None, args: Sequence[Argument], since: float, *, repeat: bool
    ) -> None:
        self.script = script
        self.args = args
        self.since = since
        self.repeat = repeat
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def send(self, line: Line) -> asyncio.Future[Any]:
        """
        Send the command over *line*.
        """
        if self.script is None:
            return line.call(*self.args)
        return line.run(self.script, *self.args)


class Commands:
    """
    The connection for commands.

    Redis counts as away when commands are pending and no reply has arrived for a second; errors
    and late replies count as replies. Then every command fails at once, except for probes, which
    detect that Redis is back.

    Args:
        make: Creates a client.
        prefix: The prefix of all keys, without braces.
        changed: Called when :attr:`available` has changed.

    Attributes:
        available: Whether Redis replies.
        why: Why it doesn't, for messages; while it does, why the last connection broke.
    """

    def __init__(self, make: MakeClient, prefix: str, changed: Callable[[], None]) -> None:
        self.link = Link(make, prefix, self._connected, self._disconnected)
        self.prefix = f"{{{prefix}}}:"
        self._changed = changed
        self._pending: dict[_Command, None] = {}  # the oldest first
        self._watchdog = Watchdog(self._oldest, self._timed_out)
        self._reads: deque[tuple[Sequence[str], asyncio.Future[list[bytes | None]]]] = deque()
        self._reading = 0
        self.available = False
        self.why = ""

    def run_script(
        self, script: Script, *args: Argument, probe: bool = False, repeat: bool = True
    ) -> asyncio.Future[Any]:
        """
        Run a script; return the future of its result.

        Args:
            script: The script.
            *args: The number of keys, the keys, and the other arguments.
            probe: Whether to send it also while Redis is away.
            repeat: Whether to send it again if the connection breaks before the reply.
        """
        return self._start(script, args, probe=probe, repeat=repeat)

    def call(self, *args: Argument) -> asyncio.Future[Any]:
        """
        Send a command; return the future of its reply.
        """
        return self._start(None, args)

    def read(self, keys: Sequence[str]) -> asyncio.Future[list[bytes | None]]:
        """
        Read the records stored under some keys, at most :data:`CHUNK` of them.

        Reads that are requested while :data:`AT_ONCE` MGETs are in flight are batched.

        Args:
            keys: The keys, without the prefix.
        """
        result: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        if not self.available:
            fail(result, _away(self.why))
            return result
        self._reads.append((keys, result))
        self._flush_reads()
        return result

    def stop(self) -> None:
        """
        Fail all pending commands and reads.
        """
        self._fail_all("the registry is stopping")
        self._watchdog.stop()

    # Sending

    def _start(
        self,
        script: Script | None,
        args: Sequence[Argument],
        *,
        probe: bool = False,
        repeat: bool = True,
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        command = _Command(script, args, loop.time(), repeat=repeat)
        if not (self.available or probe):
            fail(command.answer, _away(self.why))
            return command.answer
        self._pending[command] = None
        if self.link.line is not None:
            self._send(command, self.link.line)
        self._watchdog.start()
        return command.answer

    def _send(self, command: _Command, line: Line) -> None:
        command.send(line).add_done_callback(partial(self._answered, command))

    def _answered(self, command: _Command, answer: asyncio.Future[Any]) -> None:
        exc = answer.exception()
        if isinstance(exc, RedisUnavailable):
            if not command.repeat:
                self._finish(command, exc)
            return  # it is sent again over the next connection
        self._watchdog.answered()
        if exc is not None and needs_other_server(exc):
            self.link.drop(reason(exc))  # reconnect, and resend to the server in charge
            return
        self._finish(command, exc, None if exc else answer.result())
        if not self.available:
            self.available, self.why = True, ""
            self._changed()

    def _finish(self, command: _Command, exc: BaseException | None, result: Any = None) -> None:
        self._pending.pop(command, None)
        if exc is not None:
            fail(command.answer, exc)
        elif not command.answer.done():
            command.answer.set_result(result)

    # Availability

    def _connected(self, line: Line) -> None:
        for command in tuple(self._pending):
            self._send(command, line)
        if not self._pending and not self.available:
            _ = self._start(None, ("PING",), probe=True)

    def _disconnected(self, why: str) -> None:
        self.why = why
        if not self.available:
            self._fail_all(why)  # known to be away: no need to wait a second again
        elif not self._pending:
            _ = self.call("PING")  # else an outage would show only at the next heartbeat

    def _oldest(self) -> float | None:
        return next(iter(self._pending)).since if self._pending else None

    def _timed_out(self) -> None:
        """
        Declare Redis away: no reply has arrived within the limit.
        """
        broken = self.why if self.link.line is None else ""
        why = broken or f"no answer within {REPLY_TIMEOUT:g} s"
        self.link.drop(why)
        was, self.available, self.why = self.available, False, why
        self._fail_all(why)
        if was:
            self._changed()

    def _fail_all(self, why: str) -> None:
        pending, self._pending = tuple(self._pending), {}
        for command in pending:
            self._finish(command, _away(why))
        reads, self._reads = self._reads, deque()
        for _, result in reads:
            fail(result, _away(why))

    # Reads

    def _flush_reads(self) -> None:
        while self._reads and self._reading < AT_ONCE:
            batch: list[tuple[int, asyncio.Future[list[bytes | None]]]] = []
            keys: list[str] = []
            while self._reads and (not keys or len(keys) + len(self._reads[0][0]) <= CHUNK):
                some, result = self._reads.popleft()
                if not result.done():
                    batch.append((len(some), result))
                    keys += [self.prefix + key for key in some]
            if not batch:
                continue
            self._reading += 1
            self.call("MGET", *keys).add_done_callback(partial(self._have_read, batch))

    def _have_read(
        self,
        batch: Sequence[tuple[int, asyncio.Future[list[bytes | None]]]],
        answer: asyncio.Future[list[bytes | None]],
    ) -> None:
        self._reading -= 1
        exc = answer.exception()
        start = 0
        for size, result in batch:
            if exc is not None:
                fail(result, exc)
            elif not result.done():
                result.set_result(answer.result()[start : start + size])
            start += size
        self._flush_reads()


def _away(why: str) -> RedisUnavailable:
    return RedisUnavailable(f"Redis is away: {why or 'not connected yet'}")
