"""
What one connection may ask for, and for how long it is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["CallLimits"]


@dataclass(frozen=True, slots=True)
class CallLimits:
    """
    The limits of one connection that calls.

    Args:
        calls: How many calls may run at once, streams included. One counts until its answer
            is with the transport.
        waiting: How many more may wait for one of these to end; any beyond are answered
            ``wamp.error.unavailable``.
        waiting_bytes: How many bytes of frames they may have together. Both count once more
            for what is done in order: SUBSCRIBE, REGISTER and their opposites.
        outgoing: How many bytes may wait to be sent; while it is more, no call is begun.
        patience: Seconds after which a peer is closed with 1013 that takes nothing.
        message: How many bytes a message may have; a larger one closes with 1009.
        subscriptions: How many topics a session may have subscribed; their names have no more
            characters together than a message has bytes.
        registrations: How many procedures of its own it may have registered, with names that
            are no longer.
        join: Seconds for HELLO and authentication together.
        ping: Seconds between two pings in wsrpc.
        silence: Seconds after which a peer is closed that doesn't answer one that was sent.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is less than zero, or zero where nothing could be done then.
    """

    calls: int = 100
    waiting: int = 100
    waiting_bytes: int = 1_048_576
    outgoing: int = 1_048_576
    patience: float = 5.0
    message: int = 1_048_576
    subscriptions: int = 100
    registrations: int = 100
    join: float = 10.0
    ping: float = 30.0
    silence: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = (int, float) if isinstance(field.default, float) else (int,)
            if type(value) not in wanted:
                names = " or ".join(kind.__name__ for kind in wanted)
                raise TypeError(f"CallLimits({field.name}=) is {names}, not {value!r}")
            least = 0 if field.name in _MAY_BE_ZERO else 1 if wanted == (int,) else 1e-3
            if not value >= least:
                raise ValueError(f"CallLimits({field.name}=) is at least {least}, not {value!r}")


_MAY_BE_ZERO = frozenset(
    {"waiting", "waiting_bytes", "outgoing", "subscriptions", "registrations"}
)
