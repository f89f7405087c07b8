"""
Thread-safe access to a registry: blocking methods that run its coroutines in its event loop.
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

DEFAULT_TIMEOUT: Final = 10.0  # seconds that a call may take


def _blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
    *,
    cancel_on_timeout: bool = False,
) -> Callable[Concatenate[ThreadSafe, P], R]:
    """
    Return a blocking method that calls the registry's method in its event loop.

    Args:
        method: The registry's method.
        cancel_on_timeout: Whether to cancel the call on timeout: it only queries something.
    """
    name = method.__name__

    @functools.wraps(method)
    def call(self: ThreadSafe, /, *args: P.args, **kwargs: P.kwargs) -> R:
        # Looked up by name, since the application may have overridden it.
        factory = functools.partial(getattr(self.registry, name), *args, **kwargs)
        result: R = self.run(factory, cancel_on_timeout=cancel_on_timeout)
        return result

    return call


class ThreadSafe:
    """
    The registry's methods for other threads; each blocks until the registry's own is done.

    Args:
        core: The registry's parts.
        registry: The registry.
        timeout: Seconds that a call may take.

    Attributes:
        registry: The registry.
    """

    def __init__(self, core: Core, registry: object, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.registry = registry
        self._core = core
        self._timeout = timeout

    def within(self, timeout: float) -> ThreadSafe:
        """
        Return the same methods with another timeout than the default of 10 s.

        Args:
            timeout: Seconds that a call may take.
        """
        return ThreadSafe(self._core, self.registry, timeout)

    def run(
        self, factory: Callable[[], Coroutine[Any, Any, R]], *, cancel_on_timeout: bool = False
    ) -> R:
        """
        Run a coroutine in the event loop of the application, and wait for its result.

        Args:
            factory: Returns the coroutine; called in that event loop.
            cancel_on_timeout: Whether to cancel the coroutine on timeout. An order is not
                cancelled: if the event loop has not started it by then, it would be lost.

        Raises:
            NotSetUp: If no application has started the registry.
            WrongLoop: If it is called in that very event loop, which it would block.
            TimeoutError: If it isn't done in time. An order takes effect nevertheless.
        """
        loop = self._core.loop
        if loop is None:
            raise NotSetUp("the registry isn't started: its application is not running")
        if _running_loop() is loop:
            raise WrongLoop(
                "registry.threadsafe can't be used in the event loop of the application, which it"
                " would block: await the registry's own methods"
            )
        future = asyncio.run_coroutine_threadsafe(_await_result(factory), loop)
        try:
            return future.result(self._timeout)
        except TimeoutError:
            if future.done():
                raise  # raised by the coroutine itself
            if cancel_on_timeout:
                _ = future.cancel()
            raise TimeoutError(
                f"the call to the registry has not finished within {self._timeout:g} s"
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
    cluster_stats = _blocking(Operations.cluster_stats, cancel_on_timeout=True)
    send_session = _blocking(Pushes.send_session)
    send_identity = _blocking(Pushes.send_identity)
    send_label = _blocking(Pushes.send_label)
    broadcast = _blocking(Pushes.broadcast)
    send_session_json = _blocking(Pushes.send_session_json)
    send_identity_json = _blocking(Pushes.send_identity_json)
    broadcast_json = _blocking(Pushes.broadcast_json)
    relay = _blocking(Pushes.relay)
    connections = _blocking(Queries.connections, cancel_on_timeout=True)
    count = _blocking(Queries.count, cancel_on_timeout=True)


async def _await_result(factory: Callable[[], Coroutine[Any, Any, R]]) -> R:
    result: R = await maybe_await(factory())  # an override may be sync
    return result


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
