"""
Limits and timeouts of one connection.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["CallLimits"]


@dataclass(frozen=True, slots=True)
class CallLimits:
    """
    The limits of one RPC connection.

    Args:
        calls: How many calls may run at once, streams included. A call counts until its answer
            has been passed to the transport.
        waiting: How many further calls may be queued; any beyond are answered with
            ``wamp.error.unavailable``.
        waiting_bytes: How many bytes the frames of queued calls may have in total. SUBSCRIBE,
            REGISTER and their opposites have a queue of their own, with the same two limits.
        outgoing: How many bytes may wait to be sent; above this, no call is started.
        patience: Seconds after which a peer that reads nothing is closed with 1013.
        message: How many bytes a message may have; a larger one closes with 1009.
        subscriptions: How many topics a session may subscribe to; the names may have as many
            characters in total as *message* has bytes.
        registrations: How many procedures its client may register; the same limit holds for
            their names.
        join: Seconds for HELLO and authentication together.
        ping: Seconds from the answer to a ping until the next ping, in wsrpc.
        silence: Seconds after which a peer that doesn't answer a ping is closed.

    Raises:
        TypeError: If one is not a number.
        ValueError: If one is negative, or zero where zero would allow nothing.
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
                raise TypeError(f"CallLimits({field.name}=) must be {names}, not {value!r}")
            least = 0 if field.name in _MAY_BE_ZERO else 1 if wanted == (int,) else 1e-3
            if not value >= least:
                raise ValueError(
                    f"CallLimits({field.name}=) must be at least {least}, not {value!r}"
                )


_MAY_BE_ZERO = frozenset(
    {"waiting", "waiting_bytes", "outgoing", "subscriptions", "registrations"}
)
