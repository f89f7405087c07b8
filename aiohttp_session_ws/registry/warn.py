"""
Warnings of misuse that could leave sockets open but raises no error, each logged once.
"""

from __future__ import annotations

from aiohttp import web

from .._logging import log

__all__: list[str] = []


class Warnings:
    """
    Logs each kind of warning once.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def once(self, what: str, message: str, *args: object) -> None:
        """
        Log a warning the first time it is called for *what*.
        """
        if what not in self._warned:
            self._warned.add(what)
            log.warning(message, *args)

    def loaded_early(self) -> None:
        """
        Warn that a session is loaded before our middleware is called.
        """
        self.once(
            "loaded early",
            "a session was loaded before session_ws_middleware ran: put it directly inside"
            " aiohttp_session's middleware, or an order may miss a handshake in flight",
        )

    def foreign_websocket(self, request: web.Request) -> None:
        """
        Warn of a websocket that is not closed when its session ends.
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
        Warn that a session may be saved before its request is settled.
        """
        self.once(
            "middleware",
            "session_ws_middleware is missing: put it directly inside aiohttp_session's, or a"
            " session that has ended could be saved by a request in flight",
        )

    def no_id(self) -> None:
        """
        Warn of refused handshakes whose session is given no id by the application.
        """
        self.once(
            "no id",
            "a websocket was refused: its session has no session ws id, since the registry's"
            " get_id() returned None, also after new_id(); give an id to each session that may"
            " connect",
        )
