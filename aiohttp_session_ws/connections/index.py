"""
Connections by a key.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from .connection import CLOSED, NO_LINEAGE, OPEN, RegisteredObject, TrackedConnection

__all__: list[str] = []


class Index:
    """
    Connections by a key; a key that has none is not in it.

    Most sessions have one socket. Such a connection stands for itself, without a
    dictionary around it: that would be a quarter of what a socket costs us.

    Attributes:
        size: How many connections there are.
    """

    __slots__ = ("_groups", "size")

    def __init__(self) -> None:
        self.size = 0
        self._groups: dict[Hashable, TrackedConnection | dict[Any, TrackedConnection]] = {}

    def add(self, key: Hashable, connection: TrackedConnection) -> None:
        """
        File *connection*, which is not there yet, under *key*.
        """
        self.size += 1
        group = self._groups.setdefault(key, connection)
        if isinstance(group, dict):
            group[connection.ws] = connection
        elif group is not connection:
            self._groups[key] = {group.ws: group, connection.ws: connection}

    def add_new(self, key: Hashable, connection: TrackedConnection) -> bool:
        """
        File *connection* unless its websocket is there; tell whether it was filed.
        """
        if self._groups.setdefault(key, connection) is connection:
            self.size += 1
            return True
        if self.get(key, connection.ws) is not None:
            return False
        self.add(key, connection)
        return True

    def discard(self, key: Hashable, ws: object) -> None:
        """
        Take *ws* out, if it is there.
        """
        group = self._groups.get(key)
        if isinstance(group, dict):
            self.size -= group.pop(ws, None) is not None
            if not group:
                del self._groups[key]
        elif group is not None and group.ws is ws:
            self.size -= 1
            del self._groups[key]

    def discard_bare(self, key: Hashable, ws: object) -> bool:
        """
        Take out an object that was registered by hand and is filed nowhere else; tell whether
        it was there.
        """
        found = self._groups.get(key)
        if (
            type(found) is RegisteredObject
            and found.ws is ws
            and found.identity is None
            and found.lineage is NO_LINEAGE
            and found.send_queue is None
            and found.seldom is None
            and found.state is OPEN
        ):
            del self._groups[key]
            self.size -= 1
            found.state = CLOSED
            return True
        return False

    def get(self, key: Hashable, ws: object) -> TrackedConnection | None:
        """
        Return the connection of *ws* under *key*.
        """
        group = self._groups.get(key)
        if isinstance(group, dict):
            return group.get(ws)
        return group if group is not None and group.ws is ws else None

    def of(self, key: Hashable) -> list[TrackedConnection]:
        """
        Return the connections under *key*.
        """
        group = self._groups.get(key)
        if group is None:
            return []
        return list(group.values()) if isinstance(group, dict) else [group]

    def keys(self) -> tuple[Hashable, ...]:
        """
        Return the keys that have connections.
        """
        return tuple(self._groups)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._groups

    def __iter__(self) -> Iterator[TrackedConnection]:
        """
        Go through all connections that are there now.
        """
        found: list[TrackedConnection] = []
        for group in self._groups.values():
            if isinstance(group, dict):
                found += group.values()
            else:
                found.append(group)
        return iter(found)

    def __len__(self) -> int:
        return len(self._groups)
