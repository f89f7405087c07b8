"""
The options of a registry, in groups.
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
    How long to wait for others, in seconds.

    Args:
        close: For a peer to take the close frame and what was sent before it, and to
            answer; then the connection is aborted. At the application's shutdown it is
            half a second at most.
        handler_grace: For a handler to end once its socket is closed; then it is
            cancelled.
        response: For the response of a request that ends or renews a session to leave the
            server; then the session's sockets are closed all the same.
        handshake: For a handshake, from its first step to its answer; then it gets 503. Behind
            the middleware, to load its session and to judge it may take as long each.
        drain: Over which sockets are closed with 1012, in random order, when the
            application shuts down; 0 closes all at once. It comes before aiohttp's
            ``shutdown_timeout``, and a supervisor has to wait for both.
        outbox: For Redis to take what a process that stops has not told yet; another process has
            two seconds more to take over what is left.

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
            raise ValueError("handshake is a number of seconds > 0: no handshake takes no time")


@dataclass(frozen=True, slots=True)
class Limits:
    """
    How many sockets there may be; handshakes in flight count.

    Args:
        per_session: For one session; ``None`` for any number.
        per_identity: For one identity, over all its sessions; ``None`` for any number.
        total: For all of this process; beyond it a handshake gets 503 with ``Retry-After``.
        on_limit: What happens to one too many of a session or an identity:
            ``"evict_oldest"`` closes the oldest with 4429 and lets the new one in when
            that is gone; ``"refuse"`` refuses the new one.
        handshakes_per_second: Of one session, on average; a second's worth may come at once,
            and one at least. One too many gets 429 with ``Retry-After``.
        messages_per_second: Of one session, over all its sockets of this process, likewise.
            The socket that brings one too many is closed with 1008. Sockets that another
            library reads aren't counted.
        scope: What *per_session* and *per_identity* are about: the sockets of each
            ``"process"``, or with a ``RedisSessionWSRegistry`` those of the whole
            ``"cluster"``, exact within a second. While Redis is away each process counts its
            own; what is too much is closed with 4429 when Redis is back. A process that
            crashes takes its sockets along within 15 s.

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
    How long things live, in seconds.

    Args:
        revalidate_every: Seconds, give or take a fifth, between two checks whether the
            session of an open socket is still in its storage and still belongs to the
            same identity; ``None`` to check only when the session's time is over.
        max_lifetime: Seconds after which a socket is closed, whatever its session does;
            ``None`` for no limit.
        revocation_ttl: Seconds to remember an end, since it was last met, if the session
            storage has no ``max_age``. With one, it is that plus an hour. With Redis the
            longest time of all processes counts, for scripts too.
        renewal_grace: Seconds for which a session that was renewed is still served under
            its old id, so that parallel requests and a lost response log nobody out.
        keep_alive: Seconds after which a message that comes in over a socket saves the session
            once more, if the storage keeps it on the server, so that it doesn't expire there;
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
        Return for how many seconds the end of a session is remembered.

        Args:
            max_age: Seconds that the storage keeps a session; ``None`` if without end.
        """
        return self.revocation_ttl if max_age is None else max_age + 3600.0


@dataclass(frozen=True, slots=True)
class PushQueue:
    """
    How much may wait for one peer, and for how long.

    Args:
        messages: How many messages.
        bytes: How many bytes of payload. A message that is larger is taken by an empty
            queue only.
        patience: Seconds after which a peer is closed with 1013 whose queue is full. It
            is full from the first message that finds no room until half of it is sent.

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
