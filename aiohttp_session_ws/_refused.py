"""
The HTTP answers to handshakes that are refused, each with the word that it is counted under.
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
        why: The word for it.
        text: What the client is told.
    """

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text=text)
        self.why = why


class Unavailable(web.HTTPServiceUnavailable):
    """
    503 with ``Retry-After``: it may be tried again.

    Args:
        why: The word for it.
        text: What the client is told.
    """

    def __init__(self, why: str, text: str) -> None:
        super().__init__(headers=RETRY, text=text)
        self.why = why


class TooMany(web.HTTPTooManyRequests):
    """
    429 with ``Retry-After``: there were too many lately.

    Args:
        why: The word for it.
        text: What the client is told.
        pause: Seconds until it may be tried again.
    """

    def __init__(self, why: str, text: str, pause: int) -> None:
        super().__init__(headers={"Retry-After": str(pause)}, text=text)
        self.why = why
