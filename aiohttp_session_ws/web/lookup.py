"""
The registry of a request.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from ..exceptions import NotSetUp
from ..registry.core import Core
from ..registry.registry import SessionWSRegistry, core_of

__all__ = ["REGISTRY_KEY", "registry_from"]

REGISTRY_KEY: Final = web.AppKey("REGISTRY_KEY", SessionWSRegistry)
CORE_KEY: Final = web.AppKey("aiohttp_session_ws core", Core)


def registry_from(request: web.Request) -> SessionWSRegistry:
    """
    Return the registry of the application that *request* came to, or of its parent.

    Raises:
        NotSetUp: If none of them has one, or two have one each.
    """
    registry = request.app.get(REGISTRY_KEY)
    if registry is None:
        registry = request.config_dict.get(REGISTRY_KEY)
        if registry is None:
            raise NotSetUp("no registry: call aiohttp_session_ws.setup(app, registry) first")
    return registry


def expect_one_registry(core: Core, request: web.Request) -> None:
    """
    Raise an error if an application and one below it have a registry each.

    Raises:
        NotSetUp: If they have.
    """
    if id(request.app) in core.known_apps:
        return
    core.known_apps.add(id(request.app))
    for app in request.match_info.apps:
        if app.get(CORE_KEY, core) is not core:
            core.known_apps.discard(id(request.app))
            raise NotSetUp(
                "two registries in one tree of applications: a log-out in the one would leave the"
                " sockets of the other open; call setup() for the root application only"
            )


def core_from(request: web.Request) -> Core:
    """
    Return the parts of the registry of *request*.
    """
    try:  # quicker than get()
        return request.app[CORE_KEY]
    except KeyError:
        return core_of(registry_from(request))
