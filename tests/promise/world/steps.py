"""
What kinds of worlds there are, and what can happen in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .exchange import Plan


@dataclass(frozen=True)
class Config:
    """What kind of world it is.

    Attributes:
        storage: ``"simple"``, ``"encrypted"``, ``"nacl"``; ``"memory"`` or ``"redis"``, which
            keep sessions on the server.
        identify: Whether the registry knows users.
        ids: ``"unique"``; ``"derived"`` from the user by ``id_factory``.
        cluster: ``"memory"`` or ``"redis"`` for two nodes, by what they know of each other.
        legacy: Whether the browsers have sessions of before the installation: ``"bare"``
            without an id, ``"1.1.1"`` with one.
        cancels: Whether aiohttp cancels the handler of a client that is gone.
    """

    storage: str = "simple"
    identify: bool = True
    ids: str = "unique"
    cluster: str = ""
    legacy: str = ""
    cancels: bool = False

    @property
    def nodes(self) -> int:
        """How many servers there are."""
        return 2 if self.cluster else 1

    @property
    def on_server(self) -> bool:
        """Whether the storage keeps sessions on the server."""
        return self.storage in ("memory", "redis")


@dataclass(frozen=True)
class Visit:
    """A browser sends a request with the cookie that it has now."""

    browser: str
    plan: Plan


@dataclass(frozen=True)
class Theft:
    """The thief sends a request with the copy of a cookie, the *which*-th that was made."""

    which: int
    plan: Plan


@dataclass(frozen=True)
class GoOn:
    """The *which*-th of the requests that are held up goes on."""

    which: int


@dataclass(frozen=True)
class Vanish:
    """The client of the *which*-th of the requests that are under way is gone."""

    which: int


@dataclass(frozen=True)
class Leave:
    """The *which*-th of the open sockets is closed by its page."""

    which: int


@dataclass(frozen=True)
class Wait:
    """Time passes."""

    seconds: float


@dataclass(frozen=True)
class SetClock:
    """Somebody sets the wall clock of all servers."""

    seconds: float


@dataclass(frozen=True)
class Order:
    """An administrator gives an order.

    Attributes:
        what: A method of the registry: end_session, end_identity, close_all_session,
            close_all_identity.
        which: About the which-th of the ids that any log-in was saved with.
        user: About which user.
        node: On which server.
        subject: About which id, if it is known.
    """

    what: str
    which: int = 0
    user: str = "ann"
    node: int = 0
    subject: str | None = None


@dataclass(frozen=True)
class Deliver:
    """The *which*-th of the messages between nodes arrives; the others are late or lost."""

    which: int


Step: TypeAlias = Visit | Theft | GoOn | Vanish | Leave | Wait | SetClock | Order | Deliver
