"""
Messages that are of use now or never: questions, answers and pushes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice
from typing import Final

from ..exceptions import RedisAway
from .store import Store

__all__: list[str] = []

LARGEST: Final = 16 << 20  # bytes that may wait
BATCH: Final = 100  # messages in one round trip


class Mailbox:
    """
    Publishes messages in their order, each at most once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._messages: deque[tuple[str, str | bytes]] = deque()
        self._size = 0
        self._wake = asyncio.Event()

    def put(self, channel: str, message: str | bytes) -> bool:
        """
        Publish *message*; tell whether that will be tried.

        Args:
            channel: Without the prefix.
            message: What.
        """
        if self._store.away or self._size + len(message) > LARGEST:
            return False
        self._messages.append((channel, message))
        self._size += len(message)
        self._wake.set()
        return True

    async def run(self) -> None:
        """
        Publish until cancelled.
        """
        while True:
            self._wake.clear()
            while self._messages:
                batch = list(islice(self._messages, BATCH))
                try:
                    await self._store.publish(batch)
                except RedisAway:
                    self._messages.clear()
                    self._size = 0
                    break
                for _, message in batch:
                    self._size -= len(message)
                    self._messages.popleft()
            await self._wake.wait()
