"""
The index of connections by a key.
"""

from __future__ import annotations

from collections.abc import Hashable

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiohttp_session_ws.close_codes import Close
from aiohttp_session_ws.connections.connection import TrackedConnection, registered_object
from aiohttp_session_ws.connections.index import Index


def connection(session_ws_id: Hashable) -> TrackedConnection:
    """Return a connection of a new websocket."""
    return TrackedConnection(session_ws_id, object())


def made(key: Hashable, thing: object, at: float) -> TrackedConnection:
    """Return the connection of an object registered by hand."""
    return registered_object(key, thing, Closed(), at)


class Closed:
    """The closer of objects registered by hand."""

    async def close_connection(self, connection: TrackedConnection, close: Close) -> None:
        """Close nothing."""


class Model(RuleBasedStateMachine):
    """
    Compare an index with a plain list.
    """

    keys = st.sampled_from(["a", "b", 1, (1,)])

    def __init__(self) -> None:
        super().__init__()
        self.index = Index(made)
        self.there: list[tuple[Hashable, TrackedConnection]] = []

    @rule(key=keys)
    def add(self, key: Hashable) -> None:
        """File a new connection."""
        new = connection(key)
        self.index.add(key, new)
        self.there.append((key, new))

    @rule(key=keys)
    def add_object(self, key: Hashable) -> None:
        """File the same object twice."""
        thing = object()
        self.index.add_object(key, thing)
        self.index.add_object(key, thing)
        (one,) = [c for c in self.index.of(key) if c.ws is thing]
        self.there.append((key, one))

    @rule(key=keys)
    def unseen_object(self, key: Hashable) -> None:
        """Take out an object by discard_object(), which needs it to be alone under its key."""
        thing, alone = object(), key not in self.index
        self.index.add_object(key, thing)
        unseen = self.index.served()

        assert self.index.discard_object(key, thing) is alone
        assert all(one.ws is not thing for one in unseen) is alone
        assert not self.index.discard_object(key, thing)
        for one in self.index.of(key):
            if one.ws is thing:
                self.index.discard(key, one)

    @rule(key=keys)
    def discarded_object(self, key: Hashable) -> None:
        """Take out the connection of an object like any other."""
        thing = object()
        self.index.add_object(key, thing)
        self.index.discard(key, connection(key))
        one = self.index.get(key, thing)
        assert one is not None
        self.index.discard(key, one)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        """Take the same connection out twice."""
        if self.there:
            key, gone = self.there.pop(data.draw(st.integers(0, len(self.there) - 1)))
            self.index.discard(key, gone)
            self.index.discard(key, gone)

    @rule(key=keys)
    def discard_unknown(self, key: Hashable) -> None:
        """Take out a connection that isn't filed."""
        self.index.discard(key, connection(key))

    @invariant()
    def same(self) -> None:
        """The index and the list hold the same connections, by key and in total."""
        keys = {key for key, _ in self.there}
        assert set(self.index.keys()) == keys
        assert len(self.index) == len(keys)
        assert self.index.size == len(self.there)
        assert set(self.index) == {one for _, one in self.there}
        assert set(self.index.served()) == set(self.index)
        for key in ["a", "b", 1, (1,)]:
            assert (key in self.index) is (key in keys)
            assert self.index.of(key) == [one for there, one in self.there if there == key]
        for key, one in self.there:
            assert self.index.get(key, one.ws) is one
            assert self.index.get("nowhere", one.ws) is None


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_may_change_meanwhile() -> None:
    """An iteration covers the connections present at its start, though they are removed."""
    index = Index()
    for number in range(3):
        index.add("a", connection(number))
    seen = []
    for one in index:
        index.discard("a", one)
        seen.append(one)

    assert len(seen) == 3
    assert not index.size
