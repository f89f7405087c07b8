"""
What one session has subscribed to: SUBSCRIBE and UNSUBSCRIBE, beside what is done in their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from ..registry.registry import SessionWSRegistry
from . import ground, wamp_messages as wamp
from .errors import NO_SUCH_SUBSCRIPTION, UNAVAILABLE, RPCError, SessionGone
from .halves import Step, first_half
from .in_order import InOrder, has_room
from .topics import Subscription, Topics, hold

__all__ = ["Subscriptions"]

_RETRY: Final = 0.05  # seconds until a full queue is tried again
_OPTION_NOT_ALLOWED: Final = "wamp.error.option_not_allowed"


@dataclass(slots=True, eq=False)
class Subscriptions(InOrder):
    """
    The subscriptions of one session, and whatever else its client asks for in order.

    Args:
        topics: Those of the application.
        registry: Whose socket the session has.
    """

    topics: Topics = field(kw_only=True)
    registry: SessionWSRegistry = field(kw_only=True)
    _by_id: dict[int, Subscription] = field(default_factory=dict)
    _ending: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        InOrder.__post_init__(self)
        self.handlers |= {wamp.Subscribe: self._subscribe, wamp.Unsubscribe: self._unsubscribe}

    def of(self, topic: str) -> Subscription | None:
        """
        Return the session's subscription to a topic.
        """
        return next((s for s in self._by_id.values() if s.topic == topic), None)

    async def send_event(self, topic: str, args: Sequence[Any], kwargs: wamp.Named) -> bool:
        """
        Send an event to this session alone; tell whether it has subscribed.
        """
        subscription = self.of(topic)
        if subscription is None:
            return False
        data = self.topics.event(subscription, args, kwargs)
        if subscription.held is not None:
            return hold(subscription.held, data)
        await self.sender.send(data)
        return True

    async def _subscribe(self, message: wamp.Subscribe) -> None:
        if message.options.get("match", "exact") != "exact":
            raise RPCError(_OPTION_NOT_ALLOWED, "topics are subscribed to by their exact names")
        await self.scope.expect_allowed(self.session, "subscribe", message.topic)
        subscription = self.of(message.topic) or await self._begin(message.topic)
        number = self.topics.add(subscription)
        await self.answer(message.request, wamp.subscribed(message.request, number))
        while subscription.held:
            await self.sender.send(subscription.held.pop(0))
        subscription.held = None

    async def _unsubscribe(self, message: wamp.Unsubscribe) -> None:
        subscription = self._by_id.pop(message.subscription, None)
        if subscription is None:
            raise RPCError(NO_SUCH_SUBSCRIPTION, "no such subscription")
        self._ending = asyncio.create_task(self._end(subscription), name="end of a subscription")
        await asyncio.shield(self._ending)
        data = self.codec.encode(wamp.unsubscribed(message.request))
        self.requests.discard(message.request)
        # Behind the events that are in the queue of its connection, which wait for a slow peer.
        frame = data if self.codec.binary else data.decode()
        while not ground.push(self.registry, [self.session.connection], frame).sockets:
            if self.sender.is_closed:
                break
            await asyncio.sleep(_RETRY)

    def endings(self) -> Iterator[Step]:
        """
        Return what ends the work and all subscriptions, the last one first.
        """
        yield self.stop
        ending = self._ending
        if ending is not None and not ending.done():  # by an UNSUBSCRIBE that was cut short
            yield lambda: ending
        ended = list(reversed(self._by_id.values()))
        self._by_id.clear()
        for one in ended:
            yield partial(self._end, one)

    async def _begin(self, name: str) -> Subscription:
        """
        Run the first half of a topic, for one who counts as a subscriber already.
        """
        session, limits = self.session, self.sender.limits
        names = [one.topic for one in self._by_id.values()]
        if not has_room(name, names, limits.subscriptions, limits.message):
            raise RPCError(UNAVAILABLE, "too many subscriptions")
        topic, parts = self.scope.find_topic(name)
        generator = self.scope.call(topic.signature, session, parts)
        subscription = Subscription(name, session, self.registry, self.codec, session.connection)
        number = self.topics.add(subscription)
        self._by_id[number] = subscription
        try:
            subscription.ending = await first_half(topic.signature.name, generator)
            if number not in self._by_id:  # it has outlasted the session, and its cancellation
                raise SessionGone("the session is over")
        except BaseException:
            await self._end(self._by_id.pop(number, subscription))
            raise
        return subscription

    async def _end(self, subscription: Subscription) -> None:
        self.topics.discard(subscription)
        if subscription.ending is not None:
            await subscription.ending()
