"""
Sequential processing of a session's REGISTER, UNREGISTER, SUBSCRIBE and UNSUBSCRIBE requests, in
a task of their own, and the registrations and subscriptions that result.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from .._tasks import is_cancelled
from ..registry.registry import SessionWSRegistry
from . import errors, registry_access, wamp_messages as wamp
from .errors import NotRegistered, RPCError, SessionGone
from .host import Scope, encode_error
from .lifecycle import Step, enter_generator
from .sending import Sender
from .session import Session, new_id
from .topics import Subscription, Topics, buffer_event
from .wamp import Codec

__all__ = ["SequentialRequests"]

_RETRY_INTERVAL: Final = 0.05  # seconds until a push to a full queue is retried


@dataclass(slots=True, eq=False)
class SequentialRequests:
    """
    The procedures that one session's client has registered, and its subscriptions.

    Requests have a task of their own because a topic may call its client: while it waits for the
    answer, the reader has to continue.

    Args:
        session: The session of the client.
        scope: The scope of its realm.
        sender: Sends the answers.
        codec: Encodes the answers.
        topics: The topics of the application.
        registry: The registry of the session's socket.

    Attributes:
        requests: The numbers of the requests that aren't answered yet.
    """

    session: Session
    scope: Scope
    sender: Sender
    codec: Codec
    topics: Topics
    registry: SessionWSRegistry
    requests: set[int] = field(default_factory=set)
    _registrations: dict[str, int] = field(default_factory=dict)
    _subscriptions: dict[int, Subscription] = field(default_factory=dict)
    _queue: deque[tuple[Any, int]] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None
    _unsubscribing: asyncio.Task[None] | None = None  # ends a subscription

    def submit(self, message: Any, size: int) -> None:
        """
        Queue a request, or refuse it if too many wait.

        Args:
            message: The request.
            size: How many bytes its frame had.
        """
        if self._queue and not self._fits_queue(size):
            error = RPCError(errors.UNAVAILABLE, "too many at once")
            self.sender.post(self._refusal(message, error))
            return
        self.requests.add(message.request)
        self._queue.append((message, size))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="sequential requests")

    def registration(self, name: str) -> int:
        """
        Return the id under which the client has registered a procedure.

        Raises:
            NotRegistered: If it has not registered it.
        """
        if name not in self._registrations:
            raise NotRegistered(
                f"the client has not registered {name!r}: it must REGISTER it before a call"
            )
        return self._registrations[name]

    async def send_event(self, topic: str, args: Sequence[Any], kwargs: wamp.Named) -> bool:
        """
        Send an event to this session alone; return whether it has subscribed and had room.
        """
        subscription = self._subscription(topic)
        if subscription is None:
            return False
        data = self.codec.encode(wamp.event(subscription.id, new_id(), args, kwargs))
        if subscription.buffered is not None:
            return buffer_event(subscription.buffered, data)
        await self.sender.send(data)
        return True

    def end_steps(self) -> Iterator[Step]:
        """
        Return the steps that stop processing and end all subscriptions, the newest first.
        """
        yield self._stop
        ending = self._unsubscribing
        if ending is not None and not ending.done():  # begun by an UNSUBSCRIBE that was cancelled
            yield lambda: ending
        ended = list(reversed(self._subscriptions.values()))
        self._subscriptions.clear()
        for one in ended:
            yield partial(self._end_subscription, one)

    async def _stop(self) -> None:
        """
        Cancel the queued requests and the running one, and discard all registrations.
        """
        self._queue.clear()
        self._registrations.clear()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    def _fits_queue(self, size: int) -> bool:
        limits = self.sender.limits
        fits = sum(one for _, one in self._queue) + size <= limits.waiting_bytes
        return fits and len(self._queue) <= limits.waiting

    async def _run(self) -> None:
        with contextlib.suppress(SessionGone):
            while self._queue:
                message, _ = self._queue.popleft()
                try:
                    await _HANDLERS[type(message)](self, message)
                except SessionGone:
                    raise
                except (Exception, asyncio.CancelledError) as exc:  # it is sent as an ERROR
                    if is_cancelled():
                        raise
                    gone = self.session.closed or self.sender.is_closed
                    error = self.scope.error_for(exc, type(message).__name__.upper(), gone=gone)
                    self.requests.discard(message.request)
                    await self.sender.send(encode_error(partial(self._refusal, message), error))

    async def _answer(self, request: int, frame: wamp.Frame) -> None:
        self.requests.discard(request)
        await self.sender.send(self.codec.encode(frame))

    def _refusal(self, message: Any, error: RPCError) -> bytes:
        return self.codec.encode(wamp.refused(message, error))

    async def _register(self, message: wamp.Register) -> None:
        name = message.procedure
        await self.scope.expect_allowed(self.session, "register", name)
        if name in self._registrations:
            raise RPCError(errors.PROCEDURE_ALREADY_EXISTS, "registered already")
        limits = self.sender.limits
        if not _has_room(name, self._registrations, limits.registrations, limits.message):
            raise RPCError(errors.UNAVAILABLE, "too many registrations")
        self._registrations[name] = number = new_id()
        await self._answer(message.request, wamp.registered(message.request, number))

    async def _unregister(self, message: wamp.Unregister) -> None:
        for name, number in self._registrations.items():
            if number == message.registration:
                del self._registrations[name]
                await self._answer(message.request, wamp.unregistered(message.request))
                return
        raise RPCError(errors.NO_SUCH_REGISTRATION, "no such registration")

    async def _subscribe(self, message: wamp.Subscribe) -> None:
        name = message.topic
        if message.options.get("match", "exact") != "exact":
            why = "topics are subscribed to by their exact names"
            raise RPCError(errors.OPTION_NOT_ALLOWED, why)
        await self.scope.expect_allowed(self.session, "subscribe", name)
        subscription = self._subscription(name) or await self._begin_subscription(name)
        await self._answer(message.request, wamp.subscribed(message.request, subscription.id))
        while subscription.buffered:
            await self.sender.send(subscription.buffered.pop(0))
        subscription.buffered = None

    async def _unsubscribe(self, message: wamp.Unsubscribe) -> None:
        subscription = self._subscriptions.pop(message.subscription, None)
        if subscription is None:
            raise RPCError(errors.NO_SUCH_SUBSCRIPTION, "no such subscription")
        self._unsubscribing = asyncio.create_task(
            self._end_subscription(subscription), name="end of a subscription"
        )
        await asyncio.shield(self._unsubscribing)
        data = self.codec.encode(wamp.unsubscribed(message.request))
        self.requests.discard(message.request)
        # Sent through the connection's push queue, so that it follows the events waiting there.
        frame = data if self.codec.binary else data.decode()
        while not registry_access.push(self.registry, [self.session.connection], frame).sockets:
            if self.sender.is_closed:
                break
            await asyncio.sleep(_RETRY_INTERVAL)

    def _subscription(self, topic: str) -> Subscription | None:
        return next((s for s in self._subscriptions.values() if s.topic == topic), None)

    async def _begin_subscription(self, name: str) -> Subscription:
        """
        Add a subscription, whose events are buffered for now, and run the first half of its topic.
        """
        session, limits = self.session, self.sender.limits
        names = [one.topic for one in self._subscriptions.values()]
        if not _has_room(name, names, limits.subscriptions, limits.message):
            raise RPCError(errors.UNAVAILABLE, "too many subscriptions")
        topic, parts = self.scope.find_topic(name)
        generator = self.scope.call(topic.signature, session, parts)
        subscription = Subscription(name, session, self.registry, self.codec)
        self.topics.add(subscription)
        self._subscriptions[subscription.id] = subscription
        try:
            subscription.exit_step = await enter_generator(topic.signature.name, generator)
            if subscription.id not in self._subscriptions:
                raise SessionGone("the session is over")  # the topic swallowed its cancellation
        except BaseException:
            await self._end_subscription(self._subscriptions.pop(subscription.id, subscription))
            raise
        return subscription

    async def _end_subscription(self, subscription: Subscription) -> None:
        self.topics.discard(subscription)
        if subscription.exit_step is not None:
            await subscription.exit_step()


def _has_room(name: str, names: Collection[str], most: int, size: int) -> bool:
    """
    Return whether one more name fits: at most *most* names, of *size* characters together.
    """
    return len(names) < most and len(name) + sum(map(len, names)) <= size


_Handler = Callable[[SequentialRequests, Any], Coroutine[Any, Any, None]]
_HANDLERS: Final[Mapping[type, _Handler]] = {
    wamp.Register: SequentialRequests._register,
    wamp.Unregister: SequentialRequests._unregister,
    wamp.Subscribe: SequentialRequests._subscribe,
    wamp.Unsubscribe: SequentialRequests._unsubscribe,
}
