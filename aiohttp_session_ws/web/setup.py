"""
``setup()``, and the functions for handlers, which find the registry of their request.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Hashable
from typing import Any, Final, Literal

from aiohttp import web

from .._tasks import maybe_await
from ..exceptions import NotSetUp
from ..registry.registry import SessionWSRegistry, core_of
from ..sessions.context import HANDLING, context_of
from .lookup import CORE_KEY, core_from
from .streams import adopt_websocket

__all__ = [
    "REGISTRY_KEY",
    "delete_session_ws_id",
    "end_identity_ws",
    "end_other_sessions_ws",
    "end_session_ws",
    "ensure_session_ws_id",
    "get_session_ws_id",
    "new_session_ws_id",
    "registry_from",
    "renew_session_ws",
    "schedule_close_all_session_ws",
    "setup",
]

REGISTRY_KEY: Final = web.AppKey("REGISTRY_KEY", SessionWSRegistry)
_STRING_KEY: Final = "aiohttp_session_ws_registry"  # what 1.1.1 documents


def setup(app: web.Application, registry: SessionWSRegistry | None = None) -> SessionWSRegistry:
    """
    Install a registry in *app*, for its sub-applications as well.

    All its sockets are closed with 1001 when the application shuts down. The registry is
    available as ``app[REGISTRY_KEY]``, and as ``app["aiohttp_session_ws_registry"]``.

    Args:
        app: The application; the root if there are sub-applications.
        registry: A new one if ``None``.

    Returns:
        The registry.

    Raises:
        NotSetUp: If *app* has a registry already.
        TypeError: If *app* or *registry* has a wrong type.
    """
    if not isinstance(app, web.Application):
        raise TypeError(f"setup(app, registry) takes a web.Application, not {app!r}")
    if registry is None:
        registry = SessionWSRegistry()
    if not isinstance(registry, SessionWSRegistry):
        raise TypeError(f"setup(app, registry) takes a SessionWSRegistry, not {registry!r}")
    if REGISTRY_KEY in app:
        raise NotSetUp("setup() was called twice for one application: call it once, for the root")
    core = core_of(registry)
    app[REGISTRY_KEY], app[CORE_KEY] = registry, core
    core.adopt = adopt_websocket
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        app[_STRING_KEY] = registry

    async def shut_down(app: web.Application) -> None:
        await core.shut_down()

    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        await core.start()
        yield
        await core.stop()

    async def attach(app: web.Application) -> None:
        for route in app.router.routes():  # of sub-applications too
            endpoint: Any = getattr(route.handler, "__self__", None)
            if getattr(endpoint, "is_session_ws_endpoint", False):
                endpoint.attach(registry)  # raises configuration errors at startup

    app.on_startup.append(attach)  # after all cleanup contexts, which may provide what it needs
    app.on_shutdown.append(shut_down)  # handlers still run
    app.cleanup_ctx.append(lifetime)  # is left after the handlers have ended
    return registry


def registry_from(request: web.Request) -> SessionWSRegistry:
    """
    Return the registry of the application that handles *request*, or of its parent.

    Raises:
        NotSetUp: If none of them has a registry, or two have one each.
        TypeError: If *request* is not a request.
    """
    _ = core_from(request)  # raises what is wrong
    registry: SessionWSRegistry = request.config_dict[REGISTRY_KEY]
    return registry


async def get_session_ws_id(request: web.Request) -> Hashable | None:
    """
    Return the id of the session of *request*, ``None`` if it has none.

    Same as :meth:`SessionWSRegistry.get_id` of the registry of *request*.
    """
    session_ws_id: Hashable | None = await maybe_await(registry_from(request).get_id(request))
    return session_ws_id


async def new_session_ws_id(request: web.Request) -> Any:
    """
    Give the session of *request* a new id, which renews it.

    Same as :meth:`SessionWSRegistry.new_id` of the registry of *request*.
    """
    registry = registry_from(request)
    _record_id_change(request, registry)
    return await maybe_await(registry.new_id(request))


async def delete_session_ws_id(request: web.Request) -> Any:
    """
    Remove the id from the session of *request*, which ends it, or with ``identify`` renews it.

    Same as :meth:`SessionWSRegistry.delete_id` of the registry of *request*.
    """
    registry = registry_from(request)
    _record_id_change(request, registry)
    return await maybe_await(registry.delete_id(request))


def _record_id_change(request: web.Request, registry: SessionWSRegistry) -> None:
    """
    Record that a handler changes the id, if its session may not show that.
    """
    context = context_of(request)
    if context is None or context.stage is not HANDLING or context.connection is not None:
        return
    if core_of(registry).overrides.ids:
        context.ordering().other_id = True


async def ensure_session_ws_id(request: web.Request) -> Any:
    """
    Give the session of *request* an id if it has none.

    Same as :meth:`SessionWSRegistry.ensure_id` of the registry of *request*.
    """
    return await maybe_await(registry_from(request).ensure_id(request))


async def schedule_close_all_session_ws(request: web.Request, response: web.StreamResponse) -> Any:
    """
    Close the sockets of the session of *request* when the response has been sent.

    Same as :meth:`SessionWSRegistry.schedule_close_all_session` of the registry of *request*.
    """
    return await maybe_await(registry_from(request).schedule_close_all_session(request, response))


async def end_session_ws(request: web.Request, response: web.StreamResponse) -> None:
    """
    Log out: end the session of *request*, and give it a new, empty one.

    Same as :meth:`SessionWSRegistry.schedule_end_session` of the registry of *request*.
    """
    await maybe_await(registry_from(request).schedule_end_session(request, response))


async def end_identity_ws(request: web.Request, response: web.StreamResponse) -> None:
    """
    Log out everywhere: end all sessions of the identity of *request*, including its own.

    Same as :meth:`SessionWSRegistry.schedule_end_identity` of the registry of *request*.
    """
    await maybe_await(registry_from(request).schedule_end_identity(request, response))


async def end_other_sessions_ws(request: web.Request, response: web.StreamResponse) -> bool:
    """
    Log out everywhere else: end all other sessions of the identity of *request*. Return whether
    that was done.

    Same as :meth:`SessionWSRegistry.schedule_end_others` of the registry of *request*.
    """
    done: bool = await maybe_await(registry_from(request).schedule_end_others(request, response))
    return done


async def renew_session_ws(
    request: web.Request,
    response: web.StreamResponse,
    *,
    sockets: Literal["close", "keep"] = "close",
) -> None:
    """
    Renew the session of *request*: it continues under a new id.

    Same as :meth:`SessionWSRegistry.renew_session` of the registry of *request*.
    """
    await maybe_await(registry_from(request).renew_session(request, response, sockets=sockets))
