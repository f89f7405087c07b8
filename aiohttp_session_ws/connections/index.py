"""
The index of connections: by the id, the lineage, the identity and the labels of their session.

Over 300 lines long: the index of one key, and the object that combines one for each kind of key.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from .._lineage import Lineage, Subject
from .connection import CLOSED, TrackedConnection

__all__: list[str] = []

_monotonic: Final = time.monotonic  # as the event loop's clock, but quicker

_Entry: TypeAlias = tuple[Any, float]  # an object, and when it was registered
_Group: TypeAlias = TrackedConnection | dict[Any, TrackedConnection] | _Entry
Track: TypeAlias = Callable[[Hashable, Any, float], TrackedConnection]


class Index:
    """
    Connections by a key; a key without connections is absent.

    Most sessions have one socket. Such a connection is stored directly, without a dictionary
    around it, which would be a quarter of the library's memory for a socket. An object registered
    by hand is stored with the time of its registration; its connection is created when it is
    first needed.

    One websocket may have several connections, if it is registered by hand under further ids of
    the same identity. An index that takes such objects has one connection of each per key.

    Args:
        track: Creates the connection of such an object, from its key, the object and that time.
            Without it the index takes connections only.

    Attributes:
        size: How many connections there are, those of such objects included.
    """

    __slots__ = ("_groups", "_track", "size")

    def __init__(self, track: Track | None = None) -> None:
        self.size = 0
        self._track = track
        self._groups: dict[Hashable, _Group] = {}

    def add(self, key: Hashable, connection: TrackedConnection) -> None:
        """
        File *connection*, which is not there yet, under *key*.
        """
        self.size += 1
        group = self._groups.setdefault(key, connection)
        if group is connection:
            return
        if isinstance(group, tuple):
            group = self._materialize(key, group)
        if isinstance(group, dict):
            group[self._name(connection)] = connection
        else:
            self._groups[key] = {self._name(one): one for one in (group, connection)}

    def _name(self, connection: TrackedConnection) -> object:
        """
        Return what identifies a connection among those of its key.
        """
        return connection if self._track is None else connection.ws

    def add_object(self, key: Hashable, ws: object) -> None:
        """
        File an object registered by hand, unless it is there.
        """
        entry = ws, _monotonic()
        if self._groups.setdefault(key, entry) is entry:
            self.size += 1
        elif self.get(key, ws) is None:
            assert self._track is not None
            self.add(key, self._track(key, *entry))

    def discard(self, key: Hashable, connection: TrackedConnection) -> None:
        """
        Take *connection* out, if it is there.
        """
        group = self._groups.get(key)
        if isinstance(group, dict):
            self.size -= group.pop(self._name(connection), None) is not None
            if not group:
                del self._groups[key]
        elif group is connection:
            self.size -= 1
            del self._groups[key]

    def discard_object(self, key: Hashable, ws: object) -> bool:
        """
        Take out an object that has no connection yet; return whether it was there.
        """
        group = self._groups.get(key)
        if isinstance(group, tuple) and group[0] is ws:
            del self._groups[key]
            self.size -= 1
            return True
        return False

    def get(self, key: Hashable, ws: object) -> TrackedConnection | None:
        """
        Return the connection of *ws* under *key*.
        """
        group = self._groups.get(key)
        if isinstance(group, tuple):
            group = self._materialize(key, group)
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
        if isinstance(group, tuple):
            group = self._materialize(key, group)
        return list(group.values()) if isinstance(group, dict) else [group]

    def first_of(self, key: Hashable, most: int) -> Iterable[TrackedConnection]:
        """
        Return at most *most* connections under *key*, without creating any.
        """
        group = self._groups.get(key)
        if type(group) is TrackedConnection:
            return (group,)
        if isinstance(group, dict):
            return tuple(itertools.islice(group.values(), most))
        return ()

    def present_among(self, keys: Sequence[Hashable]) -> list[Hashable]:
        """
        Return those of *keys* that have connections.
        """
        groups = self._groups
        if groups.keys().isdisjoint(keys):
            return []
        return [key for key in keys if key in groups]

    def keys(self) -> tuple[Hashable, ...]:
        """
        Return the keys that have connections.
        """
        return tuple(self._groups)

    def served(self) -> list[TrackedConnection]:
        """
        Return all connections, except of objects that have none yet.
        """
        found: list[TrackedConnection] = []
        for group in self._groups.values():
            if type(group) is TrackedConnection:  # most are, and this runs each second
                found.append(group)
            elif isinstance(group, dict):
                found += group.values()
            elif not isinstance(group, tuple):
                found.append(group)
        return found

    def __contains__(self, key: Hashable) -> bool:
        return key in self._groups

    def __iter__(self) -> Iterator[TrackedConnection]:
        """
        Iterate over a copy of all connections; create those of objects that have none yet.
        """
        objects = [(k, group) for k, group in self._groups.items() if isinstance(group, tuple)]
        for key, entry in objects:
            _ = self._materialize(key, entry)
        return iter(self.served())

    def _materialize(self, key: Hashable, entry: _Entry) -> TrackedConnection:
        assert self._track is not None
        connection = self._groups[key] = self._track(key, *entry)
        return connection

    def __len__(self) -> int:
        return len(self._groups)


class ConnectionIndex:
    """
    Connections by the id, the lineage, the identity and the labels of their session.

    Attributes:
        open: Open connections by session ws id, until they are closed.
        opening: Those whose handshake runs, by session ws id: seen by orders and limits only.
        lineages: Both, by the token of their lineage.
        identities: Both, by identity.
        labels: Both, by label.
        checked_each_tick: Open connections that are checked once a second, however many there are:
            streams, whose handlers don't notice that a client has disconnected, and those whose
            session is to be checked soon.
    """

    def __init__(self) -> None:
        self.open = Index()
        self.opening = Index()
        self.lineages = Index()
        self.identities = Index()
        self.labels = Index()
        self.checked_each_tick: dict[TrackedConnection, None] = {}

    def file_identity(
        self,
        connection: TrackedConnection,
        identity: Hashable | None,
        labels: Sequence[Subject] = (),
    ) -> None:
        """
        File a connection under its identity and its labels.
        """
        if identity is not None:
            connection.identity = identity
            self.identities.add(identity, connection)
        if labels:
            connection.labels = tuple(labels)
            for label in labels:
                self.labels.add(label, connection)

    def file_proven(self, connection: TrackedConnection, identity: Hashable, since: float) -> None:
        """
        File a connection under an identity that its client has proven, beside its session's.
        """
        self.discard_proven(connection)
        if connection.state is CLOSED:
            return
        connection.proven = identity, since
        if identity != connection.identity:
            self.identities.add(identity, connection)

    def discard_proven(self, connection: TrackedConnection) -> None:
        """
        Take out what :meth:`file_proven` has filed.
        """
        if connection.proven is not None:
            identity, _ = connection.proven
            connection.proven = None
            if identity != connection.identity:
                self.identities.discard(identity, connection)

    def refile(
        self, connection: TrackedConnection, session_ws_id: Hashable, lineage: Lineage
    ) -> None:
        """
        File a connection under another id and another generation of its lineage.
        """
        if connection.state is CLOSED:
            return
        index = self._index_of(connection)
        if session_ws_id != connection.session_ws_id:
            index.discard(connection.session_ws_id, connection)
            if connection.first_id is None:
                connection.first_id = connection.session_ws_id
            connection.session_ws_id = session_ws_id
            index.add(session_ws_id, connection)
        self._discard_lineage(connection)
        connection.lineage = lineage
        self.add_lineage(connection)

    def open_connection(self, connection: TrackedConnection) -> None:
        """
        File a connection as open; it replaces a registration of its websocket by hand.
        """
        if connection.session_ws_id in self.open:
            by_hand = self.open.get(connection.session_ws_id, connection.ws)
            if by_hand is not None:
                self.take_out(by_hand)
        self.opening.discard(connection.session_ws_id, connection)
        connection.set_open()
        self.open.add(connection.session_ws_id, connection)
        if connection.is_stream:
            self.checked_each_tick[connection] = None

    def open_of(self, subject: Subject | None) -> Iterable[TrackedConnection]:
        """
        Return the open connections of a subject, or all for ``None``.
        """
        if subject is None:
            return self.open
        if subject.kind == "id":
            return self.open.of(subject.value)
        found = self.labels.of(subject) if subject.kind == "label" else self.filed(subject)
        return [c for c in found if c.opened_at is not None]

    def filed(self, subject: Subject) -> list[TrackedConnection]:
        """
        Return the connections of an id or an identity, open and opening: one per websocket.
        """
        if subject.kind == "id":
            return self.open.of(subject.value) + self.opening.of(subject.value)
        found: dict[object, TrackedConnection] = {}
        for connection in self.identities.of(subject.value):
            # An object may be registered by hand under several ids.
            found.setdefault(connection.ws, connection)
        return list(found.values())

    def handshakes(self) -> list[TrackedConnection]:
        """
        Return the opening connections.
        """
        return list(self.opening)

    def take_out(self, connection: TrackedConnection) -> None:
        """
        Take a connection out for good.
        """
        self._index_of(connection).discard(connection.session_ws_id, connection)
        connection.set_closed()
        self.checked_each_tick.pop(connection, None)
        self._discard_lineage(connection)
        if connection.identity is not None:
            self.identities.discard(connection.identity, connection)
        if connection.sparse is None:
            return  # most have neither a proven identity nor labels
        if connection.proven is not None:
            self.identities.discard(connection.proven[0], connection)
        for label in connection.labels:
            self.labels.discard(label, connection)

    def _index_of(self, connection: TrackedConnection) -> Index:
        return self.opening if connection.opened_at is None else self.open

    def add_lineage(self, connection: TrackedConnection) -> None:
        """
        File a connection under its lineage.
        """
        if connection.lineage.token:
            self.lineages.add(connection.lineage.token, connection)

    def _discard_lineage(self, connection: TrackedConnection) -> None:
        if connection.lineage.token:
            self.lineages.discard(connection.lineage.token, connection)
