"""
A node for tests: a process that serves pages to log in and out, and a websocket.

``python -m tests.support.node_app --port 8080`` serves until it is terminated. On its standard
output it prints ``connected`` or ``degraded``, at the start and after every change, and
``listening`` once it accepts connections.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Any, Final
from uuid import uuid4

import aiohttp_session
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from aiohttp_session_ws import (
    DEFAULT_SESSION_KEY,
    REGISTRY_KEY,
    Limits,
    SessionWSRegistry,
    end_identity_ws,
    end_session_ws,
    get_session_ws_id,
    registry_from,
    renew_session_ws,
    session_ws,
    session_ws_middleware,
    setup,
)
from aiohttp_session_ws.results import CloseReport
from aiohttp_session_ws.signals import PresenceDetails

COOKIE_KEY: Final = b"k" * 32  # shared by all nodes, as behind one load balancer
SERVED: Final = web.AppKey("SERVED", dict[str, Hashable])  # id by socket, of running handlers
NAME: Final = web.AppKey("NAME", str)

routes = web.RouteTableDef()


async def user_of(request: web.Request) -> str | None:
    """Return the user of a request's session."""
    user: str | None = (await aiohttp_session.get_session(request)).get("user")
    return user


async def describe(request: web.Request) -> dict[str, Any]:
    """Return the node, and the session's id, lineage and user."""
    session_ws_id = await get_session_ws_id(request)
    session = await aiohttp_session.get_session(request)
    return {
        "node": request.app[NAME],
        "id": session_ws_id,
        "lineage": session.get(f"{DEFAULT_SESSION_KEY}_lineage", [None])[0],
        "user": await user_of(request),
    }


def tell(report: CloseReport) -> web.Response:
    """Return a close report as JSON."""
    told = {"sockets": report.sockets, "complete": report.complete, "stored": report.stored}
    return web.json_response(told)


@routes.get("/whoami")
async def whoami(request: web.Request) -> web.Response:
    """Return the node, and the session's id, lineage and user."""
    return web.json_response(await describe(request))


@routes.get("/login")
async def log_in(request: web.Request) -> web.Response:
    """Store the user in the session, and renew the session."""
    session = await aiohttp_session.get_session(request)
    session["user"] = request.query["user"]
    response = web.Response()
    await renew_session_ws(request, response)
    response.text = json.dumps(await describe(request))
    return response


@routes.get("/renew")
async def renew(request: web.Request) -> web.Response:
    """Renew the session: it gets another id."""
    response = web.Response()
    await renew_session_ws(request, response)
    response.text = json.dumps(await describe(request))
    return response


@routes.get("/logout")
async def log_out(request: web.Request) -> web.Response:
    """End the session."""
    response = web.Response()
    await end_session_ws(request, response)
    return response


@routes.get("/logout-everywhere")
async def log_out_everywhere(request: web.Request) -> web.Response:
    """End all sessions of the user."""
    response = web.Response()
    await end_identity_ws(request, response)
    return response


@routes.get("/end")
async def end(request: web.Request) -> web.Response:
    """End a session by its id, as an operator does; return the report."""
    wait = float(request.query.get("wait", 0.0))
    return tell(await registry_from(request).end_session(request.query["id"], wait=wait))


@routes.get("/end-identity")
async def end_identity(request: web.Request) -> web.Response:
    """End all sessions of a user, given by name; return the report."""
    wait = float(request.query.get("wait", 0.0))
    return tell(await registry_from(request).end_identity(request.query["user"], wait=wait))


@routes.get("/close")
async def close(request: web.Request) -> web.Response:
    """Close the sockets of a session without ending it."""
    return tell(await registry_from(request).close_all_session(request.query["id"]))


@routes.get("/ws")
async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send the socket's id and session, then echo messages."""
    socket_id = uuid4().hex
    async with session_ws(request) as ws:
        described = await describe(request)
        request.app[SERVED][socket_id] = described["id"]
        try:
            await ws.send_json({"socket": socket_id, **described})
            async for message in ws:
                await ws.send_str(message.data)
        finally:
            del request.app[SERVED][socket_id]
    return ws


@routes.get("/state")
async def state(request: web.Request) -> web.Response:
    """
    Return the state of this process: name, pid, connection to Redis, open sockets.

    ``served`` has the sockets of running handlers, ``open`` the number of sockets that the
    registry has for each id; the two agree unless a socket is being opened or closed.
    """
    registry = request.app[REGISTRY_KEY]
    return web.json_response(
        {
            "node": request.app[NAME],
            "pid": os.getpid(),
            "state": state_of(registry),
            "served": request.app[SERVED],
            "open": {str(key): len(sockets) for key, sockets in registry.items()},
        }
    )


def state_of(registry: SessionWSRegistry) -> str:
    """Return the state of a registry; one without Redis counts as connected."""
    return str(getattr(registry, "state", "connected"))


def make_registry(args: argparse.Namespace) -> SessionWSRegistry:
    """Return a registry with Redis; without a URL one in memory, for a single node."""
    if args.redis is None:
        return SessionWSRegistry(identify=user_of)
    from aiohttp_session_ws.redis import RedisSessionWSRegistry

    return RedisSessionWSRegistry(
        args.redis,
        prefix=args.prefix,
        node=args.name,
        on_outage=args.on_outage,
        journal=args.journal,
        identify=user_of,
        limits=Limits(per_identity=args.per_identity, on_limit=args.on_limit, scope="cluster"),
    )


def make_storage(args: argparse.Namespace) -> AbstractStorage:
    """Return the storage of sessions."""
    if args.storage == "simple":
        return SimpleCookieStorage()
    if args.storage == "redis":
        # On a busy machine more requests than its default of 100 wait for their sessions.
        return RedisStorage(Redis.from_url(args.sessions or args.redis, max_connections=10_000))
    return EncryptedCookieStorage(COOKIE_KEY)


def make_app(
    registry: SessionWSRegistry, storage: AbstractStorage, name: str = "node"
) -> web.Application:
    """Return the application of a node."""
    middlewares = [aiohttp_session.session_middleware(storage), session_ws_middleware]
    app = web.Application(middlewares=middlewares)
    app[NAME] = name
    app[SERVED] = {}
    setup(app, registry)
    app.add_routes(routes)
    return app


async def greet(details: PresenceDetails) -> None:
    """Print the identity whose first socket has opened."""
    print("come:", details.identity, flush=True)  # noqa: T201  # as below


def tell_state(registry: SessionWSRegistry) -> Callable[[web.Application], AsyncIterator[None]]:
    """Return a cleanup context that prints the registry's state now and after every change."""

    async def changed(state: object) -> None:
        print(state, flush=True)  # noqa: T201  # tests wait for this line

    async def context(app: web.Application) -> AsyncIterator[None]:
        signal = getattr(registry, "on_state_change", None)
        if signal is not None:
            signal.append(changed)
        await changed(state_of(registry))
        yield

    return context


def main() -> None:
    """Serve until the process is terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="node")
    parser.add_argument("--redis", help="URL; without one it knows no other node")
    parser.add_argument("--prefix", default="aiohttp_session_ws")
    parser.add_argument("--storage", choices=["encrypted", "simple", "redis"], default="encrypted")
    parser.add_argument("--journal", help="a file")
    parser.add_argument("--sessions", help="URL of a Redis for sessions alone")
    parser.add_argument("--on-outage", choices=["refuse", "accept"], default="refuse")
    parser.add_argument("--per-identity", type=int, help="sockets of a user, on all nodes")
    parser.add_argument("--presence", action="store_true", help="tell who comes and goes")
    parser.add_argument("--on-limit", choices=["evict_oldest", "refuse"], default="evict_oldest")
    args = parser.parse_args()

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    registry = make_registry(args)
    if args.presence:
        registry.on_first.append(greet)
    app = make_app(registry, make_storage(args), args.name)
    app.cleanup_ctx.append(tell_state(registry))
    web.run_app(
        app,
        host="127.0.0.1",
        port=args.port,
        print=lambda *_: print("listening", flush=True),  # noqa: T201  # as above
        access_log=None,
        shutdown_timeout=2.0,
    )


if __name__ == "__main__":
    main()
