"""
Actions of a world's pages on their session, each reported to the ledger.
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
    """Serve a page without changes."""


async def write(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Write a value into the session."""
    (await aiohttp_session.get_session(request))["cart"] = ex.number


async def log_in(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log in without renewing the session."""
    ledger.log_in(ex, await aiohttp_session.get_session(request))


async def log_in_renewed(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    """Log in and renew the session, as recommended."""
    session = await aiohttp_session.get_session(request)
    ledger.log_in(ex, session)
    await renew_session_ws(request, response)
    ledger.renewed(ex, session)


async def log_in_anew(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log in with ``new_session()``, as aiohttp_session's documentation advises."""
    session = await aiohttp_session.new_session(request)
    ledger.replaced(ex)
    ledger.log_in(ex, session)


async def log_in_refilled(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log in with an emptied session, a common idiom against session fixation."""
    session = await aiohttp_session.get_session(request)
    session.invalidate()
    ledger.replaced(ex)
    ledger.log_in(ex, session)


async def log_in_only_here(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    """Log in, and log out everywhere else."""
    ledger.log_in(ex, await aiohttp_session.get_session(request))
    ledger.order_identity(ex, ex.plan.user)
    await _end_others(ledger, ex, request, response)


async def renew(ledger: Ledger, ex: Exchange, request: web.Request, response: Response) -> None:
    """Renew the session, as after a change of permissions."""
    await renew_session_ws(request, response)
    ledger.renewed(ex, await aiohttp_session.get_session(request))


async def refresh(ledger: Ledger, ex: Exchange, request: web.Request, response: Response) -> None:
    """Renew the session and keep its sockets open."""
    await renew_session_ws(request, response, sockets="keep")
    ledger.renewed(ex, await aiohttp_session.get_session(request), keep=True)


async def take_new_id(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Renew the session with the helper of 1.1.1."""
    await new_session_ws_id(request)
    ledger.renewed(ex, await aiohttp_session.get_session(request))


async def delete_id(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Delete the id: a renewal with ``identify``, an end without."""
    await delete_session_ws_id(request)
    ledger.id_deleted(ex, await aiohttp_session.get_session(request))


async def log_out(ledger: Ledger, ex: Exchange, request: web.Request, response: Response) -> None:
    """Log out with ``end_session_ws()``."""
    ledger.log_out(ex)
    await end_session_ws(request, response)


async def log_out_by_pattern(
    ledger: Ledger, ex: Exchange, request: web.Request, response: Response
) -> None:
    """Log out by the pattern in the README of 1.1.1."""
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    ledger.replaced(ex)
    await new_session_ws_id(request)


async def empty(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log out with ``invalidate()``, without calling the library."""
    (await aiohttp_session.get_session(request)).invalidate()
    ledger.replaced(ex)


async def replace(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Log out with ``new_session()``, without calling the library."""
    await aiohttp_session.new_session(request)
    ledger.replaced(ex)


async def forget_user(ledger: Ledger, ex: Exchange, request: web.Request, _: Response) -> None:
    """Delete the user from the session and keep the cart."""
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
    """Ask the sockets of the session to reconnect."""
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
#: Actions that raise an error without ``identify``.
ABOUT_IDENTITIES = {"log_in_only_here", "log_out_everywhere", "log_out_elsewhere"}
