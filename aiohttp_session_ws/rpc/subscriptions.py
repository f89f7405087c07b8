"""
Topics: who has subscribed, in the application; and what one session has subscribed to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from ..connections.connection import Connection
from ..registry.registry import SessionWSRegistry
from ..results import Delivery
from . import ground, wamp
from .errors import NO_SUCH_SUBSCRIPTION, RUNTIME_ERROR, UNAVAILABLE, RPCError, SessionGone
from .halves import first_half, run_all, second_half
from .ids import new_id
from .scope import Scope
from .sending import Sender, start
from .session import Session
from .wamp import Codec

__all__ = ["Topics"]

log = logging.getLogger("aiohttp_session_ws")

_HELD: Final = 256  # events that wait for SUBSCRIBED; more are missed
_RETRY: Final = 0.05  # seconds until a full queue is tried again
_OPTION_NOT_ALLOWED: Final = "wamp.error.option_not_allowed"


class Subscription:
    """
    One session's interest in a topic.

    Attributes:
        topic: Its name.
        session: Whose it is.
        codec: How the session is told.
        connection: Where.
        held: What is to be sent once it knows that it has subscribed; then ``None``.
        generator: What is left of the topic's function.
        name: How that is called.
    """

    __slots__ = ("codec", "connection", "generator", "held", "name", "session", "topic")

    def __init__(self, topic: str, session: Session, codec: Codec, connection: Connection) -> None:
        self.topic = topic
        self.session = session
        self.codec = codec
        self.connection = connection
        self.held: list[bytes] | None = []
        self.generator: Any = None
        self.name = ""


class Subscribers:
    """
    Who has subscribed to one topic.
    """

    __slots__ = ("id", "members")

    def __init__(self) -> None:
        self.id = new_id()
        self.members: dict[Codec, dict[Subscription, Connection]] = {}


class Topics:
    """
    The topics of an application that anybody has subscribed to.
    """

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str, Subscribers] = {}

    def add(self, subscription: Subscription) -> int:
        """
        Add a subscription; return the number that all of its topic have.
        """
        subscribers = self._by_name.get(subscription.topic)
        if subscribers is None:
            subscribers = self._by_name[subscription.topic] = Subscribers()
        group = subscribers.members.setdefault(subscription.codec, {})
        group[subscription] = subscription.connection
        return subscribers.id

    def discard(self, subscription: Subscription) -> None:
        """
        Take a subscription out.
        """
        subscribers = self._by_name.get(subscription.topic)
        if subscribers is not None:
            group = subscribers.members.get(subscription.codec, {})
            group.pop(subscription, None)
            if not group:
                subscribers.members.pop(subscription.codec, None)
            if not subscribers.members:
                del self._by_name[subscription.topic]

    def event(
        self, subscription: Subscription, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bytes:
        """
        Return an event for one subscriber.
        """
        number = self._by_name[subscription.topic].id
        return subscription.codec.encode(wamp.event(number, new_id(), args, kwargs))

    async def publish(
        self,
        registry: SessionWSRegistry,
        topic: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        wanted: Callable[[Session], bool] | None,
    ) -> Delivery:
        """
        Push an event to the subscribers of this process, encoded once per dialect.

        Args:
            registry: Whose sockets they have.
            topic: Its name.
            args: What it says.
            kwargs: What it says, by name.
            wanted: Tells which sessions get it; all if ``None``.
        """
        subscribers = self._by_name.get(topic)
        if subscribers is None:
            return Delivery()
        sockets, complete, publication = 0, True, new_id()
        for codec, group in tuple(subscribers.members.items()):
            data = codec.encode(wamp.event(subscribers.id, publication, args, kwargs))
            chosen = [s for s in group if wanted is None or wanted(s.session)]
            ready = [s.connection for s in chosen if s.held is None]
            if len(ready) < len(chosen):
                held, all_held = _hold(chosen, data)
                sockets += held
                complete = complete and all_held
            if ready:
                frame = data if codec.binary else data.decode()
                delivery = ground.push(registry, ready, frame)
                sockets += delivery.sockets
                complete = complete and delivery.complete
        return Delivery(sockets, complete=complete)


def _hold(subscriptions: Sequence[Subscription], data: bytes) -> tuple[int, bool]:
    """
    Keep an event for those who don't know yet that they have subscribed.
    """
    held, complete = 0, True
    for subscription in subscriptions:
        if subscription.held is not None:
            if len(subscription.held) < _HELD:
                subscription.held.append(data)
                held += 1
            else:
                complete = False
    return held, complete


class Subscriptions:
    """
    What one session has subscribed to.

    Requests are done one after another, in a task of their own: a topic may call its client.

    Args:
        topics: Those of the application.
        registry: Whose socket the session has.
        connection: That socket.
        session: Whose they are.
        scope: What may be subscribed to.
        sender: The way out.
        codec: How things are said.
    """

    __slots__ = (
        "_by_id",
        "_codec",
        "_connection",
        "_queue",
        "_registry",
        "_scope",
        "_sender",
        "_session",
        "_task",
        "_topics",
        "requests",
    )

    def __init__(
        self,
        topics: Topics,
        registry: SessionWSRegistry,
        connection: Connection,
        session: Session,
        scope: Scope,
        sender: Sender,
        codec: Codec,
    ) -> None:
        self._topics = topics
        self._registry = registry
        self._connection = connection
        self._session = session
        self._scope = scope
        self._sender = sender
        self._codec = codec
        self._by_id: dict[int, Subscription] = {}
        self._queue: deque[tuple[int, int, Coroutine[Any, Any, bytes | None]]] = deque()
        self._task: asyncio.Task[None] | None = None
        #: The requests that aren't answered yet.
        self.requests: set[int] = set()

    def of(self, topic: str) -> Subscription | None:
        """
        Return the session's subscription to a topic.
        """
        return next((s for s in self._by_id.values() if s.topic == topic), None)

    async def send_event(
        self, topic: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bool:
        """
        Send an event to this session alone; tell whether it has subscribed.
        """
        subscription = self.of(topic)
        if subscription is None:
            return False
        data = self._topics.event(subscription, args, kwargs)
        if subscription.held is not None:
            return bool(_hold([subscription], data)[0])
        await self._sender.send(data)
        return True

    def put(self, kind: int, request: int, work: Coroutine[Any, Any, bytes | None]) -> None:
        """
        Do something when what came before is done, and send what it returns.

        Args:
            kind: Of the request.
            request: Its number.
            work: What to do; what it raises is answered.
        """
        if len(self._queue) > self._scope.limits.waiting:
            work.close()
            self._sender.post(
                self._codec.encode(wamp.error(kind, request, UNAVAILABLE, ("too many at once",)))
            )
            return
        self.requests.add(request)
        self._queue.append((kind, request, work))
        if self._task is None or self._task.done():
            self._task = start(self._work(), "subscriptions")

    def subscribe(self, message: wamp.Subscribe) -> None:
        """
        Let the client have a topic's events, if it may.
        """
        self.put(32, message.request, self._subscribe(message))

    def unsubscribe(self, message: wamp.Unsubscribe) -> None:
        """
        Let it have no more of them.
        """
        self.put(34, message.request, self._unsubscribe(message))

    async def stop(self, deadline: float) -> None:
        """
        End all subscriptions, the last one first.
        """
        for _, _, work in self._queue:
            work.close()
        self._queue.clear()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=ground.timeouts(self._registry).handler_grace)
        ended = list(reversed(self._by_id.values()))
        self._by_id.clear()
        await run_all((lambda one=one: self._end(one) for one in ended), deadline)  # type: ignore[misc]  # bound by default

    async def _work(self) -> None:
        with contextlib.suppress(SessionGone):
            await self._work_off()

    async def _work_off(self) -> None:
        while self._queue:
            kind, request, work = self._queue.popleft()
            try:
                data = await work
            except Exception as exc:  # noqa: BLE001  # it is explained
                data = self._codec.encode(self._explain(kind, request, exc))
            self.requests.discard(request)
            if data is not None:
                await self._sender.send(data)

    def _explain(self, kind: int, request: int, failure: Exception) -> list[Any]:
        if isinstance(failure, RPCError):
            return wamp.error(kind, request, failure.uri, failure.args, failure.kwargs)
        uri = self._scope.uri_of(failure)
        if uri is None:
            uri = RUNTIME_ERROR
            if not (self._session.closed or self._sender.is_closed):
                log.error("a topic failed", exc_info=failure)
        return wamp.error(kind, request, uri)

    async def _subscribe(self, message: wamp.Subscribe) -> bytes | None:
        if message.options.get("match", "exact") != "exact":
            raise RPCError(_OPTION_NOT_ALLOWED, "topics are subscribed to by their exact names")
        topic, parts = self._scope.find_topic(message.topic)
        await self._scope.expect_allowed(self._session, "subscribe", message.topic)
        subscription = self.of(message.topic)
        if subscription is None:
            if len(self._by_id) >= self._scope.limits.subscriptions:
                raise RPCError(UNAVAILABLE, "too many subscriptions")
            values, named = self._scope.inject(topic.signature, self._session, parts)
            subscription = Subscription(
                message.topic, self._session, self._codec, self._connection
            )
            subscription.name = topic.signature.name
            subscription.generator = topic.signature.function(*values, **named)
            number = self._topics.add(subscription)
            self._by_id[number] = subscription
            try:
                await first_half(subscription.name, subscription.generator)
            except BaseException:
                subscription.generator = None
                await self._end(self._by_id.pop(number))
                raise
        else:
            number = self._topics.add(subscription)
        self.requests.discard(message.request)
        await self._sender.send(self._codec.encode(wamp.subscribed(message.request, number)))
        while subscription.held:
            await self._sender.send(subscription.held.pop(0))
        subscription.held = None
        return None

    async def _unsubscribe(self, message: wamp.Unsubscribe) -> bytes | None:
        subscription = self._by_id.pop(message.subscription, None)
        if subscription is None:
            raise RPCError(NO_SUCH_SUBSCRIPTION, "no such subscription")
        await self._end(subscription)
        data = self._codec.encode(wamp.unsubscribed(message.request))
        self.requests.discard(message.request)
        # Behind the events that are in the queue of its connection, which wait for a slow peer.
        frame = data if self._codec.binary else data.decode()
        while not ground.push(self._registry, [self._connection], frame).sockets:
            if self._sender.is_closed:
                break
            await asyncio.sleep(_RETRY)
        return None

    async def _end(self, subscription: Subscription) -> None:
        self._topics.discard(subscription)
        if subscription.generator is not None:
            await second_half(subscription.name, subscription.generator)
