"""
What a page of a world can do to its session, and what that means for log-ins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import aiohttp_session
from aiohttp import web

from aiohttp_session_ws import (
    delete_session_ws_id,
    end_identity_ws,
    end_other_sessions_ws,
    end_session_ws,
    new_session_ws_id,
    renew_session_ws,
    schedule_close_all_session_ws,
)

from .exchange import Exchange
from .oracle import Oracle

Body: TypeAlias = Callable[[Oracle, Exchange, web.Request, web.StreamResponse], Awaitable[None]]


async def read(o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse) -> None:
    """Show a page."""


async def write(o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse) -> None:
    """Put something into the cart."""
    (await aiohttp_session.get_session(request))["cart"] = ex.number


async def log_in(o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse) -> None:
    """Log in without a renewal."""
    o.log_in(ex, await aiohttp_session.get_session(request))


async def log_in_renewed(
    o: Oracle, ex: Exchange, request: web.Request, response: web.StreamResponse
) -> None:
    """Log in as one should."""
    session = await aiohttp_session.get_session(request)
    o.log_in(ex, session)
    await renew_session_ws(request, response)
    o.renewed(ex, session)


async def log_in_anew(o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse) -> None:
    """Log in with a new session, as aiohttp_session's documentation advises."""
    session = await aiohttp_session.new_session(request)
    o.replaced(ex)
    o.log_in(ex, session)


async def log_in_refilled(
    o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse
) -> None:
    """Log in with an emptied session, a usual idiom against fixation."""
    session = await aiohttp_session.get_session(request)
    session.invalidate()
    o.replaced(ex)
    o.log_in(ex, session)


async def log_in_only_here(
    o: Oracle, ex: Exchange, request: web.Request, response: web.StreamResponse
) -> None:
    """Log in, and out everywhere else."""
    o.log_in(ex, await aiohttp_session.get_session(request))
    o.order_identity(ex, ex.plan.user)
    await _end_others(o, ex, request, response)


async def renew(
    o: Oracle, ex: Exchange, request: web.Request, response: web.StreamResponse
) -> None:
    """Renew the session, after a change of rights."""
    await renew_session_ws(request, response)
    o.renewed(ex, await aiohttp_session.get_session(request))


async def take_new_id(
    o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse
) -> None:
    """Renew the session by 1.1.1's helper."""
    await new_session_ws_id(request)
    o.renewed(ex, await aiohttp_session.get_session(request))


async def delete_id(o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse) -> None:
    """Take the id away: a renewal with ``identify``, an end without."""
    await delete_session_ws_id(request)
    o.id_deleted(ex, await aiohttp_session.get_session(request))


async def log_out(
    o: Oracle, ex: Exchange, request: web.Request, response: web.StreamResponse
) -> None:
    """Log out by our helper."""
    o.log_out(ex)
    await end_session_ws(request, response)


async def log_out_by_pattern(
    o: Oracle, ex: Exchange, request: web.Request, response: web.StreamResponse
) -> None:
    """Log out as the README of 1.1.1 told."""
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    o.replaced(ex)
    await new_session_ws_id(request)


async def empty(o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse) -> None:
    """Log out without a word to us."""
    (await aiohttp_session.get_session(request)).invalidate()
    o.replaced(ex)


async def replace(o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse) -> None:
    """Log out without a word to us, another way."""
    await aiohttp_session.new_session(request)
    o.replaced(ex)


async def forget_user(
    o: Oracle, ex: Exchange, request: web.Request, _: web.StreamResponse
) -> None:
    """Take the user out of the session and keep the cart."""
    session = await aiohttp_session.get_session(request)
    session.pop("user", None)
    session.pop("tok", None)
    session["cart"] = ex.number
    o.user_left(ex)


async def log_out_everywhere(
    o: Oracle, ex: Exchange, request: web.Request, response: web.StreamResponse
) -> None:
    """Log out everywhere."""
    o.log_out(ex)
    o.order_identity(ex, (ex.saw or {}).get("user"))
    await end_identity_ws(request, response)
    o.ended_everywhere(ex)


async def log_out_elsewhere(
    o: Oracle, ex: Exchange, request: web.Request, response: web.StreamResponse
) -> None:
    """Log out everywhere else."""
    o.order_identity(ex, (ex.saw or {}).get("user"))
    await _end_others(o, ex, request, response)


async def _end_others(
    o: Oracle, ex: Exchange, request: web.Request, response: web.StreamResponse
) -> None:
    if await end_other_sessions_ws(request, response):
        o.ended_elsewhere(ex, await aiohttp_session.get_session(request))
    else:
        o.order_refused(ex)


async def close_sockets(
    o: Oracle, ex: Exchange, request: web.Request, response: web.StreamResponse
) -> None:
    """Tell the sockets of the session to come back."""
    o.close_sockets(ex)
    await schedule_close_all_session_ws(request, response)


ACTIONS: dict[str, Body] = {
    body.__name__: body
    for body in (
        read,
        write,
        log_in,
        log_in_renewed,
        log_in_anew,
        log_in_refilled,
        log_in_only_here,
        renew,
        take_new_id,
        delete_id,
        log_out,
        log_out_by_pattern,
        empty,
        replace,
        forget_user,
        log_out_everywhere,
        log_out_elsewhere,
        close_sockets,
    )
}
#: What raises without ``identify``.
ABOUT_IDENTITIES = {"log_in_only_here", "log_out_everywhere", "log_out_elsewhere"}
