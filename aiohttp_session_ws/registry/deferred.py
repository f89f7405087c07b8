"""
Orders that a request gives about its own session: their sockets close when it is answered.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiohttp import web

from .._logging import describe_error, log
from .._tasks import maybe_await
from ..sessions.context import RequestContext, Stage, context_of
from .arrival import Arrival
from .cluster import Order
from .core import Core
from .settle import Settlement

__all__: list[str] = []

POLL: Final = 0.01  # seconds between two looks at a transport's buffer; it has no event for us


async def context_for(core: Core, request: web.Request) -> RequestContext:
    """
    Return the context of *request*, which is judged now if the middleware hasn't.
    """
    context = context_of(request)
    return await Arrival(core, request).judge() if context is None else context


async def settle(
    core: Core,
    request: web.Request,
    context: RequestContext,
    response: web.StreamResponse | None,
) -> None:
    """
    Settle *request* before its response leaves, though its client may be gone.

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
    try:
        order = await Settlement(core, request, context, response).settle()
    except Exception:
        order = unsettled_order(context)
        if order is not None:
            _ = core.tasks.spawn(close_when_sent(core, request, context, order), "close when sent")
        raise
    if order is not None:
        _ = core.tasks.spawn(close_when_sent(core, request, context, order), "close when sent")
        if order.changes:
            await core.committed()


def unsettled_order(context: RequestContext) -> Order | None:
    """
    Return what an explicit order has ended, of a request that could not be settled.
    """
    changes = context.orders.changes
    return Order(changes) if changes else None


async def settle_when_sent(
    core: Core, request: web.Request, context: RequestContext, response: web.StreamResponse
) -> None:
    """
    Settle a request without the middleware: aiohttp_session has saved by then.
    """
    await response_sent(context, request.transport, core.timeouts.response)
    if context.stage is not Stage.HANDLING:
        return
    order = await Settlement(core, request, context, response).settle()
    context.finish()
    if order is not None:
        await _close(core, context, order)


async def close_when_sent(
    core: Core, request: web.Request, context: RequestContext, order: Order
) -> None:
    """
    Tell other nodes of an order and close its sockets when the response has been sent.
    """
    ordered = time.monotonic()
    await response_sent(context, request.transport, core.timeouts.response)
    await _close(core, context, order, before=ordered)


async def _close(
    core: Core, context: RequestContext, order: Order, *, before: float | None = None
) -> None:
    core.cluster.publish(order, recorded=True)
    await core.carry_out(core.effect_of(order, before=before))
    if core.overrides.close_all_session and context.session_ws_id is not None:
        try:
            await maybe_await(core.hooks.close_all_session(context.session_ws_id))
        except Exception as exc:  # noqa: BLE001  the application's
            log.error("close_all_session() failed: %s", describe_error(exc))


async def response_sent(
    context: RequestContext, transport: asyncio.Transport | None, timeout: float
) -> None:
    """
    Wait until the response of a request has left the server.

    That is: the task of the request has ended and the transport's buffer is empty.

    Args:
        context: The request.
        transport: Its transport.
        timeout: Seconds after which the response is not waited for any more.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    if context.task is not None:
        # Done, failed or cancelled is all the same, and nothing is raised here.
        await asyncio.wait({context.task}, timeout=timeout)
    while (
        transport is not None
        and not transport.is_closing()
        and transport.get_write_buffer_size()
        and loop.time() < deadline
    ):
        await asyncio.sleep(POLL)
