"""
What peers may name, in tables that are filled at registration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from .._tasks import is_coroutine_function
from .signature import Signature

__all__ = ["Procedure", "RouteClass", "Served", "Topic"]

E = TypeVar("E", bound="Entry")

_PART: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NO_PARTS: Final[Mapping[str, str]] = {}


class Entry:
    """
    Something that peers may name.

    Attributes:
        name: Its name or pattern, in full.
        signature: What it takes.
        parts: The names in the pattern.
    """

    def __init__(self, name: str, function: Callable[..., Any], *, method: bool = False) -> None:
        self.name = name
        #: The name's words; ``None`` where anything fits.
        self.words = tuple(None if _PART.fullmatch(word) else word for word in name.split("."))
        for word in self.words:
            if word is not None and (not word or "{" in word or "}" in word):
                msg = f"{name!r} is no name: words between dots, and any may be a {{part}}"
                raise ValueError(msg)
        self.parts = tuple(_PART.findall(name))
        self.signature = Signature(function, method=method, parts=self.parts)


class Procedure(Entry):
    """
    What peers may call.

    Attributes:
        timeout: Seconds that a call may take; ``None`` for any time.
        threaded: Whether it runs in a thread.
        owner: The route class, if it is a method.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        timeout: float | None = None,
        threaded: bool = False,
        owner: RouteClass | None = None,
    ) -> None:
        super().__init__(name, function, method=owner is not None)
        self.timeout = timeout
        self.threaded = threaded
        self.owner = owner
        if threaded and (self.signature.streams or is_coroutine_function(function)):
            raise self.signature.unfit("isn't a plain function: only these run in a thread")


class Topic(Entry):
    """
    What peers may subscribe to.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name, function)
        self.signature.expect_halves("a topic")


class RouteClass:
    """
    A class with one object for each session that calls it.

    Attributes:
        name: The name of its ``init()``; the others are behind a dot.
        signature: Of its constructor.
        closes: Whether it has an ``aclose()``.
    """

    def __init__(self, name: str, made: type) -> None:
        self.name = name
        self.signature = Signature(made)
        self.closes = hasattr(made, "aclose")


def two_halves(handler: Callable[..., Any]) -> Signature:
    """
    Return the signature of a session state handler.

    Raises:
        TypeError: If it has no two halves.
    """
    signature = Signature(handler)
    signature.expect_halves("a session state handler")
    return signature


class Table(Generic[E]):
    """
    Entries by name; an exact name wins over a pattern.
    """

    def __init__(self) -> None:
        self._entries: list[E] = []
        self._exact: dict[str, E] = {}
        # By which words are fixed, and what these are: no two entries fit one name.
        self._patterns: dict[int, dict[tuple[int, ...], dict[tuple[str, ...], E]]] = {}

    def __iter__(self) -> Iterator[E]:
        return iter(self._entries)

    def add(self, entry: E) -> None:
        """
        Add an entry.

        Raises:
            ValueError: If another has its name, or a pattern that meets its own.
        """
        if not entry.parts:
            self._expect_free(entry, self._exact.get(entry.name))
            self._exact[entry.name] = entry
        else:
            for other in self._entries:
                if other.parts and _meet(entry, other):
                    self._expect_free(entry, other)
            fixed = tuple(i for i, word in enumerate(entry.words) if word is not None)
            group = self._patterns.setdefault(len(entry.words), {}).setdefault(fixed, {})
            group[tuple(word for word in entry.words if word is not None)] = entry
        self._entries.append(entry)

    def find(self, name: str) -> tuple[E, Mapping[str, str]] | None:
        """
        Return the entry that *name* means, and what the parts of its pattern are.
        """
        entry = self._exact.get(name)
        if entry is not None:
            return entry, _NO_PARTS
        if self._patterns:
            words = name.split(".")
            for fixed, group in self._patterns.get(len(words), {}).items():
                entry = group.get(tuple([words[i] for i in fixed]))
                if entry is not None and all(words):
                    free = [w for w, own in zip(words, entry.words, strict=True) if own is None]
                    return entry, dict(zip(entry.parts, free, strict=True))
        return None

    @staticmethod
    def _expect_free(entry: E, other: E | None) -> None:
        if other is not None:
            msg = (
                f"{entry.signature.name}() can't be {entry.name!r}:"
                f" {other.signature.name}() is {other.name!r}; give one another name"
            )
            raise ValueError(msg)


def _meet(one: Entry, other: Entry) -> bool:
    """
    Tell whether a name may fit both patterns.
    """
    return len(one.words) == len(other.words) and all(
        a is None or b is None or a == b for a, b in zip(one.words, other.words, strict=True)
    )


@dataclass(frozen=True)
class Served:
    """
    What a realm or a set of routes has: procedures, topics, and the names of route classes.
    """

    procedures: Table[Procedure] = field(default_factory=Table)
    topics: Table[Topic] = field(default_factory=Table)
    classes: dict[str, RouteClass] = field(default_factory=dict)

    def add(self, entry: Procedure | Topic | RouteClass) -> None:
        """
        Add what was declared.
        """
        if isinstance(entry, Procedure):
            self.procedures.add(entry)
        elif isinstance(entry, Topic):
            self.topics.add(entry)
        else:
            self.classes[entry.name] = entry
