"""
The options of a registry, and their validation.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeVar

from aiohttp import web

from ..options import Expiry, Limits, PushQueue, Timeouts
from ..sessions.session import SessionKeys
from ..typing import Authorize, Identify, IdFactory, Labels, Origins, WebSocketOptions

__all__: list[str] = []

T = TypeVar("T")

SHORTEST_KEY: Final = 16  # bytes


class Options(NamedTuple):
    """
    The options of a registry.
    """

    id_factory: IdFactory
    keys: SessionKeys
    identify: Identify | None
    labels: Labels | None
    authorize: Authorize | None
    origins: Origins
    limits: Limits
    expiry: Expiry
    push_queue: PushQueue
    timeouts: Timeouts
    handle_key: bytes | None


def expect_identify(options: Options) -> None:
    """
    Check that ``identify`` is given if another option requires it.

    Raises:
        ValueError: If it is missing.
    """
    if options.limits.per_identity is not None and options.identify is None:
        raise ValueError("Limits(per_identity=...) requires identify=")


def expect_callable(value: T, name: str) -> T:
    """
    Return *value* if it is callable or ``None``.

    Raises:
        TypeError: If it is something else.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable with the request, not {value!r}")
    return value


def expect_options(options: WebSocketOptions) -> None:
    """
    Check the options of a websocket response before the first handshake.

    Raises:
        TypeError: If aiohttp has no such option.
    """
    _ = web.WebSocketResponse(**options)


def expect(value: T, kind: type[T], name: str) -> T:
    """
    Return *value* if it is an instance of *kind*.

    Raises:
        TypeError: If it isn't.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def option(value: T | None, kind: type[T], name: str) -> T:
    """
    Return *value* if it is an instance of *kind*, a new one if it is ``None``.

    Raises:
        TypeError: If it is something else.
    """
    return kind() if value is None else expect(value, kind, name)


def expect_key(value: str | bytes | None, name: str) -> bytes | None:
    """
    Return a secret key as bytes, ``None`` if it is ``None``.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is shorter than 16 bytes.
    """
    if value is None:
        return None
    if not isinstance(value, str | bytes):
        raise TypeError(f"{name} must be of type str or bytes, not {type(value).__name__}")
    key = value.encode() if isinstance(value, str) else value
    if len(key) < SHORTEST_KEY:
        raise ValueError(
            f"{name} must be a secret of at least {SHORTEST_KEY} bytes, not of {len(key)}"
        )
    return key
