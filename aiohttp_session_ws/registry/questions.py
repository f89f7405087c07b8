"""
What nodes may ask each other besides who is connected, and what they count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeAlias

__all__: list[str] = []

WAIT: Final = 1.0  # seconds for the answers of other nodes

#: What JSON can hold.
Body: TypeAlias = dict[str, Any]

#: Answers a question.
Respond: TypeAlias = Callable[[Body], Awaitable[Body]]


class Figures(NamedTuple):
    """
    What a cluster counts.

    Attributes:
        outbox: How many orders wait for the others.
        reconciled: How many records were missed, and found later.
        outages: How many times the others could not be reached or heard.
        outage_seconds: For how long in all.
    """

    outbox: int = 0
    reconciled: int = 0
    outages: int = 0
    outage_seconds: float = 0.0


class Answers(NamedTuple):
    """
    What other nodes have answered to a question.

    Attributes:
        bodies: What each said.
        expected: How many were asked.
        answered: How many of them have answered.
    """

    bodies: tuple[dict[str, Any], ...] = ()
    expected: int = 0
    answered: int = 0

    @property
    def complete(self) -> bool:
        """
        Whether all have answered.
        """
        return self.answered >= self.expected


class Questions:
    """
    A table of what may be asked; whoever can answer adds it when the registry is made.
    """

    def __init__(self) -> None:
        self._answers: dict[str, Respond] = {}

    def add(self, name: str, respond: Respond) -> None:
        """
        Let *respond* answer the question that is called *name*.
        """
        assert name not in self._answers, f"two answers to {name!r}"
        self._answers[name] = respond

    async def answer(self, name: str, body: Body) -> Body:
        """
        Answer a question of another node: of one that isn't known here, that it isn't.
        """
        respond = self._answers.get(name)
        return {"unresolved": True} if respond is None else await respond(body)
