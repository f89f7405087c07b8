"""
The subscriptions of one application by topic, and publishing to them in this process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..registry.registry import SessionWSRegistry
from ..results import Delivery
from . import ground, wamp_messages as wamp
from .halves import Step
from .session import Session, new_id
from .wamp import Codec

__all__ = ["Subscription", "Topics"]

_HELD: Final = 256  # events that may wait for SUBSCRIBED; further ones are missed
_HELD_BYTES: Final = 1_048_576  # of these in total; the last one may exceed it


@dataclass(slots=True, eq=False)
class Subscription:
    """
    One session's subscription to a topic.

    Attributes:
        topic: The name of the topic.
        session: The session of the subscriber.
        registry: The registry of its connection.
        codec: Encodes its events.
        id: The subscription id, the same for all subscribers of a topic.
        held: Events to be sent after SUBSCRIBED; ``None`` once they have been sent.
        ending: Runs the second half of the topic's function.
    """

    topic: str
    session: Session
    registry: SessionWSRegistry
    codec: Codec
    id: int = 0
    held: list[bytes] | None = field(default_factory=list)
    ending: Step | None = None


@dataclass(slots=True, eq=False)
class Subscribers:
    """
    The subscriptions to one topic.
    """

    id: int = field(default_factory=new_id)
    members: set[Subscription] = field(default_factory=set)


class Topics:
    """
    The topics of an application that have subscribers.
    """

    def __init__(self) -> None:
        self._by_name: defaultdict[str, Subscribers] = defaultdict(Subscribers)

    def add(self, subscription: Subscription) -> None:
        """
        Add a subscription, and set its id.
        """
        subscribers = self._by_name[subscription.topic]
        subscribers.members.add(subscription)
        subscription.id = subscribers.id

    def discard(self, subscription: Subscription) -> None:
        """
        Remove a subscription.
        """
        subscribers = self._by_name.get(subscription.topic)
        if subscribers is not None:
            subscribers.members.discard(subscription)
            if not subscribers.members:
                del self._by_name[subscription.topic]

    def publish(
        self,
        registry: SessionWSRegistry,
        topic: str,
        args: Sequence[Any],
        kwargs: wamp.Named,
        wanted: Callable[[Session], bool] | None,
    ) -> Delivery:
        """
        Push an event to the subscribers of this process, encoded once per codec.

        Args:
            registry: The registry of their sockets; those of other registries are skipped.
            topic: The name of the topic.
            args: Positional arguments of the event.
            kwargs: Named arguments of the event.
            wanted: Returns whether a session gets the event; ``None`` for all.
        """
        subscribers = self._by_name.get(topic)
        if subscribers is None:
            return Delivery()
        groups: defaultdict[Codec, list[Subscription]] = defaultdict(list)
        for one in subscribers.members:
            if one.registry is registry and (wanted is None or wanted(one.session)):
                groups[one.codec].append(one)
        sockets, complete, publication = 0, True, new_id()
        for codec, chosen in groups.items():
            data = codec.encode(wamp.event(subscribers.id, publication, args, kwargs))
            ready = [s.session.connection for s in chosen if s.held is None]
            held = [hold(s.held, data) for s in chosen if s.held is not None]
            delivery = ground.push(registry, ready, data if codec.binary else data.decode())
            sockets += delivery.sockets + sum(held)
            complete = complete and delivery.complete and all(held)
        return Delivery(sockets, complete=complete)


def hold(held: list[bytes], data: bytes) -> bool:
    """
    Hold an event until SUBSCRIBED has been sent; return whether there was room for it.
    """
    if len(held) >= _HELD or sum(map(len, held)) >= _HELD_BYTES:
        return False
    held.append(data)
    return True


def chooser(whose: Sequence[Any], number: int | None) -> Callable[[Session], bool] | None:
    """
    Return a function that says whether a session gets an event; ``None`` if all do.
    """
    if not whose and number is None:
        return None
    return lambda session: (
        (not whose or session.identity == whose[0]) and number in (None, session.id)
    )


def as_key(value: Any) -> Any:
    """
    Restore an identity from a relayed message, in which tuples have become lists.
    """
    return tuple(map(as_key, value)) if isinstance(value, list) else value
