"""
``Routes``: declarations of procedures, streams, topics and route classes.

Each name that a peer calls is looked up in tables that are filled at registration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from .table import Procedure, RouteClass, Served, Topic

__all__ = ["Routes", "expose"]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type[Any])


def expose(method: F) -> F:
    """
    Allow peers to call a method of a route class; they can't call any other.
    """
    setattr(method, "rpc_exposed", True)  # noqa: B010  # a function has no such attribute
    return method


class Routes:
    """
    Declares what peers may call and subscribe to::

        shop = rpc.Routes("shop.")

        @shop.route("order.{id}.add")
        async def add(id: int, item: Item, *, session: rpc.Session) -> Order: ...

    Args:
        prefix: Prepended to each name.
        timeout: Seconds that a call may take, unless the route has a timeout of its own.
    """

    def __init__(self, prefix: str = "", *, timeout: float | None = None) -> None:
        self.prefix = prefix
        self.timeout = timeout
        self._entries: list[Procedure | Topic | RouteClass] = []
        self._served = [Served()]  # our own, which detects duplicates, and the realms'

    def route(
        self, name: str | None = None, *, timeout: float | None = None, threaded: bool = False
    ) -> Callable[[F], F]:
        """
        Register a procedure: a coroutine function, a plain one, or an async generator function,
        of which each ``yield`` is a progressive result.

        Args:
            name: The name after the prefix; by default that of the function. Words in braces,
                between dots, are arguments.
            timeout: Seconds that a call may take; by default those of the :class:`Routes`.
            threaded: Whether a plain function runs in a thread.

        Raises:
            TypeError: If the function can't be served.
            ValueError: If the name is taken or not valid.
        """
        _expect_name(name, "route()")

        def add(function: F) -> F:
            given = function.__name__ if name is None else name
            self._add(
                Procedure(
                    self.prefix + given,
                    function,
                    timeout=self.timeout if timeout is None else timeout,
                    threaded=threaded,
                )
            )
            return function

        return add

    def topic(self, name: str) -> Callable[[F], F]:
        """
        Register a topic. The half of the function before its ``yield`` runs before a peer is
        subscribed, and may refuse it by raising :class:`RPCError`; the half after it runs when
        the subscription ends, however it ends.

        Args:
            name: As for :meth:`route`.

        Raises:
            TypeError: If the function isn't an async generator function.
            ValueError: If the name is taken or not valid.
        """
        _expect_name(name, 'topic("name")')

        def add(function: F) -> F:
            self._add(Topic(self.prefix + name, function))
            return function

        return add

    def route_class(self, name: str) -> Callable[[C], C]:
        """
        Register a class, of which peers can call the methods marked by :func:`expose`. Each
        session has one instance, created at its first call. The name of the class itself calls
        ``init()``; ``aclose()`` is called when the session ends.

        Args:
            name: The name of the class, after the prefix.

        Raises:
            TypeError: If a method can't be served.
            ValueError: If a name is taken.
        """
        _expect_name(name, 'route_class("name")')

        def add(cls: C) -> C:
            owner = RouteClass(self.prefix + name, cls)
            methods = inspect.getmembers(cls, lambda member: hasattr(member, "rpc_exposed"))
            if not methods:
                raise TypeError(f"{cls.__qualname__} exposes no methods: mark them by @expose")
            self._add(owner)
            for own, method in methods:
                if isinstance(inspect.getattr_static(cls, own), staticmethod | classmethod):
                    msg = f"{method.__qualname__}() can't be exposed: it is not an instance method"
                    raise TypeError(msg)
                full = owner.name if own == "init" else f"{owner.name}.{own}"
                self._add(Procedure(full, method, timeout=self.timeout, owner=owner))
            return cls

        return add

    def serve(self, served: Served) -> None:
        """
        Add all entries to *served*, including those declared later.
        """
        for entry in self._entries:
            served.add(entry)
        self._served.append(served)

    def _add(self, entry: Procedure | Topic | RouteClass) -> None:
        for served in self._served:
            served.add(entry)
        self._entries.append(entry)


def _expect_name(name: object, decorator: str) -> None:
    """
    Reject a function or class in place of a name: the decorator was used without parentheses.
    """
    if callable(name):
        raise TypeError(f"the decorator needs parentheses: @routes.{decorator}")
