"""
The middleware: judges each session on arrival, and settles it before the response is sent.
"""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from .._origin import is_websocket
from ..exceptions import (
    HandshakeRefused,
    IdentifyFailed,
    InvalidIdentity,
    SessionEnded,
    SessionWSClosed,
)
from ..registry.arrival import Arrival, begin_request, fast_path_load, try_fast_path
from ..registry.core import Core
from ..registry.deferred import settle
from ..sessions.context import HANDLING, RequestContext, context_of
from ..sessions.session import put_session
from .lookup import core_from
from .refusal import accept_and_close, report_refusal

__all__ = ["session_ws_middleware"]


@web.middleware
async def session_ws_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """
    Give every session an id that its websockets are found by, and close them when it ends.

    Must be installed directly inside aiohttp_session's middleware. It

    - gives a session that has none an id and a lineage before the handler runs, which sets a
      cookie on a visitor's first request. A response with status >= 400 to a new visitor saves
      nothing;
    - gives a request whose session has ended a new, empty one, before any handler sees it;
    - compares the session before and after the handler: a log-out, a log-in or a renewal
      closes its sockets when the response has been sent, and changes that would restore an
      ended session aren't saved;
    - answers a handshake that is refused because of its session with a close code, which a
      page's script can see.

    It loads the session of every request, and costs a few microseconds.

    Raises:
        NotSetUp: If ``setup()`` was not called, or aiohttp_session's middleware is missing
            or comes later.
        aiohttp.web.HTTPServiceUnavailable: If ``identify`` was needed and failed.
    """
    core, context = core_from(request), context_of(request)
    if context is not None and context.stage is HANDLING:
        return await handler(request)  # installed twice, in a sub-application as well
    # Begun first: orders that are given while the session is loaded count as later ones.
    context = begin_request(core, request)
    if hdrs.UPGRADE in request.headers:
        await _arrive_with_timeout(core, request, context)
    else:
        loading = fast_path_load(core, request)
        if loading is None or not try_fast_path(core, request, context, await loading):
            await _arrive(core, request, context)
    context.behind_middleware = True
    response: web.StreamResponse | None = None
    try:
        response = await handler(request)
    except (SessionWSClosed, SessionEnded, web.HTTPException) as exc:
        response = exc if isinstance(exc, web.HTTPException) else None
        return await _response_for(core, context, request, exc)
    finally:
        connection = context.connection
        if connection is not None:
            context.release()
        elif not context.is_untouched(request):
            await _settle(core, request, context, response)
        context.finish()
    if connection is not None:
        ws: web.WebSocketResponse = connection.ws
        return ws  # no HTTP response fits into an open socket
    if type(response) is not web.Response and isinstance(response, web.WebSocketResponse):
        core.warn.foreign_websocket(request)
    return response


async def _arrive(core: Core, request: web.Request, context: RequestContext) -> None:
    """
    Judge a request for which ``try_fast_path()`` is not enough.
    """
    try:
        await Arrival(core, request, context).judge()
    except BaseException:
        put_session(request, None)  # nothing is saved
        raise


async def _arrive_with_timeout(core: Core, request: web.Request, context: RequestContext) -> None:
    """
    Judge a request that asks for an upgrade, within the timeout of handshakes.
    """
    core.handshakes.begin(context, request, context.task)
    try:
        loading = fast_path_load(core, request)
        if loading is None or not try_fast_path(core, request, context, await loading):
            await _arrive(core, request, context)
    except BaseException as exc:
        error = core.handshakes.fail(context, exc)
        if is_websocket(request):
            await report_refusal(core, request, error)
        if error is exc:
            raise
        raise error from exc
    core.handshakes.end(context)


async def _settle(
    core: Core,
    request: web.Request,
    context: RequestContext,
    response: web.StreamResponse | None,
) -> None:
    try:
        await settle(core, request, context, response)
    except (IdentifyFailed, InvalidIdentity) as exc:
        # A log-out that can't be judged must not look successful.
        raise web.HTTPServiceUnavailable(
            headers={"Retry-After": "1"}, text="the session can't be identified now"
        ) from exc


async def _response_for(
    core: Core,
    context: RequestContext,
    request: web.Request,
    exc: SessionWSClosed | SessionEnded | web.HTTPException,
) -> web.StreamResponse:
    """
    Return the response to a request whose handler raised, or raise it.
    """
    if isinstance(exc, SessionWSClosed):
        return exc.response
    if context.connection is not None:
        ws: web.WebSocketResponse = context.connection.ws
        return ws
    if isinstance(exc, HandshakeRefused):
        context.handshake_failed = True
        return await accept_and_close(core, request, exc.close)
    if isinstance(exc, SessionEnded):
        raise web.HTTPForbidden(text="the session has ended") from exc
    raise exc
