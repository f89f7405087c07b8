"""
Warnings of what would leave sockets open that no error can tell of, each logged once.
"""

from __future__ import annotations

from aiohttp import web

from .._logging import log

__all__: list[str] = []


class Warnings:
    """
    Remembers what an application was warned about.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def once(self, what: str, message: str, *args: object) -> None:
        """
        Log a warning, the first time only.
        """
        if what not in self._warned:
            self._warned.add(what)
            log.warning(message, *args)

    def loaded_early(self) -> None:
        """
        Warn that a session is loaded before our middleware sees the request.
        """
        self.once(
            "loaded early",
            "a session was loaded before session_ws_middleware came: put it directly inside"
            " aiohttp_session's middleware, or an order may miss a handshake in flight",
        )

    def foreign_websocket(self, request: web.Request) -> None:
        """
        Warn of a websocket that its session's end doesn't close.
        """
        self.once(
            "foreign websocket",
            "the websocket at %s was opened without session_ws: the end of its session doesn't"
            " close it; open it by session_ws(request), or if another library does that, enter"
            " registry.adopt(request, ws)",
            request.path,
        )

    def missing_middleware(self) -> None:
        """
        Warn that a request isn't settled before its session is saved.
        """
        self.once(
            "middleware",
            "session_ws_middleware is missing: put it directly inside aiohttp_session's, or a"
            " session that has ended could be saved by a request in flight",
        )

    def no_id(self) -> None:
        """
        Warn of handshakes that are refused, since the application gives their session no id.
        """
        self.once(
            "no id",
            "a websocket was refused: its session has no session ws id, since the registry's"
            " get_id() returned None, also after new_id(); give one to whoever may connect",
        )
