"""
What a page of a world can do to its session, and what that means for log-ins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import aiohttp_session
from aiohttp import web

from aiohttp_session_ws import (
    SessionWSError,
    delete_session_ws_id,
    end_identity_ws,
    end_other_sessions_ws,
    end_session_ws,
    new_session_ws_id,
    renew_session_ws,
    schedule_close_all_session_ws,
)

from .exchange import Exchange
from .ledger import Ledger

Response: TypeAlias = web.StreamResponse
Body: TypeAlias = Callable[[Ledger, Exchange, web.Request, Response], Awaitable[None]]


async def read(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Show a page."""


async def write(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Put something into the cart."""
    (await aiohttp_session.get_session(request))["cart"] = ex.number


async def log_in(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log in without a renewal."""
    ledger.log_in(ex, await aiohttp_session.get_session(request))


async def log_in_renewed(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    """Log in as one should."""
    session = await aiohttp_session.get_session(request)
    ledger.log_in(ex, session)
    await renew_session_ws(request, response)
    ledger.renewed(ex, session)


async def log_in_anew(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log in with a new session, as aiohttp_session's documentation advises."""
    session = await aiohttp_session.new_session(request)
    ledger.replaced(ex)
    ledger.log_in(ex, session)


async def log_in_refilled(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log in with an emptied session, a usual idiom against fixation."""
    session = await aiohttp_session.get_session(request)
    session.invalidate()
    ledger.replaced(ex)
    ledger.log_in(ex, session)


async def log_in_only_here(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    """Log in, and out everywhere else."""
    ledger.log_in(ex, await aiohttp_session.get_session(request))
    ledger.order_identity(ex, ex.plan.user)
    await _end_others(ledger, ex, request, response)


async def renew(ledger: Ledger, ex: Exchange, request: web.Request, response: Response) -> None:
    """Renew the session, after a change of rights."""
    await renew_session_ws(request, response)
    ledger.renewed(ex, await aiohttp_session.get_session(request))


async def refresh(ledger: Ledger, ex: Exchange, request: web.Request, response: Response) -> None:
    """Renew the session, and let its sockets go on."""
    await renew_session_ws(request, response, sockets="keep")
    ledger.renewed(ex, await aiohttp_session.get_session(request), keep=True)


async def take_new_id(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Renew the session by 1.1.1's helper."""
    await new_session_ws_id(request)
    ledger.renewed(ex, await aiohttp_session.get_session(request))


async def delete_id(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Take the id away: a renewal with ``identify``, an end without."""
    await delete_session_ws_id(request)
    ledger.id_deleted(ex, await aiohttp_session.get_session(request))


async def log_out(ledger: Ledger, ex: Exchange, request: web.Request, response: Response) -> None:
    """Log out by our helper."""
    ledger.log_out(ex)
    await end_session_ws(request, response)


async def log_out_by_pattern(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    """Log out as the README of 1.1.1 told."""
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    ledger.replaced(ex)
    await new_session_ws_id(request)


async def empty(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log out without a word to us."""
    (await aiohttp_session.get_session(request)).invalidate()
    ledger.replaced(ex)


async def replace(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log out without a word to us, another way."""
    await aiohttp_session.new_session(request)
    ledger.replaced(ex)


async def forget_user(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Take the user out of the session and keep the cart."""
    session = await aiohttp_session.get_session(request)
    session.pop("user", None)
    session.pop("tok", None)
    session.pop("device", None)
    session["cart"] = ex.number
    ledger.user_left(ex)


async def log_out_everywhere(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    """Log out everywhere."""
    ledger.log_out(ex)
    ledger.order_identity(ex, (ex.saw or {}).get("user"))
    await end_identity_ws(request, response)
    ledger.ended_everywhere(ex)


async def log_out_elsewhere(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    """Log out everywhere else."""
    ledger.order_identity(ex, (ex.saw or {}).get("user"))
    await _end_others(ledger, ex, request, response)


async def _end_others(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    try:
        done = await end_other_sessions_ws(request, response)
    except SessionWSError:
        ledger.order_refused(ex)
        raise
    if done:
        ledger.ended_elsewhere(ex, await aiohttp_session.get_session(request))
    else:
        ledger.order_refused(ex)


async def close_sockets(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    """Tell the sockets of the session to come back."""
    ledger.close_sockets(ex)
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
        refresh,
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
