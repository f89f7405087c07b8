"""
Who may knock: the process must not be shutting down, and a page must be one of ours.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Literal, TypeAlias

from aiohttp import hdrs, web
from yarl import URL

__all__ = ["Origins"]

Origins: TypeAlias = (
    Literal["same"] | Collection[str] | Callable[[web.Request], bool | Awaitable[bool]] | None
)

_ORIGIN: Final = re.compile(r"(https?)://([^/?#@\s\\]+)", re.IGNORECASE)

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
    Tell whether *request* asks for a websocket.
    """
    upgrade = request.headers.get(hdrs.UPGRADE)
    return upgrade is not None and (
        upgrade.lower().strip() == "websocket" and request.method == hdrs.METH_GET
    )


class Gate:
    """
    Refuses handshakes of pages that come from elsewhere.

    A browser sends a page's cookies along with a websocket handshake to any host, so
    without this check a foreign page could open a socket in the visitor's name (CSWSH).

    Args:
        origins: ``"same"`` compares host and port of ``Origin`` with the ``Host`` header,
            and the scheme if the request came over TLS; a collection of origins, like
            ``["https://example.org"]``, is compared in full; a callable, sync or async,
            is given the request and decides; ``None`` lets everybody in.

    Raises:
        ValueError: If an origin in the collection is not one.
    """

    def __init__(self, origins: Origins = "same") -> None:
        self._origins = origins
        self._allowed: frozenset[Origin] = frozenset()
        if isinstance(origins, str) and origins != "same":
            raise ValueError(f"origins={origins!r}: did you mean origins=[{origins!r}]?")
        if origins is not None and not isinstance(origins, str) and not callable(origins):
            self._allowed = frozenset(map(_expect_origin, origins))

    async def check(self, request: web.Request) -> None:
        """
        Let *request* pass.

        Raises:
            aiohttp.web.HTTPForbidden: If it comes from a foreign page.
        """
        origins = self._origins
        if origins is None:
            return
        if callable(origins):
            allowed = origins(request)
            if inspect.isawaitable(allowed):
                allowed = await allowed
            if not allowed:
                raise web.HTTPForbidden(text="websocket refused: the application's origins check")
            return
        # No Origin: not a browser, so there is nobody whose cookies could be misused.
        sent = request.headers.getall(hdrs.ORIGIN, ())
        if sent and not (len(sent) == 1 and self._knows(request, sent[0])):
            raise web.HTTPForbidden(text=_foreign(request, ", ".join(sent)))

    def _knows(self, request: web.Request, text: str) -> bool:
        origin = parse_origin(text)
        if origin is None:
            return False
        if self._allowed or self._origins != "same":
            return origin in self._allowed
        # Behind a proxy that ends TLS the request looks like http, so the scheme says
        # something only if the request itself came over TLS.
        if request.secure and origin[0] != "https":
            return False
        return origin == _parse(origin[0], request.headers.get(hdrs.HOST, ""))


def _expect_origin(text: object) -> Origin:
    origin = parse_origin(text) if isinstance(text, str) else None
    if origin is None:
        raise ValueError(f"{text!r} is not an origin; write it like 'https://example.org'")
    return origin


def _foreign(request: web.Request, origin: str) -> str:
    return (
        f"websocket refused: the page's Origin {origin!r} is not the Host"
        f" {request.headers.get(hdrs.HOST, '')!r}. If a proxy stands between, let it pass the"
        " Host header on; if the page is meant to come from elsewhere, name its origin in"
        " SessionWSRegistry(origins=[...])."
    )
