"""
Grouped options of a registry: timeouts, limits, expiry and push queues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Expiry", "Limits", "PushQueue", "Timeouts"]

_POLICIES: Final = ("evict_oldest", "refuse")
_SCOPES: Final = ("process", "cluster")


def _expect_number(name: str, value: object, kind: str = "a number of seconds") -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is {kind}, not {value!r}")


def _expect_seconds(name: str, value: float) -> None:
    _expect_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is a number of seconds >= 0, not {value!r}")


def _expect_positive(name: str, value: float, kind: str = "a number of seconds > 0") -> None:
    _expect_number(name, value, kind.removesuffix(" > 0"))
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {kind}, not {value!r}")


def _expect_count(name: str, value: object, kind: str = "a number > 0") -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {kind}, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} is {kind}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """
    How long to wait for peers, handlers, responses and Redis, in seconds.

    Args:
        close: For a peer to receive the close frame and the data before it, and to answer;
            then the connection is aborted. At the application's shutdown at most half a
            second.
        handler_grace: For a handler to return after its socket has been closed; then it is
            cancelled.
        response: For the response of a request that ends or renews a session to be sent; then
            the session's sockets are closed all the same.
        handshake: For a handshake, from its first step to its answer; then it gets 503. Behind
            the middleware, loading the session and checking it may each take as long.
        drain: The period over which sockets are closed with 1012, in random order, when the
            application shuts down; 0 closes all at once. It precedes aiohttp's
            ``shutdown_timeout``, and a supervisor has to wait for both.
        outbox: For Redis to take the pending orders of a process that stops; then other
            processes have two more seconds to take over the rest.

    Raises:
        TypeError: If one of them is no number.
        ValueError: If one of them is negative or infinite, or *handshake* is 0.
    """

    close: float = 2.0
    handler_grace: float = 1.0
    response: float = 2.0
    handshake: float = 10.0
    drain: float = 0.0
    outbox: float = 5.0

    def __post_init__(self) -> None:
        for name in ("close", "handler_grace", "response", "handshake", "drain", "outbox"):
            _expect_seconds(name, getattr(self, name))
        if not self.handshake:
            raise ValueError("handshake is a number of seconds > 0: with 0 each handshake fails")


@dataclass(frozen=True, slots=True)
class Limits:
    """
    The largest number of sockets, and the rates of a session; handshakes in flight count.

    Args:
        per_session: Sockets of one session; ``None`` for no limit.
        per_identity: Sockets of one identity, in all its sessions; ``None`` for no limit.
        total: Sockets of this process; beyond it a handshake gets 503 with ``Retry-After``.
        on_limit: What happens when a session or an identity exceeds its limit:
            ``"evict_oldest"`` closes its oldest socket with 4429 and opens the new one when
            the oldest is gone; ``"refuse"`` refuses the new one.
        handshakes_per_second: Handshakes of one session, on average; bursts of a second's
            worth, at least one, are allowed. A handshake beyond gets 429 with ``Retry-After``.
        messages_per_second: Messages of one session, over all its sockets of this process,
            likewise. The socket that exceeds it is closed with 1008. Sockets that another
            library reads aren't counted.
        scope: Which sockets *per_session* and *per_identity* count: those of each
            ``"process"``, or with a ``RedisSessionWSRegistry`` those of the whole
            ``"cluster"``, exact within a second. While Redis is away each process counts its
            own; the excess is closed with 4429 when Redis is back. The sockets of a process
            that crashed count for up to 15 s.

    Raises:
        TypeError: If a limit is no number, or one of sockets no whole number.
        ValueError: If a limit is not > 0, or *on_limit* or *scope* something else.
    """

    per_session: int | None = None
    per_identity: int | None = None
    total: int | None = None
    on_limit: Literal["evict_oldest", "refuse"] = "evict_oldest"
    handshakes_per_second: float | None = None
    messages_per_second: float | None = None
    scope: Literal["process", "cluster"] = "process"

    def __post_init__(self) -> None:
        for name in ("per_session", "per_identity", "total"):
            number = getattr(self, name)
            if number is not None:
                _expect_count(name, number, "a number > 0 or None")
        for name in ("handshakes_per_second", "messages_per_second"):
            if (rate := getattr(self, name)) is not None:
                _expect_positive(name, rate, "a number > 0 or None")
        if self.on_limit not in _POLICIES:
            raise ValueError(f"on_limit is 'evict_oldest' or 'refuse', not {self.on_limit!r}")
        if self.scope not in _SCOPES:
            raise ValueError(f"scope is 'process' or 'cluster', not {self.scope!r}")


@dataclass(frozen=True, slots=True)
class Expiry:
    """
    How long sockets, sessions and records live, in seconds.

    Args:
        revalidate_every: Seconds, with a jitter of 20 %, between two checks whether the
            session of an open socket is still in its storage and still belongs to the
            same identity; ``None`` to check only when the session expires.
        max_lifetime: Seconds after which a socket is closed, whatever the state of its
            session; ``None`` for no limit.
        revocation_ttl: Seconds to keep the record of an end, since it last matched a session,
            if the session storage has no ``max_age``. With one, it is that plus an hour. With
            Redis the longest time of all processes applies, to scripts too.
        renewal_grace: Seconds for which a renewed session is still served under its old id,
            so that neither a parallel request nor a lost response logs the user out.
        keep_alive: Seconds after which a message received over a socket saves the session
            again, if the storage keeps it on the server, so that it doesn't expire there;
            ``None`` to leave that to HTTP requests. The cookie isn't renewed by it.

    Raises:
        TypeError: If one of them is no number.
        ValueError: If one of them is not > 0, or infinite.
    """

    revalidate_every: float | None = 300.0
    max_lifetime: float | None = None
    revocation_ttl: float = 30 * 24 * 3600.0
    renewal_grace: float = 30.0
    keep_alive: float | None = None

    def __post_init__(self) -> None:
        for name in ("revalidate_every", "max_lifetime", "keep_alive"):
            if (seconds := getattr(self, name)) is not None:
                _expect_positive(name, seconds)
        for name in ("revocation_ttl", "renewal_grace"):
            _expect_positive(name, getattr(self, name))

    def ttl(self, max_age: int | None) -> float:
        """
        Return for how many seconds the record of an end is kept.

        Args:
            max_age: Seconds that the storage keeps a session; ``None`` for no limit.
        """
        return self.revocation_ttl if max_age is None else max_age + 3600.0


@dataclass(frozen=True, slots=True)
class PushQueue:
    """
    The size of the queue of pushed messages that each connection has.

    Args:
        messages: How many messages it holds.
        bytes: How many bytes of payload it holds. A larger message is queued only if the
            queue is empty.
        patience: Seconds for which a queue may be full before its peer is closed with 1013.
            It is full from the first message that finds no room until half of it is sent.

    Raises:
        TypeError: If one of them is no number.
        ValueError: If there is no room for anything, or *patience* is negative.
    """

    messages: int = 256
    bytes: int = 1_048_576
    patience: float = 5.0

    def __post_init__(self) -> None:
        _expect_count("messages", self.messages)
        _expect_count("bytes", self.bytes)
        _expect_seconds("patience", self.patience)
