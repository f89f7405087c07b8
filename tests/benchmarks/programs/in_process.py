"""
Measurements without sockets: the middleware, registering by hand, and ends beside many ends.

Floor and package are measured alternately in one process; the results are printed as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final
from unittest import mock

import aiohttp_session
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp.typedefs import Handler

import aiohttp_session_ws
from aiohttp_session_ws import SessionWSRegistry

from .control import emit

CALLS: Final = 500  # in a row
now = time.process_time_ns  # CPU time of this process alone


def median(values: list[float]) -> float:
    """
    Return the median; of an even number of values, the upper one.
    """
    return sorted(values)[len(values) // 2]


def per_call(work: Callable[[], object], calls: int) -> float:
    """
    Return the nanoseconds that each of *calls* takes, without the garbage collector.
    """
    gc.collect()
    gc.disable()
    begin = now()
    work()
    taken = now() - begin
    gc.enable()
    return taken / calls


def drive(coroutine: Coroutine[Any, Any, object]) -> object:
    """
    Run a coroutine that never suspends, without the cost of an event loop.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("the coroutine waits for something")


class OneSession(aiohttp_session.AbstractStorage):
    """
    A storage of one session, with almost no cost.
    """

    def __init__(self) -> None:
        super().__init__()
        self._data: dict[str, Any] = {}

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """
        Return the session as if it were loaded from a cookie.
        """
        held: aiohttp_session.SessionData = {"created": int(time.time()), "session": self._data}
        return aiohttp_session.Session(None, data=held, new=not self._data)

    async def save_session(
        self,
        request: web.Request,
        response: web.StreamResponse,
        session: aiohttp_session.Session,
    ) -> None:
        """
        Keep the data of the session.
        """
        self._data = dict(session)


async def answer(request: web.Request) -> web.StreamResponse:
    """
    Load the session and answer.
    """
    await aiohttp_session.get_session(request)
    return web.Response()


async def log_in(request: web.Request) -> web.StreamResponse:
    """
    Store a user in the session.
    """
    (await aiohttp_session.get_session(request))["user"] = "me"
    return web.Response()


@asynccontextmanager
async def running() -> AsyncIterator[tuple[web.Application, Any]]:
    """
    Run an application with a registry, without a server.
    """
    app, registry = web.Application(), SessionWSRegistry()
    aiohttp_session_ws.setup(app, registry)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        yield app, registry
    finally:
        await runner.cleanup()


async def middleware(app: web.Application, rounds: int) -> dict[str, float]:
    """
    Measure what the middleware adds to a request of an existing session.
    """
    session = aiohttp_session.session_middleware(OneSession())
    package = aiohttp_session_ws.session_ws_middleware

    def chain(handler: Handler) -> Handler:
        return partial(session, handler=partial(package, handler=handler))

    protocol = mock.Mock(transport=None)  # clones share it; a mock for each would be timed too
    request = make_mocked_request("GET", "/", app=app, protocol=protocol)
    await chain(log_in)(request.clone())
    arms: list[Handler] = [partial(session, handler=answer), chain(answer)]
    bare, added = [], []
    for _ in range(rounds * 10):
        costs = []
        for handler in arms:
            requests = [request.clone() for _ in range(CALLS)]

            def work(handler: Handler = handler, requests: list[web.Request] = requests) -> None:
                for one in requests:
                    drive(handler(one))  # type: ignore[arg-type]  # it is a coroutine

            costs.append(per_call(work, CALLS))
        bare.append(costs[0])
        added.append(costs[1] - costs[0])
    return {"bare": median(bare) / 1e3, "ours": median(added) / 1e3}


class Floor:
    """
    The simplest registry that finds sockets by an id.
    """

    def __init__(self) -> None:
        self._sockets: dict[str, set[object]] = {}

    def register(self, session_ws_id: str, ws: object) -> None:
        """
        Add a socket.
        """
        self._sockets.setdefault(session_ws_id, set()).add(ws)

    def unregister(self, session_ws_id: str, ws: object) -> None:
        """
        Remove a socket.
        """
        sockets = self._sockets[session_ws_id]
        sockets.discard(ws)
        if not sockets:
            del self._sockets[session_ws_id]


async def register(registry: Any, rounds: int) -> dict[str, dict[str, float]]:
    """
    Measure registering by hand, each socket under an id of its own.
    """
    ids = [f"{number:032x}" for number in range(CALLS)]
    sockets = [web.WebSocketResponse() for _ in ids]
    registries = {"bare": Floor(), "ours": registry}
    times: dict[str, dict[str, list[float]]] = {
        name: {"register": [], "unregister": []} for name in registries
    }
    for _ in range(rounds * 4):
        for name, each in registries.items():
            for method, values in times[name].items():
                call = getattr(each, method)

                def work(call: Callable[[str, object], object] = call) -> None:
                    for session_ws_id, ws in zip(ids, sockets, strict=True):
                        call(session_ws_id, ws)

                values.append(per_call(work, CALLS))
    return {
        name: {method: median(values) for method, values in methods.items()}
        for name, methods in times.items()
    }


async def ends(registry: Any, records: int) -> dict[str, float]:
    """
    Measure an end in a registry with 1,000 recorded ends, and in one with *records*.
    """
    costs: dict[str, float] = {}
    known = 0
    for name, beside in (("few", 1000), ("many", records)):
        for number in range(known, beside):
            await registry.end_session(f"{number:032x}")
        known = beside
        gc.collect()
        begin = now()
        for number in range(known, known + CALLS):
            await registry.end_session(f"{number:032x}")
        costs[name] = (now() - begin) / CALLS / 1e3
        known += CALLS
    return costs


async def main() -> None:
    """
    Run the measurements that the command line names.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("what", nargs="+")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    async with running() as (app, registry):
        if "middleware" in given.what:
            results["middleware"] = await middleware(app, given.rounds)
        if "register" in given.what:
            results["register"] = await register(registry, given.rounds)
        if "ends" in given.what and hasattr(registry, "end_session"):
            results["ends"] = await ends(registry, given.records)
    emit(results)


if __name__ == "__main__":
    asyncio.run(main())
