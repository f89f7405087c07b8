"""
HTTP responses to refused handshakes, each with the reason that it is counted under.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

__all__: list[str] = []

RETRY: Final = {"Retry-After": "1"}  # seconds


class Forbidden(web.HTTPForbidden):
    """
    403: the handshake may not open a socket.

    Args:
        why: The reason, a key of ``Stats.refusals``.
        text: The body of the response.
    """

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text=text)
        self.why = why


class Unavailable(web.HTTPServiceUnavailable):
    """
    503 with ``Retry-After``: the handshake may be retried.

    Args:
        why: The reason, a key of ``Stats.refusals``.
        text: The body of the response.
    """

    def __init__(self, why: str, text: str) -> None:
        super().__init__(headers=RETRY, text=text)
        self.why = why


class TooMany(web.HTTPTooManyRequests):
    """
    429 with ``Retry-After``: the session exceeds its rate of handshakes.

    Args:
        why: The reason, a key of ``Stats.refusals``.
        text: The body of the response.
        pause: Seconds until the handshake may be retried.
    """

    def __init__(self, why: str, text: str, pause: int) -> None:
        super().__init__(headers={"Retry-After": str(pause)}, text=text)
        self.why = why
