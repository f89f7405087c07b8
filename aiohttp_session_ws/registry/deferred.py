"""
Orders of a request about its own session: settled before its response, carried out after it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiohttp import web

from .._lineage import Subject
from .._logging import describe_error, log
from .._tasks import maybe_await
from ..sessions.context import RequestContext, Stage, context_of, was_behind_middleware
from ..sessions.session import (
    cookie_of,
    load_session,
    loaded_session,
    put_session,
    was_changed,
    will_be_saved,
)
from .arrival import Arrival
from .core import Core
from .judging import NO_EFFECT
from .order import Order
from .settle import Settlement

__all__: list[str] = []

PUBLISH_WAIT: Final = 0.25  # seconds that a response waits until a refresh is published
POLL: Final = 0.01  # seconds between two checks of a transport's buffer, which has no event


async def context_for(core: Core, request: web.Request) -> RequestContext:
    """
    Return the context of *request*, which is judged now if the middleware hasn't done so.

    Its handler may have replaced or emptied the session by then: the session that the request
    came with is loaded again.
    """
    context = context_of(request)
    if context is not None:
        return context
    settled = was_behind_middleware(request)
    context = await _judge(core, request)
    context.after_middleware = settled
    return context


async def _judge(core: Core, request: web.Request) -> RequestContext:
    session = loaded_session(request)
    if session is not None and cookie_of(request) and (session.new or was_changed(session)):
        put_session(request, None)
        try:
            arrived = await load_session(request)
            carried = core.keys.lineage in arrived and core.keys.lineage not in session
            if session.new or session.empty or carried:
                return await Arrival(core, request).judge()
        finally:
            put_session(request, session)
    return await Arrival(core, request).judge()


async def settle(
    core: Core,
    request: web.Request,
    context: RequestContext,
    response: web.StreamResponse | None,
) -> None:
    """
    Settle *request* before its response is sent, even if its client has disconnected.

    Raises:
        IdentifyFailed: If ``identify`` failed. Nothing of the session is saved.
    """
    await asyncio.shield(core.tasks.spawn(_settle(core, request, context, response), "settle"))


async def _settle(
    core: Core,
    request: web.Request,
    context: RequestContext,
    response: web.StreamResponse | None,
) -> None:
    saved = will_be_saved(response)
    if context.orders.ending is not None:
        # For ``identify``, that task puts the session as it came on the request for a while.
        await asyncio.wait({context.orders.ending})
    try:
        await Settlement(core, request, context, response, saved=saved).settle()
    finally:  # what was recorded is carried out, even if the rest failed
        order = order_of(context)
        if order is not None:
            if order.refresh is None:
                close_later(core, request, context)
            else:
                await _refresh(core, order)
            if order.changes:
                await core.effects.committed()


async def _refresh(core: Core, order: Order) -> None:
    """
    Publish which sockets stay open, before a page can reach another node with the new cookie.
    """
    core.announcer.given(order, NO_EFFECT)
    await core.cluster.publish(order).published(PUBLISH_WAIT)


async def settle_when_sent(
    core: Core,
    request: web.Request,
    context: RequestContext,
    response: web.StreamResponse,
    *,
    saved: bool,
) -> None:
    """
    Settle a request without the middleware once aiohttp_session has saved its session.
    """
    await response_sent(context, request.transport, core.timeouts.response)
    if context.stage is not Stage.HANDLING:
        return
    try:
        await Settlement(core, request, context, response, saved=saved, late=True).settle()
    finally:
        context.finish()
        order = order_of(context)
        if order is not None:
            await _close(core, context, order)


def order_of(context: RequestContext) -> Order | None:
    """
    Return the order to publish and carry out when the response has been sent, if any.
    """
    orders = context.orders
    if not orders.changes and not orders.close_requested:
        return None
    if orders.refresh is not None:
        return Order(orders.changes, refresh=orders.refresh)
    known = context.session_ws_id is not None
    return Order(orders.changes, (Subject("id", context.session_ws_id),) if known else ())


def close_later(core: Core, request: web.Request, context: RequestContext) -> None:
    """
    Carry out the orders of a request when its response has been sent.

    At the latest ``timeouts.response`` seconds after the first order, whatever its handler does.
    """
    orders = context.ordering()
    orders.ordered = time.monotonic()
    if not orders.awaits_response:
        orders.awaits_response = True
        closing = _close_when_sent(core, request, context)
        _ = core.tasks.spawn(closing, "close when sent")


async def _close_when_sent(core: Core, request: web.Request, context: RequestContext) -> None:
    orders = context.orders
    try:
        await response_sent(context, request.transport, core.timeouts.response)
    finally:
        orders.awaits_response = False  # later orders need another task
    order = order_of(context)
    if order is not None:
        await _close(core, context, order, before=orders.ordered)


async def _close(
    core: Core, context: RequestContext, order: Order, *, before: float | None = None
) -> None:
    effect = core.effects.effect_of(order, before=before)
    core.announcer.given(order, effect)
    core.cluster.publish(order)
    if not core.overrides.close_all_session or context.session_ws_id is None:
        await core.effects.carry_out(effect)
        return
    core.effects.carry_out_soon(effect)
    try:
        await maybe_await(core.hooks.close_all_session(context.session_ws_id))
    except Exception as exc:  # noqa: BLE001  the application's
        log.error("close_all_session() failed: %s", describe_error(exc))


async def response_sent(
    context: RequestContext, transport: asyncio.Transport | None, timeout: float
) -> None:
    """
    Wait until the response of a request has left the server.

    That is: the task of the request has ended and the transport's buffer is empty. aiohttp may be
    closing the transport by then, which still sends what is left in the buffer.

    Args:
        context: The context of the request.
        transport: Its transport.
        timeout: Seconds to wait at most.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    if context.task is not None:
        # Whether it returned, failed or was cancelled doesn't matter, and isn't raised here.
        await asyncio.wait({context.task}, timeout=timeout)
    while transport is not None and transport.get_write_buffer_size() and loop.time() < deadline:
        await asyncio.sleep(POLL)
