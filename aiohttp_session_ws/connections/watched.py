"""
An index that tells which of its keys have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from .connection import TrackedConnection
from .index import Index

__all__: list[str] = []


class WatchedIndex(Index):
    """
    Connections by a key, and word of each key whose connections change.

    Args:
        changed: Called with the key after a connection was filed there or taken out.
    """

    __slots__ = ("_changed",)

    def __init__(self, changed: Callable[[Hashable], None]) -> None:
        super().__init__()
        self._changed = changed

    def add(self, key: Hashable, connection: TrackedConnection) -> None:
        """
        File *connection*, which is not there yet, under *key*.
        """
        super().add(key, connection)
        self._changed(key)

    def add_new(self, key: Hashable, connection: TrackedConnection) -> bool:
        """
        File *connection* unless its websocket is there; tell whether it was filed.
        """
        added = super().add_new(key, connection)
        self._changed(key)
        return added

    def discard(self, key: Hashable, ws: object) -> None:
        """
        Take *ws* out, if it is there.
        """
        super().discard(key, ws)
        self._changed(key)

    def discard_bare(self, key: Hashable, ws: object) -> bool:
        """
        Take out an object that was registered by hand and is filed nowhere else.
        """
        discarded = super().discard_bare(key, ws)
        self._changed(key)
        return discarded
