"""
The demo's calls: a stream, a topic, and a procedure that asks the tab that has called it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from msgspec import Meta, Struct

from aiohttp_session_ws import rpc

STEP = 0.1  # seconds from one part of the countdown to the next

routes = rpc.Routes("demo.")


class Note(Struct):
    """
    What somebody has written on the board.
    """

    who: str
    text: str


@routes.route()
async def countdown(seconds: Annotated[int, Meta(ge=1, le=60)]) -> AsyncIterator[float]:
    """
    Count down; each part is the seconds that are left.
    """
    for left in range(round(seconds / STEP), 0, -1):
        yield round(left * STEP, 1)
        await asyncio.sleep(STEP)


@routes.topic("board")
async def board() -> AsyncIterator[None]:
    """
    Notes that all tabs of all users have, on all servers.
    """
    yield


@routes.route()
async def write(
    text: Annotated[str, Meta(min_length=1, max_length=200)],
    *,
    session: rpc.Session,
    application: rpc.Application,
) -> int:
    """
    Write on the board; the result is how many tabs have it.
    """
    note = Note(session.identity, text)
    return (await application.publish("demo.board", [note])).sockets


@routes.route()
async def pay(amount: Annotated[int, Meta(ge=1, le=100)], *, session: rpc.Session) -> str:
    """
    Pay, if this tab allows it.
    """
    if not await session.call("allow", f"Pay {amount} €?", timeout=60.0):
        raise rpc.RPCError("demo.error.declined", "You have declined.")
    return f"{session.identity} has paid {amount} €."


def make_calls() -> rpc.Application:
    """
    Return an application of the calls, for users who have logged in.
    """
    made = rpc.Application(dialects={"wamp"}, name="demo")
    made.default.add_rpc_routes(routes)
    made.default.add_transport_authenticator(rpc.session_identity)
    made.default.errors |= {
        TimeoutError: "demo.error.no_answer",
        rpc.NotRegistered: "demo.error.no_answer",
    }
    made.set_default_arg("application", made)
    return made


#: What the page's types are made from:
#: python -m aiohttp_session_ws.rpc typescript demo.calls:application > demo/static/session-ws.d.ts
application = make_calls()
