"""
Copies of the request of an open connection, as its client would send it now.
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

#: Headers that differ between handshakes of the same session.
OWN_HEADERS: Final = frozenset({b"cookie", b"sec-websocket-key"})


def may_have_unsaved_changes(connection: TrackedConnection, session: Session) -> bool:
    """
    Return whether the handshake may have changed its session without saving it.
    """
    opened = connection.opened_at or time.monotonic()
    began = time.time() - (opened - connection.started)
    return created_at(session) >= int(began) and not _sets_cookies(connection.ws)


def request_again(connection: TrackedConnection) -> web.Request:
    """
    Return a connection's request as its client would send it now, without a loaded session.
    """
    request, ws = connection.request, connection.ws
    assert request is not None
    if not _sets_cookies(ws):
        request = _clone(request)
    else:
        cookies = [request.headers[hdrs.COOKIE]] if hdrs.COOKIE in request.headers else []
        cookies += [f"{cookie.key}={cookie.coded_value}" for cookie in ws.cookies.values()]
        headers = [(k, v) for k, v in request.headers.items() if k.lower() != "cookie"]
        headers.append((hdrs.COOKIE, "; ".join(cookies)))  # of equal names, the last wins
        # aiohttp decodes any bytes, but can't encode all of the resulting text again.
        legible = [(name, value.encode(errors="replace").decode()) for name, value in headers]
        request = _clone(request, headers=legible)
    put_session(request, None)
    return request


def _clone(request: web.Request, **changes: Any) -> web.Request:
    """
    Return a copy of a request with its body, which may have been read already.

    aiohttp refuses to clone a request whose body was read, so this uses a private attribute. The
    response to a POST may be a stream: ``authorize`` must see the same body as the first time.
    """
    body, request._read_bytes = request._read_bytes, None
    try:
        again = request.clone(**changes)
    finally:
        request._read_bytes = body
    again._read_bytes = body
    return again


def authorization_key(connection: TrackedConnection) -> Hashable:
    """
    Return a key for a connection's request; ``authorize`` is called once per key and session.
    """
    request = connection.request
    assert request is not None
    headers = (header for header in request.raw_headers if header[0].lower() not in OWN_HEADERS)
    address = request.method, request.path_qs, request.remote
    return *address, tuple(headers), request._read_bytes


def _sets_cookies(response: web.StreamResponse) -> bool:
    """
    Return whether a response has set cookies, or will when it is prepared.
    """
    if response.prepared:  # reading .cookies would allocate a table that is kept
        return hdrs.SET_COOKIE in response.headers
    return bool(response.cookies)
