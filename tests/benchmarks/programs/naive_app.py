"""
The predecessor on many processes, as one writes it in an hour: each order is published to all,
and each receiver closes its own sockets. Nothing is recorded, and a missed message is lost.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, Final

from redis.asyncio import Redis

from .app import App
from .control import HOST

CHANNEL: Final = "naive"


class NaiveApp(App):
    """
    The server.
    """

    def __init__(self, redis: int) -> None:
        super().__init__("session", echo=False, redis=None, order="")
        self._redis: Any = Redis(host=HOST, port=redis)
        self._closing: set[asyncio.Task[None]] = set()

    async def listen_to_others(self) -> None:
        """
        Receive orders, and close the sockets of the session that each names.
        """
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe(CHANNEL)
        async for message in pubsub.listen():
            sid = message["data"].decode()
            if sid in self._registry:
                # Not awaited: a client that doesn't answer must not hold up others.
                task = asyncio.create_task(self._registry.close_all_session(sid))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def order(self, sid: str) -> None:
        """
        Publish an order to close a session's sockets on all nodes.
        """
        await self._redis.publish(CHANNEL, sid)

    async def serve(self) -> None:
        """
        Serve until the process is killed.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self.listen_to_others())
            group.create_task(super().serve())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int, required=True)
    given = parser.parse_args()
    asyncio.run(NaiveApp(given.redis).serve())
