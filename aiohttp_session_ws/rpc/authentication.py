"""
Authentication of sessions: transport authenticators, tickets, WAMP-CRA, or a custom handler.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import msgspec

from .._logging import log
from .._tasks import is_cancelled, maybe_await
from ..exceptions import WebSocketDisconnect
from .errors import (
    AUTHENTICATION_FAILED,
    RUNTIME_ERROR,
    ProtocolViolation,
    RPCError,
    SessionGone,
)
from .session import Session

__all__ = ["Authentication", "CRASecret", "session_identity"]

Authenticator: TypeAlias = Callable[[Session], Any]
TicketAuthenticator: TypeAlias = Callable[[Session, str], Any]
#: Sends a CHALLENGE with a method and its details to the peer; returns its signature.
Challenge: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[str]]

_FAILED: Final = "Authentication failed."


@dataclass(frozen=True, slots=True)
class CRASecret:
    """
    The secret that a peer has to know for WAMP-CRA (``wampcra``).

    Args:
        secret: The password; with *salt*, alternatively the key that PBKDF2 (SHA-256) derived
            from it, in Base64, so that the password need not be stored.
        role: Role of a peer that knows the secret.
        provider: Name of the authentication provider.
        salt: Salt of PBKDF2; ``None`` if the secret is used as it is.
        iterations: Number of iterations of PBKDF2.
        keylen: Length of the derived key in bytes.
    """

    secret: str | bytes = field(repr=False)
    role: str = "user"
    provider: str = "static"
    salt: str | None = field(default=None, repr=False)
    iterations: int = 1000
    keylen: int = 32


async def session_identity(session: Session) -> Any:
    """
    Return the identity of the socket's :mod:`aiohttp_session` session; a transport authenticator.
    """
    return session.connection.identity


class Authentication:
    """
    The authentication methods of one realm.

    Attributes:
        transport: Authenticators that are called in order, before the peer is challenged.
        ticket: Checks a ticket.
        cra: Two functions: the first returns the secret of a peer, the second its identity.
        handler: Does the whole authentication, in place of the others.
    """

    def __init__(self) -> None:
        self.transport: list[Authenticator] = []
        self.ticket: TicketAuthenticator | None = None
        self.cra: tuple[Authenticator, Authenticator] | None = None
        self.handler: Callable[[Session], Any] | None = None
        # An unknown peer is challenged like a known one, so that it isn't revealed which exist.
        self._template = CRASecret(b"")
        self._key = secrets.token_bytes(32)

    async def identify(self, session: Session, challenge: Challenge) -> tuple[Any, bool]:
        """
        Authenticate a session.

        Args:
            session: The session; its ``auth_…`` attributes say afterwards how it was done.
            challenge: Challenges the peer by a method that it supports.

        Returns:
            The identity, ``None`` if anonymous, and whether the peer itself has proven it.

        Raises:
            RPCError: If the session may not join.
        """
        try:
            return await self._identify(session, challenge)
        except (RPCError, ProtocolViolation, SessionGone, WebSocketDisconnect):
            raise
        except (Exception, asyncio.CancelledError) as exc:
            if is_cancelled():
                raise
            log.exception("authentication failed with an unexpected error")
            raise RPCError(RUNTIME_ERROR) from exc

    async def _identify(self, session: Session, challenge: Challenge) -> tuple[Any, bool]:
        if self.handler is not None:
            await maybe_await(self.handler(session))
            joins, value, message = session.verdict or (False, AUTHENTICATION_FAILED, _FAILED)
            if not joins:
                raise RPCError(value, *([message] if message else []))
            return value, True
        for authenticator in self.transport:
            identity = await maybe_await(authenticator(session))
            if not _is_missing(identity):
                return identity, False
        identity = None
        if self.cra is not None and "wampcra" in session.auth_methods:
            identity = await self._identify_by_cra(session, challenge, *self.cra)
        elif self.ticket is not None and "ticket" in session.auth_methods:
            session.auth_method = "ticket"
            identity = await maybe_await(self.ticket(session, await challenge("ticket", {})))
        elif not self.transport and self.cra is None and self.ticket is None:
            session.auth_method = "anonymous"
            return None, False
        if _is_missing(identity):
            raise RPCError(AUTHENTICATION_FAILED, _FAILED)
        return identity, True

    async def _identify_by_cra(
        self,
        session: Session,
        challenge: Challenge,
        secret_of: Authenticator,
        identity_of: Authenticator,
    ) -> Any:
        found = await maybe_await(secret_of(session))
        if found is not None:
            self._template = found
        secret: CRASecret = self._decoy_secret(session) if found is None else found
        text = _challenge_text(session, secret)
        extra: dict[str, Any] = {"challenge": text}
        if secret.salt is not None:
            salted = ("salt", "iterations", "keylen")
            extra |= {name: getattr(secret, name) for name in salted}
        signature = await challenge("wampcra", extra)
        signed = await asyncio.to_thread(_is_signed, secret, text, signature)
        if found is None or not signed:
            return None
        session.auth_method = "wampcra"
        session.auth_role, session.auth_provider = secret.role, secret.provider
        return await maybe_await(identity_of(session))

    def _decoy_secret(self, session: Session) -> CRASecret:
        """
        Return a random secret for an unknown peer, of the same form as those of known peers.
        """
        salt = self._template.salt
        if salt is not None:
            digest = hmac.digest(self._key, (session.auth_id or "").encode(), "sha256")
            salt = digest.hex()[: len(salt)]
        return replace(self._template, secret=secrets.token_bytes(32), salt=salt)


def _is_missing(identity: Any) -> bool:
    """
    Return whether an authenticator found no identity; one that only compares returns ``False``.
    """
    return identity is None or identity is False


def _challenge_text(session: Session, secret: CRASecret) -> str:
    return msgspec.json.encode(
        {
            "authid": session.auth_id or "",
            "authrole": secret.role,
            "authmethod": "wampcra",
            "authprovider": secret.provider,
            "nonce": secrets.token_urlsafe(16),
            "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "session": session.id,
        }
    ).decode()


def _is_signed(secret: CRASecret, text: str, signature: str) -> bool:
    """
    Return whether a text was signed with a secret; the time it takes doesn't depend on that.
    """
    key = secret.secret.encode() if isinstance(secret.secret, str) else secret.secret
    keys = [key]
    if secret.salt is not None:
        salt = secret.salt.encode()
        derived = hashlib.pbkdf2_hmac("sha256", key, salt, secret.iterations, secret.keylen)
        keys.append(base64.b64encode(derived))
    given = signature.encode(errors="replace")
    digests = [base64.b64encode(hmac.digest(one, text.encode(), "sha256")) for one in keys]
    return max(hmac.compare_digest(digest, given) for digest in digests)
