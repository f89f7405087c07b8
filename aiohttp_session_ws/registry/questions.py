"""
Requests between nodes and their answers, and the statistics of a cluster.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeAlias

__all__: list[str] = []

WAIT: Final = 1.0  # seconds for the answers of other nodes

#: The body of a request or an answer: values that JSON can hold.
Body: TypeAlias = dict[str, Any]

#: Answers a request.
Respond: TypeAlias = Callable[[Body], Awaitable[Body]]


class Figures(NamedTuple):
    """
    The statistics of a cluster.

    Attributes:
        outbox: How many orders wait in the outbox.
        reconciled: How many records were missed, and found later.
        outages: How many times the other nodes could not be reached or received from.
        outage_seconds: Seconds of outage in total.
    """

    outbox: int = 0
    reconciled: int = 0
    outages: int = 0
    outage_seconds: float = 0.0


class Answers(NamedTuple):
    """
    The answers of other nodes to a request.

    Attributes:
        bodies: The answers.
        expected: How many nodes were to answer.
        answered: How many of them have answered.
    """

    bodies: tuple[dict[str, Any], ...] = ()
    expected: int = 0
    answered: int = 0

    @property
    def complete(self) -> bool:
        """
        Whether all of them have answered.
        """
        return self.answered >= self.expected


class Questions:
    """
    The requests that a node answers, by name; the parts of a registry add theirs at construction.
    """

    def __init__(self) -> None:
        self._answers: dict[str, Respond] = {}

    def add(self, name: str, respond: Respond) -> None:
        """
        Answer requests of the name *name* by *respond*.
        """
        assert name not in self._answers, f"two answers to {name!r}"
        self._answers[name] = respond

    async def answer(self, name: str, body: Body) -> Body:
        """
        Answer a request of another node; an unknown one is answered as unresolved.
        """
        respond = self._answers.get(name)
        return {"unresolved": True} if respond is None else await respond(body)
