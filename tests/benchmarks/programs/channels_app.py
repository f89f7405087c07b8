"""
A server on Django Channels and uvicorn; each session is a group.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any
from urllib.parse import parse_qs

import django
import uvicorn
import uvloop
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

from .control import BACKLOG, HOST, Control


class Channels(Control):
    """
    The server.
    """

    def __init__(self) -> None:
        super().__init__()
        consumer = make_consumer(self)
        routes = URLRouter([path("ws", consumer.as_asgi())])
        config = uvicorn.Config(
            ProtocolTypeRouter({"websocket": routes}),
            host=HOST,
            port=0,
            backlog=BACKLOG,
            lifespan="off",
            access_log=False,
            log_level="warning",
            ws_ping_interval=30,
        )
        self._server: Any = uvicorn.Server(config)

    async def _tell(self, group: str, **message: str) -> None:
        await get_channel_layer().group_send(group, message)

    async def close_session(self, sid: str) -> None:
        """
        Send the event to close to a session's group.
        """
        await self._tell(f"s_{sid}", type="force.close")

    order = close_session

    async def shutdown(self) -> None:
        """
        Have uvicorn close all sockets, as it does on SIGTERM.
        """
        self._server.should_exit = True
        await self._served

    async def broadcast(self, text: str) -> None:
        """
        Send a text to the group of all sockets.
        """
        await self._tell("everyone", type="force.send", text=text)

    async def serve(self) -> None:
        """
        Serve until the process is killed.
        """
        self._served = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.02)
        self.listen(self._server.servers[0].sockets[0].getsockname()[1])
        await asyncio.Event().wait()


def make_consumer(server: Channels) -> Any:
    """
    Return the consumer class of a server.
    """

    class Consumer(AsyncWebsocketConsumer):
        async def connect(self) -> None:
            sid = parse_qs(self.scope["query_string"].decode())["sid"][0]
            self.groups_of_mine = (f"s_{sid}", "everyone")
            for group in self.groups_of_mine:
                await self.channel_layer.group_add(group, self.channel_name)
            await self.accept()
            server.open += 1

        async def disconnect(self, code: int) -> None:
            server.open -= 1
            for group in self.groups_of_mine:
                await self.channel_layer.group_discard(group, self.channel_name)

        async def force_close(self, event: object) -> None:
            await self.close(code=4403)

        async def force_send(self, event: dict[str, str]) -> None:
            await self.send(text_data=event["text"])

    return Consumer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int)
    redis = parser.parse_args().redis
    layer: dict[str, Any] = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    if redis is not None:
        layer = {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            "CONFIG": {"hosts": [(HOST, redis)]},
        }
    settings.configure(
        ALLOWED_HOSTS=["*"],
        CHANNEL_LAYERS={"default": layer},
        INSTALLED_APPS=["channels"],
        LOGGING_CONFIG=None,
        SECRET_KEY="benchmark",
    )
    django.setup()
    uvloop.run(Channels().serve())
