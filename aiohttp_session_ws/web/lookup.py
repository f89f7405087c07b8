"""
Finds the registry of a request, and warns if other processes seem to share its address.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Final

from aiohttp import web

from ..exceptions import NotSetUp
from ..registry.core import Core

__all__: list[str] = []

CORE_KEY: Final = web.AppKey("aiohttp_session_ws core", Core)


def core_from(request: web.Request) -> Core:
    """
    Return the parts of the registry of *request*: of its application, or of a parent.

    Raises:
        NotSetUp: If none of them has a registry, or an application and one below it have one each.
        TypeError: If *request* is not a request.
    """
    core: Core | None
    try:
        app = request.app
    except AttributeError:
        kind = type(request).__name__
        raise TypeError(f"the first argument is the request, not a {kind}") from None
    try:  # quicker than get()
        core = app[CORE_KEY]
    except KeyError:
        core = request.config_dict.get(CORE_KEY)
        if core is None:
            msg = "no registry: call aiohttp_session_ws.setup(app, registry) first"
            raise NotSetUp(msg) from None
    if id(app) not in core.known_apps:
        _expect_one_registry(core, request)
    return core


def _expect_one_registry(core: Core, request: web.Request) -> None:
    core.known_apps.add(id(request.app))
    for app in request.match_info.apps:
        if app.get(CORE_KEY, core) is not core:
            core.known_apps.discard(id(request.app))
            raise NotSetUp(
                "two registries in one tree of applications: a log-out in one would leave the"
                " sockets of the other open; call setup() for the root application only"
            )


def warn_workers(core: Core, request: web.Request) -> None:
    """
    Warn, at the first socket, if this process seems to share its address with others.
    """
    core.first_socket = False
    if _has_gunicorn_siblings() or _reuses_port(request):
        core.warn.once(
            "workers",
            "several worker processes use a registry without Redis: a log-out closes the sockets"
            " of one process only; use aiohttp_session_ws.redis.RedisSessionWSRegistry",
        )


def _has_gunicorn_siblings() -> bool:
    """
    Return whether gunicorn runs this process as one of several workers.
    """
    if "gunicorn" not in os.environ.get("SERVER_SOFTWARE", ""):
        return False
    count = os.environ.get("WEB_CONCURRENCY", "1")
    words = [*os.environ.get("GUNICORN_CMD_ARGS", "").split(), *sys.argv]
    for word, following in zip(words, [*words[1:], ""], strict=True):  # the last one counts
        if word in ("-w", "--workers"):
            count = following
        elif word.startswith("--workers="):
            count = word.partition("=")[2]
        elif word.startswith("-w") and word[2:].isdigit():
            count = word[2:]
    # It may be set in a file, too: workers forked before this one carry the setting.
    arbiter = getattr(sys.modules.get("gunicorn.arbiter"), "Arbiter", None)
    for sibling in getattr(arbiter, "WORKERS", {}).values():
        count = str(sibling.cfg.workers)
    return count.isdigit() and int(count) > 1


def _reuses_port(request: web.Request) -> bool:
    """
    Return whether other processes may listen at the address of *request*.
    """
    transport = request.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    option = getattr(socket, "SO_REUSEPORT", None)
    if sock is None or option is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return bool(sock.getsockopt(socket.SOL_SOCKET, option))
