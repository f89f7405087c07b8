"""
An index that reports which of its keys have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from .connection import TrackedConnection
from .index import Index, Track

__all__: list[str] = []


class WatchedIndex(Index):
    """
    Connections by a key, with a callback for each key whose connections change.

    Args:
        changed: Called with the key after a connection was filed there or taken out.
        track: Creates the connection of an object registered by hand, as for :class:`Index`.
    """

    __slots__ = ("_changed",)

    def __init__(self, changed: Callable[[Hashable], None], track: Track | None = None) -> None:
        super().__init__(track)
        self._changed = changed

    def add(self, key: Hashable, connection: TrackedConnection) -> None:
        """
        File *connection*, which is not there yet, under *key*.
        """
        super().add(key, connection)
        self._changed(key)

    def discard(self, key: Hashable, connection: TrackedConnection) -> None:
        """
        Take *connection* out, if it is there.
        """
        super().discard(key, connection)
        self._changed(key)

    def add_object(self, key: Hashable, ws: object) -> None:
        """
        File an object registered by hand, unless it is there.
        """
        super().add_object(key, ws)
        self._changed(key)

    def discard_object(self, key: Hashable, ws: object) -> bool:
        """
        Take out an object that has no connection yet; return whether it was there.
        """
        discarded = super().discard_object(key, ws)
        self._changed(key)
        return discarded
