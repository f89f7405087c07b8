"""
The request of an open connection as it would come now, for the periodic check.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp_session import Session

from ..connections.connection import TrackedConnection
from ..sessions.session import created_at, put_session

__all__: list[str] = []

#: Headers that each handshake has of its own; the session is the same.
OF_ITS_OWN: Final = frozenset({b"cookie", b"sec-websocket-key"})


def was_touched(connection: TrackedConnection, session: Session) -> bool:
    """
    Tell whether the handshake may have changed its session, which is not saved.
    """
    opened = connection.opened_at or time.monotonic()
    began = time.time() - (opened - connection.started)
    return created_at(session) >= int(began) and not _sets_cookies(connection.ws)


def request_again(connection: TrackedConnection) -> web.Request:
    """
    Return the request of a connection as it would come now, with no session loaded.
    """
    request, ws = connection.request, connection.ws
    assert request is not None
    if not _sets_cookies(ws):
        request = _clone(request)
    else:
        cookies = [request.headers[hdrs.COOKIE]] if hdrs.COOKIE in request.headers else []
        cookies += [f"{cookie.key}={cookie.coded_value}" for cookie in ws.cookies.values()]
        headers = [(k, v) for k, v in request.headers.items() if k.lower() != "cookie"]
        headers.append((hdrs.COOKIE, "; ".join(cookies)))  # the last of a name counts
        # aiohttp reads any bytes as text, but can't write them again.
        legible = [(name, value.encode(errors="replace").decode()) for name, value in headers]
        request = _clone(request, headers=legible)
    put_session(request, None)
    return request


def _clone(request: web.Request, **changes: Any) -> web.Request:
    """
    Return a copy of a request with its body, though that may have been read.

    aiohttp refuses to copy what was read, so this takes a private name of it. An answer to a POST
    may be a stream, and whoever is asked about it is to be told what was asked the first time.
    """
    body, request._read_bytes = request._read_bytes, None
    try:
        again = request.clone(**changes)
    finally:
        request._read_bytes = body
    again._read_bytes = body
    return again


def what_it_asks(connection: TrackedConnection) -> Hashable:
    """
    Return what distinguishes the request of a connection from others of its session.
    """
    request = connection.request
    assert request is not None
    headers = (header for header in request.raw_headers if header[0].lower() not in OF_ITS_OWN)
    address = request.method, request.path_qs, request.remote
    return *address, tuple(headers), request._read_bytes


def _sets_cookies(response: web.StreamResponse) -> bool:
    """
    Tell whether a response has set cookies, or will when it begins.
    """
    if response.prepared:  # then it isn't asked for cookies, which would make it keep a table
        return hdrs.SET_COOKIE in response.headers
    return bool(response.cookies)
