"""
Messages that are of use now or never: questions, answers and pushes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from .connect import LIMIT
from .line import Link

__all__: list[str] = []

LARGEST: Final = 16 << 20  # bytes that may be on their way


class Publisher:
    """
    Publishes messages in their order, each at most once.

    Args:
        link: The connection; it may be shared.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._size = 0

    def put(self, channel: str, message: bytes) -> asyncio.Future[Any] | None:
        """
        Publish *message*; the future tells to how many, and ``None`` that it can't be done now.

        Args:
            channel: Without the prefix.
            message: What.
        """
        line = self._link.line
        if line is None or self._size + len(message) > LARGEST:
            return None
        size = len(message)
        self._size += size

        def sent(answer: asyncio.Future[Any]) -> None:
            self._size -= size
            timer.cancel()
            if not answer.cancelled():
                _ = answer.exception()  # the connection broke, and whoever waits waits in vain

        answer = line.call("PUBLISH", line.channel(channel), message)
        timer = asyncio.get_running_loop().call_later(
            2 * LIMIT, self._link.drop, f"no answer within {2 * LIMIT:g} s"
        )
        answer.add_done_callback(sent)
        return answer
