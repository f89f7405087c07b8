"""
One call of a peer's, and what signals tell of it.
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


class Dialect(Protocol):
    """
    What a call becomes on the wire. Each may raise what msgspec says of a value.
    """

    def result(self, number: int, value: Any, *, progress: bool = False) -> bytes: ...

    def error(self, number: int, error: RPCError) -> bytes: ...


class Call(msgspec.Struct, eq=False):
    """
    One call of a peer's.

    Attributes:
        number: The peer's for it.
        name: What is called.
        args: Positional arguments.
        kwargs: Named arguments.
        size: How many bytes its frame had.
        progress: Whether the peer wants the parts of a stream.
        task: What runs it, from its first step on.
        waits: Whether it is not its turn yet.
        answering: Whether its result is known, so that it can't be cancelled any more.
        sending: Whether its own task waits until the peer has room for the answer.
        answered: Whether an answer is on its way, or nobody wants one.
        given_up: Whether it was cancelled.
        expired: Whether its deadline has passed.
        deadline: When that is.
        started: When it began, by the performance counter.
    """

    number: int
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    size: int
    progress: bool = False
    task: asyncio.Task[None] | None = None
    waits: bool = True
    answering: bool = False
    sending: bool = False
    answered: bool = False
    given_up: bool = False
    expired: bool = False
    deadline: asyncio.TimerHandle | None = None
    started: float = 0.0

    def request(self, session: Session) -> RPCRequest:
        """
        Return it as handlers are given it.
        """
        return RPCRequest(self.name, tuple(self.args), self.kwargs, session)

    def interrupt(self) -> None:
        """
        Cancel its task, once: what it does at its end, such as a rollback, isn't cut short.

        One that has not taken its first step finds that out by itself.
        """
        first, self.given_up = not self.given_up, True
        cuts_nothing = self.sending or (first and not self.answering)
        if self.task is not None and cuts_nothing:
            self.task.cancel()
