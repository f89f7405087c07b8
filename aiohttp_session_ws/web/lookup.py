"""
The registry of a request: its parts, and whether it is the only one.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from ..exceptions import NotSetUp
from ..registry.core import Core

__all__: list[str] = []

NO_REGISTRY: Final = "no registry: call aiohttp_session_ws.setup(app, registry) first"

CORE_KEY: Final = web.AppKey("aiohttp_session_ws core", Core)


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
    Return the parts of the registry of *request*: of its application, or of a parent.

    Raises:
        NotSetUp: If none of them has one.
    """
    try:  # quicker than get()
        return request.app[CORE_KEY]
    except KeyError:
        core = request.config_dict.get(CORE_KEY)
    if core is None:
        raise NotSetUp(NO_REGISTRY)
    return core
