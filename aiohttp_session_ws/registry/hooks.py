"""
The methods of a registry that an application may override, and which it has overridden.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

from aiohttp import web

from ..connections.connection import Connection

__all__: list[str] = []


class Ids(Protocol):
    """
    Methods for session ws ids. An application may override each of them, sync or async.
    """

    def get_id(self, request: web.Request) -> Awaitable[Hashable | None] | Hashable | None:
        """
        Return the id of the session of *request*.
        """

    def set_id(self, request: web.Request, session_ws_id: Hashable) -> Any:
        """
        Set the id of the session of *request*.
        """

    def new_id(self, request: web.Request) -> Any:
        """
        Give the session of *request* a new id.
        """

    def delete_id(self, request: web.Request) -> Any:
        """
        Remove the id from the session of *request*.
        """

    def ensure_id(self, request: web.Request) -> Any:
        """
        Give the session of *request* an id if it has none.
        """

    def generate_id(self, request: web.Request) -> Any:
        """
        Return a new id.
        """


class Hooks(Protocol):
    """
    The other methods that an application may override, as in 1.1.1, sync or async.
    """

    def register(self, session_ws_id: Hashable, ws: Any) -> Any:
        """
        Called when a socket is open.
        """

    def unregister(self, session_ws_id: Hashable, ws: Any) -> Any:
        """
        Called when a socket is gone.
        """

    def close_all_session(self, session_ws_id: Hashable) -> Any:
        """
        Called when the response of a request that asked for it has been sent.
        """

    def close_all(self) -> Any:
        """
        Called at the application's shutdown.
        """


#: Ties a websocket that another library has opened to the session of its request.
Adopt: TypeAlias = Callable[
    [web.Request, web.WebSocketResponse], AbstractAsyncContextManager[Connection, None]
]


class Overrides(NamedTuple):
    """
    Which methods an application has overridden, so that the others needn't be called.

    Attributes:
        ids: Whether ids are kept by the application: derived, or stored elsewhere.
        random_ids: Whether ids are ours: random, and one per session.
        register: Whether ``register`` is overridden.
        unregister: Whether ``unregister`` is overridden.
        close_all: Whether ``close_all`` is overridden.
        close_all_session: Whether ``close_all_session`` is overridden.
    """

    ids: bool
    random_ids: bool
    register: bool
    unregister: bool
    close_all: bool
    close_all_session: bool
