"""
At-most-once publishing of messages that are useless when late: requests, answers and pushes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from .connect import REPLY_TIMEOUT
from .line import Link

__all__: list[str] = []

LARGEST: Final = 16 << 20  # bytes that may be in flight


class Publisher:
    """
    Publishes messages in order, each at most once.

    Args:
        link: The connection; it may be shared.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._size = 0

    def put(self, channel: str, message: bytes) -> asyncio.Future[Any] | None:
        """
        Publish *message*; return the future number of receivers, ``None`` if it can't be sent now.

        Args:
            channel: The name of the channel, without the prefix.
            message: The message.
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
                _ = answer.exception()  # not logged: a caller that expects an answer times out

        answer = line.call("PUBLISH", line.channel(channel), message)
        timer = asyncio.get_running_loop().call_later(
            2 * REPLY_TIMEOUT, self._link.drop, f"no answer within {2 * REPLY_TIMEOUT:g} s"
        )
        answer.add_done_callback(sent)
        return answer
