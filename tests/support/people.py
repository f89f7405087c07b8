"""
Helpers that log in, and that check what a session cookie still gives access to.
"""

from __future__ import annotations

import json

from tests.support import (
    PATIENCE,
    Client,
    cookie_of,
)


async def session_of(client: Client, user: str = "ann") -> str:
    """Log in as *user* without any earlier cookie; return the session's cookie."""
    client.session.cookie_jar.clear()
    await client.get("/enter", params={"user": user})
    cookie = cookie_of(client)
    client.session.cookie_jar.clear()
    return cookie


async def outcome(client: Client, cookie: str) -> int | str:
    """Connect with *cookie*; return the close code of the refusal, or the socket's user."""
    client.session.cookie_jar.clear()
    async with client.ws_connect("/ws", headers={"Cookie": cookie}) as ws:
        message = await ws.receive(timeout=PATIENCE)
        if isinstance(message.data, int):
            return message.data
        return str(json.loads(message.data)[1])


async def seen_as(client: Client, cookie: str) -> str | None:
    """Return the user of an HTTP request with *cookie*, ``None`` if it is anonymous."""
    client.session.cookie_jar.clear()
    async with client.get("/whoami", headers={"Cookie": cookie}) as response:
        user: str | None = (await response.json())["user"]
        return user
