"""
The session of a request, and our keys in it: the only module that accesses ``aiohttp_session``.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import math
import time
import warnings
from collections.abc import Coroutine, Hashable, Mapping
from typing import Any, Final

import aiohttp_session
from aiohttp import web
from aiohttp_session import AbstractStorage, Session

from .._lineage import Lineage
from .._logging import describe_error, log
from .encoding import as_tuple

__all__: list[str] = []

DEFAULT_SESSION_KEY: Final = "aiohttp_session_ws_id"
ATOMS: Final = frozenset({str, int, float, bool, type(None), bytes})
LAST_SECOND: Final = float(2**53)  # a larger time is forged
_FERNET: Final = (
    b"\x80\0\0\0"  # how its tokens begin: the version, and zeros of the seconds since the epoch
)


class SessionKeys:
    """
    Our keys in a session.

    Args:
        session_key: The key of the session ws id.
    """

    __slots__ = ("id", "lineage", "own")

    def __init__(self, session_key: str = DEFAULT_SESSION_KEY) -> None:
        self.id = session_key
        self.lineage = f"{session_key}_lineage"
        # The last one is in sessions that were saved before there were lineages.
        self.own = frozenset({self.id, self.lineage, f"{session_key}_at"})

    def read_lineage(self, session: Mapping[str, Any]) -> Lineage | None:
        """
        Return the lineage that *session* carries, if it carries one.
        """
        return Lineage.parse(session.get(self.lineage))

    def write_lineage(self, session: Session, lineage: Lineage) -> None:
        """
        Store *lineage* in *session*.
        """
        session[self.lineage] = list(lineage)

    def holds_data(self, session: Mapping[str, Any]) -> bool:
        """
        Return whether *session* holds data of the application.
        """
        return any(key not in self.own for key in session)


def storage_in(request: web.Request) -> AbstractStorage | None:
    """
    Return the storage of the session of *request*; ``None`` without aiohttp_session's middleware.
    """
    try:  # quicker than get()
        storage: AbstractStorage = request[aiohttp_session.STORAGE_KEY]
    except KeyError:
        return None
    return storage


def load_session(request: web.Request) -> Coroutine[Any, Any, Session]:
    """
    Return the session of *request*; it is loaded once.
    """
    return aiohttp_session.get_session(request)  # without another coroutine around it


def keep_session(request: web.Request, session: object) -> bool:
    """
    Keep what the storage of *request* has loaded, as :func:`load_session` does; return whether it
    is a session.

    Not to be used for the first session of a storage: aiohttp warns about its key then, and names
    the code that has set it.
    """
    if not isinstance(session, Session):
        return False
    request[aiohttp_session.SESSION_KEY] = session
    return True


async def begin_session(request: web.Request) -> Session:
    """
    Give *request* a new, empty session, with a new key if the storage is server-side.

    Never ``invalidate()``: the session would keep its key, which a thief may have.
    """
    return await aiohttp_session.new_session(request)


def loaded_session(request: web.Request) -> Session | None:
    """
    Return the session that *request* has loaded so far.
    """
    try:  # quicker than get()
        session: Session = request[aiohttp_session.SESSION_KEY]
    except KeyError:
        return None
    return session


def put_session(request: web.Request, session: Session | None) -> None:
    """
    Set the loaded session of *request*; with ``None`` nothing is saved.
    """
    if session is None:
        request.pop(aiohttp_session.SESSION_KEY, None)
        return
    with warnings.catch_warnings():
        # aiohttp_session keeps it under a str key, about which aiohttp warns.
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        request[aiohttp_session.SESSION_KEY] = session


def was_changed(session: Session) -> bool:
    """
    Return whether aiohttp_session will save *session*; it has no public API for that.
    """
    return session._changed


def is_server_side(session: Session) -> bool:
    """
    Return whether *session* is kept on the server: it has a key in the storage.
    """
    return session.identity is not None


def created_at(session: Session) -> float:
    """
    Return when *session* was last changed, in seconds since the epoch.

    By the clock of the server that saved it. A forged or broken cookie may hold anything; an
    invalid time counts as 0.
    """
    created: object = session.created
    if type(created) not in (int, float) or not 0 <= created < LAST_SECOND:  # type: ignore[operator]
        return 0.0
    return float(created)  # type: ignore[arg-type]


def expires_at(session: Session | None) -> float:
    """
    Return the first second at which aiohttp_session considers *session* expired.
    """
    if session is None or session.max_age is None:
        return math.inf
    return created_at(session) + session.max_age + 1


def content_of(session: Session, keys: SessionKeys) -> dict[str, Any]:
    """
    Return a copy of what *session* holds, nested values too: a handler may change them.
    """
    content = dict(session)
    for key, value in content.items():
        if type(value) not in ATOMS and key != keys.lineage:
            content[key] = copy.deepcopy(value)
    return content


def copy_of(session: Session, content: Mapping[str, Any]) -> Session:
    """
    Return a session like *session* that holds *content*, for example to call ``identify``.
    """
    data: Any = {"created": int(time.time()), "session": dict(content)}
    return Session(session.identity, data=data, new=session.new, max_age=session.max_age)


def cookie_of(request: web.Request) -> str | None:
    """
    Return the session cookie of *request*.
    """
    storage = storage_in(request)
    return None if storage is None else request.cookies.get(storage.cookie_name)


def digest_of_cookie(request: web.Request, session: Session, purpose: str) -> str | None:
    """
    Return a digest of the cookie that *session* came with.

    It is the same for all requests with that cookie, and differs for each *purpose*. ``None``
    without a cookie.
    """
    cookie = cookie_of(request)
    if not cookie:
        return None
    data = cookie.encode(errors="replace")
    if not is_server_side(session):
        data = _decoded(data)
    key = f"aiohttp_session_ws {purpose}".encode()
    return hashlib.blake2b(data, digest_size=16, key=key).hexdigest()


def _decoded(cookie: bytes) -> bytes:
    """
    Return the bytes that a session cookie encodes in base64, however that is spelled.

    The storages that encrypt decode base64 as Python does, which ignores foreign characters. A
    cookie with one added still holds the same session, and must be recognized as the same.
    """
    with contextlib.suppress(ValueError):
        decoded = base64.urlsafe_b64decode(cookie)
        if decoded.startswith(_FERNET):
            return decoded
    with contextlib.suppress(ValueError):
        return base64.b64decode(cookie)  # NaCl's, where "-" and "_" are ignored
    return cookie


def will_be_saved(response: object) -> bool:
    """
    Return whether aiohttp_session saves a changed session with this response.
    """
    return isinstance(response, web.Response) and not response.prepared


async def empty_in_storage(
    request: web.Request, session: Session | None, keys: SessionKeys, lineage: Lineage | None
) -> None:
    """
    Empty *session* in a server-side storage, except for the lineage, which has ended.

    By that lineage a stale cookie is recognized: else its request would be a new visitor's, whose
    cookie would replace the one that may be on its way.
    """
    storage = storage_in(request)
    if session is None or storage is None or not is_server_side(session):
        return
    session.invalidate()
    if lineage is not None:
        keys.write_lineage(session, lineage)
    try:
        await storage.save_session(request, web.Response(), session)
    except Exception as exc:  # noqa: BLE001  of the storage
        # No traceback, which may hold the storage's key.
        log.error("the ended session could not be emptied in its storage: %s", describe_error(exc))


async def move_session(request: web.Request, session: Session) -> Session:
    """
    Give *request* a new session with the content of *session*, and a new key in the storage.
    """
    moved = await begin_session(request)
    moved.max_age = session.max_age
    moved.update(session)
    return moved


def id_in(session: Mapping[str, Any], key: str) -> Hashable | None:
    """
    Return the session ws id that *session* holds; ``None`` if it has none, or no hashable one.

    A forged or broken cookie may hold anything.
    """
    value = session.get(key)
    if type(value) is list:
        value = as_tuple(value)
    try:
        hash(value)
    except TypeError:
        return None
    session_ws_id: Hashable | None = value
    return session_ws_id
