"""
The close codes and reasons that are sent to peers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "NORMAL",
    "POLICY_VIOLATION",
    "PROTOCOL_ERROR",
    "RECONNECT",
    "SERVICE_RESTART",
    "SESSION_ENDED",
    "SESSION_EXPIRED",
    "SLOW_CONSUMER",
    "TOO_MANY_CONNECTIONS",
    "Close",
    "as_close",
]

# https://www.iana.org/assignments/websocket: what an endpoint may put into a close frame
_PROTOCOL_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


@dataclass(frozen=True, slots=True)
class Close:
    """
    A close code and its reason (RFC 6455, section 7.4).

    Args:
        code: 1000-1003, 1007-1014, or 3000-4999 for an application's own.
        reason: For the developer at the other end; at most 123 bytes in UTF-8.

    Raises:
        TypeError: If *code* is no number or *reason* no text.
        ValueError: If a close frame cannot carry them.
    """

    code: int
    reason: str = ""

    def __post_init__(self) -> None:
        _expect("a close code is a number", self.code, int)
        _expect("the reason of a close frame is a text", self.reason, str)
        if self.code not in _PROTOCOL_CODES and not 3000 <= self.code <= 4999:
            msg = f"close code {self.code} can't be sent; use one from 3000 to 4999"
            raise ValueError(msg)
        if len(self.reason.encode()) > 123:
            raise ValueError("the reason of a close frame has at most 123 bytes")

    def replace(self, code: int | None, reason: str | None) -> Close:
        """
        Return this close with another code or reason; ``None`` keeps the present one.
        """
        if code is None and reason is None:
            return self
        return Close(
            self.code if code is None else code, self.reason if reason is None else reason
        )


def _expect(rule: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{rule}, not {value!r}")


#: The conversation is complete.
NORMAL: Final = Close(1000)
#: The process is shutting down; reconnect with a back-off.
GOING_AWAY: Final = Close(1001, "server is shutting down")
#: The client speaks another protocol than the application's.
PROTOCOL_ERROR: Final = Close(1002, "protocol error")
#: The application refused the connection or a message.
POLICY_VIOLATION: Final = Close(1008, "refused by the application")
#: The handler crashed; reconnect with a back-off.
INTERNAL_ERROR: Final = Close(1011, "internal error")
#: The process is being drained for a restart; reconnect with a back-off.
SERVICE_RESTART: Final = Close(1012, "service restart")
#: The client reads too slowly for what is pushed to it; reconnect with a back-off.
SLOW_CONSUMER: Final = Close(1013, "too slow")
#: The session has ended: stop, reload the page or log in.
SESSION_ENDED: Final = Close(4401, "session ended")
#: The session has expired: as :data:`SESSION_ENDED`.
SESSION_EXPIRED: Final = Close(4401, "session expired")
#: Reconnect with the present cookie: the first time after a random delay of at most a second.
RECONNECT: Final = Close(4403, "reconnect")
#: Do not reconnect by yourself: a newer socket has taken the place.
TOO_MANY_CONNECTIONS: Final = Close(4429, "too many connections")


def as_close(close: Close | int | None, reason: str | None, default: Close) -> Close:
    """
    Combine the ``close=`` and ``reason=`` arguments of a caller into a close.

    Args:
        close: A close, or its code alone; ``None`` means *default*.
        reason: A reason that replaces the one of the close; ``None`` keeps that.
        default: Used if *close* is ``None``.

    Raises:
        TypeError: If *close* is something else, or *reason* no text.
        ValueError: If a close frame cannot carry them.
    """
    if close is None:
        if reason is None:
            return default  # the most frequent case
        close = default
    elif not isinstance(close, Close):
        # The default's reason fits only the default's code.
        close = default if close == default.code else Close(close)
    return close if reason is None else close.replace(None, reason)
