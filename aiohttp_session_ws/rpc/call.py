"""
One call from a peer: its state, and its details as signals report them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from .errors import RPCError
from .session import RPCRequest, Session

__all__ = ["Call", "CallDetails", "EventDetails"]


@dataclass(frozen=True, slots=True)
class CallDetails:
    """
    A call, as the signals report it.

    Attributes:
        session: The session of the caller.
        method: The name that was called.
        serial: The request number that the peer gave it.
        args: Positional arguments, as received.
        kwargs: Named arguments, as received.
        result: What the handler returned; ``None`` until it has.
        error: What it failed with; ``None`` unless it has.
        seconds: How long it took; 0 at the start, or if it never started.
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
    An event from a wsrpc client; it is not answered.

    Attributes:
        session: The session of the client.
        data: The object that was sent.
    """

    session: Session
    data: Mapping[str, Any] = field(repr=False)


class Dialect(Protocol):
    """
    Encodes the answers to calls; raises msgspec's errors for values that can't be encoded.
    """

    def result(self, number: int, value: Any, *, progress: bool = False) -> bytes: ...

    def error(self, number: int, error: RPCError) -> bytes: ...


class Call(msgspec.Struct, eq=False):
    """
    The state of one call from a peer.

    Attributes:
        number: The request number that the peer gave it.
        name: The name that is called.
        args: Positional arguments.
        kwargs: Named arguments.
        size: How many bytes its frame had.
        progress: Whether the peer asked for progressive results.
        task: The task that runs it; ``None`` until its first step.
        queued: Whether it has not started yet.
        finished: Whether its result is known, so that it can't be cancelled any more.
        sending: Whether its own task is sending the answer, which may wait for a slow peer.
        answered: Whether an answer has been or is being sent, or none is wanted.
        cancelled: Whether it was cancelled.
        expired: Whether its deadline has passed.
        deadline: The timer of its deadline, if it has one.
        started: When it started, by :func:`time.perf_counter`; 0 if no signal has a receiver.
    """

    number: int
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    size: int
    progress: bool = False
    task: asyncio.Task[None] | None = None
    queued: bool = True
    finished: bool = False
    sending: bool = False
    answered: bool = False
    cancelled: bool = False
    expired: bool = False
    deadline: asyncio.TimerHandle | None = None
    started: float = 0.0

    def request(self, session: Session) -> RPCRequest:
        """
        Return the call as it is passed to handlers.
        """
        return RPCRequest(self.name, tuple(self.args), self.kwargs, session)

    def interrupt(self) -> None:
        """
        Cancel its task, once, so that its cleanup, such as a rollback, isn't interrupted.

        A task that has not taken its first step checks ``cancelled`` itself.
        """
        first, self.cancelled = not self.cancelled, True
        may_cancel = self.sending or (first and not self.finished)
        if self.task is not None and may_cancel:
            self.task.cancel()
