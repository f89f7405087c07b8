"""
Browsers without a page: what a cookie is good for.
"""

from __future__ import annotations

import json

from tests.support import (
    PATIENCE,
    Client,
    cookie_of,
)


async def session_of(client: Client, user: str = "ann") -> str:
    """Make a session of *user* in a browser of its own; return its cookie."""
    client.session.cookie_jar.clear()
    await client.get("/enter", params={"user": user})
    cookie = cookie_of(client)
    client.session.cookie_jar.clear()
    return cookie


async def outcome(client: Client, cookie: str) -> int | str:
    """Connect with *cookie*; return the code of the refusal, or as whom one is in."""
    client.session.cookie_jar.clear()
    async with client.ws_connect("/ws", headers={"Cookie": cookie}) as ws:
        message = await ws.receive(timeout=PATIENCE)
        if isinstance(message.data, int):
            return message.data
        return str(json.loads(message.data)[1])


async def seen_as(client: Client, cookie: str) -> str | None:
    """Tell as whom an HTTP request with *cookie* is seen."""
    client.session.cookie_jar.clear()
    async with client.get("/whoami", headers={"Cookie": cookie}) as response:
        user: str | None = (await response.json())["user"]
        return user
