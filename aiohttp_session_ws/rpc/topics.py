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
from . import registry_access, wamp_messages as wamp
from .lifecycle import Step
from .session import Session, new_id
from .wamp import Codec

__all__ = ["Subscription", "Topics"]

_MAX_BUFFERED: Final = 256  # events that may wait for SUBSCRIBED; further ones are missed
_MAX_BUFFERED_BYTES: Final = 1_048_576  # of these in total; the last one may exceed it


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
        buffered: Events to be sent after SUBSCRIBED; ``None`` once they have been sent.
        exit_step: Runs the second half of the topic's function.
    """

    topic: str
    session: Session
    registry: SessionWSRegistry
    codec: Codec
    id: int = 0
    buffered: list[bytes] | None = field(default_factory=list)
    exit_step: Step | None = None


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
            ready = [s.session.connection for s in chosen if s.buffered is None]
            buffered = [buffer_event(s.buffered, data) for s in chosen if s.buffered is not None]
            frame = data if codec.binary else data.decode()
            delivery = registry_access.push(registry, ready, frame)
            sockets += delivery.sockets + sum(buffered)
            complete = complete and delivery.complete and all(buffered)
        return Delivery(sockets, complete=complete)


def buffer_event(buffered: list[bytes], data: bytes) -> bool:
    """
    Buffer an event until SUBSCRIBED has been sent; return whether there was room for it.
    """
    if len(buffered) >= _MAX_BUFFERED or sum(map(len, buffered)) >= _MAX_BUFFERED_BYTES:
        return False
    buffered.append(data)
    return True


def session_filter(
    identities: Sequence[Any], number: int | None
) -> Callable[[Session], bool] | None:
    """
    Return a function that says whether a session gets an event; ``None`` if all do.
    """
    if not identities and number is None:
        return None
    return lambda session: (
        (not identities or session.identity == identities[0]) and number in (None, session.id)
    )


def restore_identity(value: Any) -> Any:
    """
    Restore an identity from a relayed message, in which tuples have become lists.
    """
    return tuple(map(restore_identity, value)) if isinstance(value, list) else value
