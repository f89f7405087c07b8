"""
Origin check for websocket handshakes, against cross-site WebSocket hijacking.
"""

from __future__ import annotations

import math
import re
from typing import Final, TypeAlias

from aiohttp import hdrs, web
from yarl import URL

from ._expiring import ExpiringDict
from ._logging import OncePerMinute, log
from ._refused import Forbidden
from ._tasks import maybe_await
from .typing import Origins

__all__: list[str] = []

_ORIGIN: Final = re.compile(r"(https?)://([^/?#@\s\\]+)", re.IGNORECASE)
_MAX_ORIGINS: Final = 1000  # origins, accepted or refused; clients can send any
_MAX_LINES: Final = 10  # log lines per minute
_MAX_SHOWN: Final = 200  # characters of a client's header in a log line or an answer

Origin: TypeAlias = tuple[str, str, int]  # scheme, host, port


def parse_origin(text: str) -> Origin | None:
    """
    Return an origin's scheme, host and port (RFC 6454), ``None`` if it is not one.
    """
    match = _ORIGIN.fullmatch(text)
    return None if match is None else _parse(match[1].lower(), match[2])


def _parse(scheme: str, netloc: str) -> Origin | None:
    try:
        url = URL(f"{scheme}://{netloc}")
        host, port = url.host, url.port  # decoded only here, which may fail as well
    except ValueError:
        return None
    if not host or port is None or url.user is not None or url.path not in ("", "/"):
        return None
    return scheme, host.lower(), port


def is_websocket(request: web.Request) -> bool:
    """
    Return whether *request* is a websocket handshake.
    """
    upgrade = request.headers.get(hdrs.UPGRADE)
    return upgrade is not None and (
        upgrade.lower().strip() == "websocket" and request.method == hdrs.METH_GET
    )


class OriginPolicy:
    """
    Refuses the handshakes of pages of other origins.

    A browser sends a host's cookies along with a websocket handshake from any page, so
    without this check a foreign page could open a socket in the visitor's name (CSWSH).

    Args:
        origins: ``"same"`` compares host and port of ``Origin`` with the ``Host`` header,
            and the scheme if the request came over TLS; a collection of origins, like
            ``["https://example.org"]``, is compared in full; a callable, sync or async,
            is given the request and decides; ``None`` allows every page.

    Raises:
        TypeError: If *origins* is something else.
        ValueError: If an origin in the collection is not one.
    """

    def __init__(self, origins: Origins = "same") -> None:
        self._origins = origins
        self._allowed = _expect_origins(origins)
        # Header values that were accepted before: spares parsing two URLs on each handshake.
        self._accepted: set[tuple[str, str, str]] = set()
        self._log_limit = OncePerMinute()
        self._warned: ExpiringDict[str, bool] = ExpiringDict(_MAX_ORIGINS, math.inf)

    def accepted_before(self, request: web.Request) -> bool:
        """
        Return whether the page's origin has been accepted before, so that no check is needed.
        """
        if not self._accepted:
            return False
        headers = request.headers
        origin = headers.get(hdrs.ORIGIN)
        if (origin, headers.get(hdrs.HOST, ""), request.scheme) not in self._accepted:
            return False
        return len(headers.getall(hdrs.ORIGIN)) == 1

    async def check(self, request: web.Request) -> None:
        """
        Check that *request* does not come from a page of another origin.

        Raises:
            aiohttp.web.HTTPForbidden: If it does. Each origin is logged once, at most ten
                per minute.
        """
        if self._origins is None:
            return
        if callable(self._origins):
            if not await maybe_await(self._origins(request)):
                raise Forbidden("origin", "websocket refused: the application's origins check")
            return
        headers = request.headers
        origin = headers.get(hdrs.ORIGIN)
        if origin is None:  # not a browser, so no visitor's cookies can be misused
            return
        host = headers.get(hdrs.HOST, "")
        key = (origin, host, request.scheme)
        sent = headers.getall(hdrs.ORIGIN)
        if len(sent) > 1 or not self._matches(*key):
            raise Forbidden("origin", self._refusal(sent, host))
        if len(self._accepted) >= _MAX_ORIGINS:
            self._accepted.clear()
        self._accepted.add(key)

    def _matches(self, text: str, host: str, scheme: str) -> bool:
        origin = parse_origin(text)
        if origin is None:
            return False
        if self._allowed is not None:
            return origin in self._allowed
        # Behind a proxy that terminates TLS the request looks like http, so schemes are
        # compared only if the request itself came over TLS.
        if scheme == "https" and origin[0] != "https":
            return False
        return origin == _parse(origin[0], host)

    def _refusal(self, origins: list[str], host: str) -> str:
        """
        Return why a handshake is refused; log it once per origin, at most ten per minute.
        """
        sent, host = ", ".join(origins)[:_MAX_SHOWN], host[:_MAX_SHOWN]
        text = (
            f"websocket refused: the page's Origin {sent!r} is not the Host {host!r}. If a"
            " proxy stands between, let it pass the Host header on; if the page is meant to come"
            " from elsewhere, name its origin in SessionWSRegistry(origins=[...])."
        )
        # The rate is limited, since a client can send any number of different origins.
        if sent not in self._warned and any(map(self._log_limit.allows, range(_MAX_LINES))):
            self._warned.put(sent, True)
            log.warning("%s", text)
        return text


def _expect_origins(origins: object) -> frozenset[Origin] | None:
    """
    Return the parsed origins of a collection, ``None`` if *origins* isn't a collection.
    """
    if origins is None or callable(origins) or origins == "same":
        return None
    if isinstance(origins, bytes):
        raise TypeError(f"origins={origins!r}: origins must be str, not bytes")
    if isinstance(origins, str) and origins != "*":
        msg = f"origins={origins!r}: did you mean origins=[{origins!r}]?"
        raise ValueError(msg)
    try:
        texts = list(origins)  # type: ignore[call-overload]  # that it is one is checked here
    except TypeError:
        msg = f"origins must be 'same', a collection, a callable or None, not {origins!r}"
        raise TypeError(msg) from None
    return frozenset(map(_expect_origin, texts))


def _expect_origin(text: object) -> Origin:
    origin = parse_origin(text) if isinstance(text, str) else None
    if origin is None:
        all_pages = "; origins=None allows all pages" if text == "*" else ""
        raise ValueError(
            f"{text!r} is not an origin; write it like 'https://example.org'{all_pages}"
        )
    return origin
