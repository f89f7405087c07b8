"""
Finds whom a request belongs to: calls the application's ``identify`` and ``labels``.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Final, NamedTuple

from aiohttp import web
from aiohttp_session import Session

from .._expiring import ExpiringDict
from .._lineage import Subject
from .._logging import OncePerMinute, describe_error, log
from .._tasks import maybe_await
from ..connections.connection import Connection
from ..exceptions import IdentifyFailed, InvalidIdentity, NotSetUp
from ..results import ConnectionInfo
from ..sessions.session import copy_of, loaded_session, put_session
from ..typing import Identified, Identify, Labels

__all__: list[str] = []

REMEMBERED: Final = 100_000  # lineages whose owner is cached
REMEMBERED_FOR: Final = 3600.0  # seconds
MOST_LABELS: Final = 8


class Owner(NamedTuple):
    """
    Whom a session belongs to, and its labels.

    Attributes:
        identity: The identity; ``None`` if the session is anonymous.
        labels: Further names that it can be ended by.
        until: When it stops belonging to the identity, in seconds since the epoch.
    """

    identity: Hashable | None = None
    labels: tuple[Subject, ...] = ()
    until: float = math.inf

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """
        The subjects that the session can be ended by besides its id.
        """
        if self.identity is None:
            return self.labels
        return (Subject("identity", self.identity), *self.labels)


ANONYMOUS: Final = Owner()


def expect_usable(value: object, unhashable: str, check: Callable[[Hashable], None]) -> None:
    """
    Check that a value can be used as an id or an identity, by which sockets are found.

    Args:
        value: The value.
        unhashable: The error message for a value that can't be hashed.
        check: Raises ``TypeError`` for a value that can't be sent to other nodes.

    Raises:
        TypeError: If it can't be used, or is an object that has an id or an identity: a coroutine
            that wasn't awaited, a request, a socket, or the like.
    """
    kind = type(value).__name__
    if isinstance(value, Awaitable):
        raise TypeError(f"expected an id or an identity, not a {kind}: await it first")
    if isinstance(value, Identified):
        raise TypeError(
            "expected an identity, not the Identified that identify returns: pass its .identity"
        )
    if isinstance(value, _HAVE_ONE):
        raise TypeError(f"expected an id or an identity, not a {kind}: pass that of its session")
    try:
        hash(value)
    except TypeError:
        raise TypeError(unhashable) from None
    check(value)


_HAVE_ONE: Final = (
    web.BaseRequest,
    web.StreamResponse,
    web.Application,
    Session,
    Connection,
    ConnectionInfo,
)


class Identifier:
    """
    The application's ``identify`` and ``labels``, with a cache of what they returned.

    Args:
        identify: The callable; ``None`` if sessions have no known identity.
        labels: The callable for labels; ``None`` if there are none.
        check: Raises ``TypeError`` for a value that can't be sent to other nodes.

    Attributes:
        identify: The callable.
        configured: Whether there is a callable to be called for a request.
        optional: Whether identities may be ended without it: by a script, which has no sockets.
    """

    def __init__(
        self, identify: Identify | None, labels: Labels | None, check: Callable[[Hashable], None]
    ) -> None:
        self.identify = identify
        self.labels = labels
        self.optional = False
        self._check = check
        self.configured = identify is not None or labels is not None
        self._logged = OncePerMinute()
        self._known: ExpiringDict[Hashable, Owner] = ExpiringDict(REMEMBERED, REMEMBERED_FOR)

    def expect(self) -> None:
        """
        Raise :class:`NotSetUp` if there is no ``identify``.
        """
        if self.identify is None and not self.optional:
            raise NotSetUp("sessions have no identity: pass SessionWSRegistry(identify=...)")

    def expect_labels(self) -> None:
        """
        Raise :class:`NotSetUp` if there is no ``labels``, but it is required.
        """
        if self.labels is None and not self.optional:
            raise NotSetUp("sessions have no labels: pass SessionWSRegistry(labels=...)")

    def usable(self, identity: Hashable) -> Hashable:
        """
        Return *identity* if it can be used as one.

        Raises:
            InvalidIdentity: If it is ``None``, unhashable, or can't be sent to other nodes.
        """
        if type(identity) is str:
            return identity  # the usual case, which any node can be sent
        if identity is None:
            raise InvalidIdentity(
                "an identity can't be None, which stands for an anonymous session"
            )
        msg = "an identity must be hashable: let identify return a str, an int or a tuple"
        try:
            expect_usable(identity, msg, self._check)
        except TypeError as exc:
            raise InvalidIdentity(str(exc)) from None
        return identity

    def subject_of(self, identity: Hashable) -> Subject:
        """
        Return the subject of an identity.

        Raises:
            NotSetUp: If there is no ``identify``.
            InvalidIdentity: As :meth:`usable` does.
        """
        self.expect()
        return Subject("identity", self.usable(identity))

    def subject_of_label(self, name: object, value: Hashable) -> Subject:
        """
        Return the subject of a label.

        Raises:
            NotSetUp: If there is no ``labels``.
            InvalidIdentity: If its name isn't a str, or its value is ``None`` or unhashable.
        """
        self.expect_labels()
        if not isinstance(name, str):
            raise InvalidIdentity(
                f"the name of a label must be a str, not a {type(name).__name__}"
            )
        return Subject("label", (name, self.usable(value)))

    async def of(self, request: web.Request) -> Owner:
        """
        Return whom *request* belongs to, by its session as it is now.

        Raises:
            IdentifyFailed: If ``identify`` or ``labels`` raised anything but 401 or 403.
            InvalidIdentity: If one of them returned something that can't be used. Both are
                logged, at most once a minute per kind.
        """
        try:
            return await self._call_both(request)
        except (IdentifyFailed, InvalidIdentity) as exc:
            cause = exc.__cause__ or exc
            if self._logged.allows(type(cause).__name__):
                # Without its text and its traceback, which may show what a session holds.
                log.error("%s; requests that need it get 503 (%s)", exc, describe_error(cause))
            raise

    async def _call_both(self, request: web.Request) -> Owner:
        identity, until = None, math.inf
        if self.identify is not None:
            identity = await _call("identify", self.identify, request)
            if isinstance(identity, Identified):
                identity, until = identity
                if not _is_time(until):
                    raise InvalidIdentity(
                        f"until= must be a number of seconds since the epoch, not {until!r}"
                    )
            if identity is not None:
                identity = self.usable(identity)
        labels = () if self.labels is None else await self._call_labels(self.labels, request)
        return Owner(identity, labels, until)

    async def _call_labels(self, labels: Labels, request: web.Request) -> tuple[Subject, ...]:
        found = await _call("labels", labels, request)
        if not found:
            return ()
        if not isinstance(found, Mapping) or len(found) > MOST_LABELS:
            raise InvalidIdentity(f"labels must return a dict of {MOST_LABELS} names at most")
        named = [(name, value) for name, value in found.items() if value is not None]
        return tuple(self.subject_of_label(name, value) for name, value in named)

    async def of_content(
        self, request: web.Request, session: Session, content: Mapping[str, Any]
    ) -> Owner:
        """
        Return whom *request* belonged to when its session held *content*.
        """
        now = loaded_session(request)
        put_session(request, copy_of(session, content))
        try:
            return await self.of(request)
        finally:
            put_session(request, now)

    async def of_lineage(self, request: web.Request, token: str) -> Owner:
        """
        Return whom *request* belongs to; cached, so ``identify`` is called once per lineage.
        """
        key = self._key(request, token)
        known = self._known.get(key)
        if known is None:
            known = await self.of(request)
            self._known.put(key, known)
        return known

    def remember(self, request: web.Request, token: str, owner: Owner) -> None:
        """
        Cache the owner of the lineage of *request*, if it has an identity or labels.
        """
        known = owner.identity is not None or owner.labels
        if self.configured and known:  # else each request with a stale cookie would add one
            self._known.put(self._key(request, token), owner)

    def _key(self, request: web.Request, token: str) -> Hashable:
        """
        Return the key of an owner in the cache: a lineage has one identity, but its labels may
        change with the content of its session.
        """
        if self.labels is None:
            return token
        session = loaded_session(request)
        return token, None if session is None else hash(repr(dict(session)))


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def subjects_of(session_ws_id: Hashable | None, owner: Owner) -> tuple[Subject, ...]:
    """
    Return the subjects by which a session can be ended.
    """
    if session_ws_id is None:
        return owner.subjects
    return (Subject("id", session_ws_id), *owner.subjects)


async def _call(name: str, function: Callable[[web.Request], Any], request: web.Request) -> Any:
    """
    Call the application for *request*; 401 and 403 mean that it is anonymous.
    """
    try:
        return await maybe_await(function(request))
    except (web.HTTPUnauthorized, web.HTTPForbidden):
        return None
    except Exception as exc:
        msg = (
            f"{name} {function!r} raised {type(exc).__name__}; it is called with the request, and"
            " must return None if that is anonymous"
        )
        raise IdentifyFailed(msg) from exc
