"""
The registry for other threads than that of its event loop.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from .._tasks import maybe_await
from ..exceptions import NotSetUp, WrongLoop
from .core import Core
from .operations import Operations
from .orders import Orders
from .push import Pushes
from .queries import Queries

__all__ = ["ThreadSafe"]

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE: Final = 10.0  # seconds that a call may take


def _blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], *, asks: bool = False
) -> Callable[Concatenate[ThreadSafe, P], R]:
    """
    Return a method that calls one of the registry in its event loop, and waits.

    Args:
        method: The one.
        asks: Whether it only asks something, so that it may be given up.
    """
    name = method.__name__

    @functools.wraps(method)
    def call(self: ThreadSafe, /, *args: P.args, **kwargs: P.kwargs) -> R:
        # By its name: an application may have overridden it.
        begin = functools.partial(getattr(self.registry, name), *args, **kwargs)
        result: R = self.run(begin, asks=asks)
        return result

    return call


class ThreadSafe:
    """
    What other threads may call: each method is that of the registry, and blocks until it is done.

    Args:
        core: The registry's parts.
        registry: The registry.
        timeout: Seconds that a call may take.

    Attributes:
        registry: The registry.
    """

    def __init__(self, core: Core, registry: object, timeout: float = PATIENCE) -> None:
        self.registry = registry
        self._core = core
        self._timeout = timeout

    def within(self, timeout: float) -> ThreadSafe:
        """
        Return the same, whose calls may take another time.

        Args:
            timeout: Seconds; 10 if nothing is said.
        """
        return ThreadSafe(self._core, self.registry, timeout)

    def run(self, begin: Callable[[], Coroutine[Any, Any, R]], *, asks: bool = False) -> R:
        """
        Run what *begin* returns in the event loop of the application, and wait for it.

        Args:
            begin: Returns it; called in that event loop.
            asks: Whether it is given up if it isn't done in time. An order goes on: to cancel it
                before the event loop has come to begin with it would be to lose it.

        Raises:
            NotSetUp: If no application has started the registry.
            WrongLoop: If it is called in that very event loop, which it would block.
            TimeoutError: If it isn't done in time. What was ordered is ordered all the same.
        """
        loop = self._core.loop
        if loop is None:
            raise NotSetUp("the registry isn't started: its application doesn't run")
        if _running_loop() is loop:
            raise WrongLoop(
                "registry.threadsafe is for other threads: in the event loop of the application"
                " await the registry's own methods"
            )
        future = asyncio.run_coroutine_threadsafe(_begin(begin), loop)
        try:
            return future.result(self._timeout)
        except TimeoutError:
            if future.done():
                raise  # its own
            if asks:
                _ = future.cancel()
            raise TimeoutError(
                f"the registry has not answered within {self._timeout:g} s"
            ) from None

    end_session = _blocking(Orders.end_session)
    end_identity = _blocking(Orders.end_identity)
    end_label = _blocking(Orders.end_label)
    close_all = _blocking(Orders.close_all)
    close_all_session = _blocking(Orders.close_all_session)
    close_all_identity = _blocking(Orders.close_all_identity)
    close_all_label = _blocking(Orders.close_all_label)
    close_connection = _blocking(Operations.close_connection)
    recheck = _blocking(Operations.recheck)
    cluster_stats = _blocking(Operations.cluster_stats, asks=True)
    send_session = _blocking(Pushes.send_session)
    send_identity = _blocking(Pushes.send_identity)
    send_label = _blocking(Pushes.send_label)
    broadcast = _blocking(Pushes.broadcast)
    send_session_json = _blocking(Pushes.send_session_json)
    send_identity_json = _blocking(Pushes.send_identity_json)
    broadcast_json = _blocking(Pushes.broadcast_json)
    relay = _blocking(Pushes.relay)
    connections = _blocking(Queries.connections, asks=True)
    count = _blocking(Queries.count, asks=True)


async def _begin(begin: Callable[[], Coroutine[Any, Any, R]]) -> R:
    result: R = await maybe_await(begin())  # an override may be sync
    return result


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
