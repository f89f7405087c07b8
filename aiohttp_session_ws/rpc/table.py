"""
Tables of procedures and topics by name, filled at registration.
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
    A procedure or topic, which peers refer to by name.

    Attributes:
        name: Its full name or pattern.
        signature: The signature of its function.
        parts: The names of the parts of the pattern.
    """

    def __init__(self, name: str, function: Callable[..., Any], *, method: bool = False) -> None:
        self.name = name
        #: The words of the name; ``None`` matches any word.
        self.words = tuple(None if _PART.fullmatch(word) else word for word in name.split("."))
        for word in self.words:
            if word is not None and (not word or "{" in word or "}" in word):
                msg = (
                    f"{name!r} is not a valid name: expected words or {{parts}} separated by dots"
                )
                raise ValueError(msg)
        self.parts = tuple(_PART.findall(name))
        self.signature = Signature(function, method=method, parts=self.parts)


class Procedure(Entry):
    """
    A procedure that peers may call.

    Attributes:
        timeout: Seconds that a call may take; ``None`` for no limit.
        threaded: Whether it runs in a thread.
        owner: The route class, if the procedure is a method.
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
            raise self.signature.type_error("is async: only a plain function can run in a thread")


class Topic(Entry):
    """
    A topic that peers may subscribe to.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name, function)
        self.signature.expect_generator("a topic")


class RouteClass:
    """
    A class with one instance for each session that calls it.

    Attributes:
        name: The name of its ``init()``; other methods follow it, after a dot.
        signature: The signature of its constructor.
        closes: Whether it has an ``aclose()``.
    """

    def __init__(self, name: str, cls: type) -> None:
        self.name = name
        self.signature = Signature(cls)
        self.closes = hasattr(cls, "aclose")


def state_handler_signature(handler: Callable[..., Any]) -> Signature:
    """
    Return the signature of a session state handler.

    Raises:
        TypeError: If *handler* is not an async generator function.
    """
    signature = Signature(handler)
    signature.expect_generator("a session state handler")
    return signature


class Table(Generic[E]):
    """
    Entries by name; an exact name takes precedence over a pattern.
    """

    def __init__(self) -> None:
        self._entries: list[E] = []
        self._exact: dict[str, E] = {}
        # By number of words, places of the fixed words, and these: at most one matches a name.
        self._patterns: dict[int, dict[tuple[int, ...], dict[tuple[str, ...], E]]] = {}

    def __iter__(self) -> Iterator[E]:
        return iter(self._entries)

    def add(self, entry: E) -> None:
        """
        Add an entry.

        Raises:
            ValueError: If its name is taken, or its pattern overlaps that of another entry.
        """
        if not entry.parts:
            self._expect_free(entry, self._exact.get(entry.name))
            self._exact[entry.name] = entry
        else:
            for other in self._entries:
                if other.parts and _overlap(entry, other):
                    self._expect_free(entry, other)
            fixed = tuple(i for i, word in enumerate(entry.words) if word is not None)
            group = self._patterns.setdefault(len(entry.words), {}).setdefault(fixed, {})
            group[tuple(word for word in entry.words if word is not None)] = entry
        self._entries.append(entry)

    def find(self, name: str) -> tuple[E, Mapping[str, str]] | None:
        """
        Return the entry for *name*, and the values of its pattern's parts; ``None`` if unknown.
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
                f"{entry.signature.name}(): the name {entry.name!r} conflicts with"
                f" {other.name!r} of {other.signature.name}(); rename one of them"
            )
            raise ValueError(msg)


def _overlap(one: Entry, other: Entry) -> bool:
    """
    Return whether a name could match both patterns.
    """
    return len(one.words) == len(other.words) and all(
        a is None or b is None or a == b for a, b in zip(one.words, other.words, strict=True)
    )


@dataclass(frozen=True)
class Served:
    """
    The entries of a realm or of :class:`Routes`: procedures, topics and route classes, by name.
    """

    procedures: Table[Procedure] = field(default_factory=Table)
    topics: Table[Topic] = field(default_factory=Table)
    classes: dict[str, RouteClass] = field(default_factory=dict)

    def add(self, entry: Procedure | Topic | RouteClass) -> None:
        """
        Add an entry to its table.
        """
        if isinstance(entry, Procedure):
            self.procedures.add(entry)
        elif isinstance(entry, Topic):
            self.topics.add(entry)
        else:
            self.classes[entry.name] = entry
