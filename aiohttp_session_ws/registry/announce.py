"""
Announcement of orders to operators: they are counted, logged, and sent as ``on_order``.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Final, NamedTuple

from .._expiring import ExpiringDict
from .._logging import log
from .._tasks import BackgroundTasks
from ..sessions.records import Change, LineageEnded, LineageRenewed, SubjectEnded
from ..signals import OrderDetails, OrderKind, Signal, SubjectKind
from .judging import NO_EFFECT, Effect
from .order import Order

__all__: list[str] = []

REPEAT_WINDOW: Final = 60.0  # seconds in which an order may be published again, but not announced
MAX_REMEMBERED: Final = 10_000  # orders remembered for that

_DONE: Final[dict[OrderKind, str]] = {
    "end": "was ended",
    "close": "is to reconnect",
    "renew": "was renewed",
    "refresh": "was renewed in place",
}


class About(NamedTuple):
    """
    What an order is about.

    Attributes:
        kind: What was ordered.
        subject_kind: What kind of subject it is.
        subject: The subject.
        change: The subject or lineage that has ended or was renewed, and when; ``None`` if the
            order only closes.
    """

    kind: OrderKind
    subject_kind: SubjectKind
    subject: Hashable
    change: tuple[Hashable, float] | None = None


class Announcer:
    """
    Counts, logs and signals each order, once on every node.

    Args:
        tasks: Where receivers run.
        signal: The signal.
        node: The name of this node.

    Attributes:
        orders_given: How many orders this node has given.
        orders_heard: How many orders of other nodes it has carried out.
    """

    def __init__(self, tasks: BackgroundTasks, signal: Signal[OrderDetails], node: str) -> None:
        self.orders_given = self.orders_heard = 0
        self._tasks = tasks
        self._signal = signal
        self._node = node
        self._known: ExpiringDict[Hashable, bool] = ExpiringDict(MAX_REMEMBERED, REPEAT_WINDOW)

    @property
    def announces(self) -> bool:
        """
        Whether orders are logged or the signal has receivers.
        """
        return bool(self._signal) or log.isEnabledFor(logging.INFO)

    def given(self, order: Order, effect: Effect) -> None:
        """
        Announce an order of this node.
        """
        if not _is_mark(order):
            self.orders_given += 1
            if self.announces:
                self._announce(order, effect, self._node)

    def received(self, order: Order, effect: Effect, node: str) -> None:
        """
        Announce an order of another node; *node* is empty if its name is no longer known.
        """
        if not _is_mark(order):
            self.orders_heard += 1
            if self.announces:
                self._announce(order, effect, node)

    def recovered(self, change: Change) -> None:
        """
        Announce a record that this node missed when it was published.
        """
        order = Order((change,))
        if self.announces and not _is_mark(order):
            self._announce(order, NO_EFFECT, "")

    def _announce(self, order: Order, effect: Effect, node: str) -> None:
        about = _about(order)
        if about is None or about.change in self._known:
            return
        if about.change is not None:
            self._known.put(about.change, True)
        if effect.unjudged is not None:
            effect.unjudged.when_judged(lambda: self._send(about, order, effect, node))
        else:
            self._send(about, order, effect, node)

    def _send(self, about: About, order: Order, effect: Effect, node: str) -> None:
        sockets = sum(len(found) for _, found in effect.closing)
        if effect.unjudged is not None:
            sockets += effect.unjudged.sockets
        details = OrderDetails(
            kind=about.kind,
            subject_kind=about.subject_kind,
            subject=about.subject,
            by=order.by,
            sockets=sockets,
            handshakes=effect.handshakes,
            node=node,
        )
        _log(details)
        if self._signal:
            _ = self._tasks.spawn(self._signal.send(details), "send on_order")


def _log(details: OrderDetails) -> None:
    by = f" by {details.by}" if details.by is not None else ""
    node = f" on {details.node}" if details.node else ""
    log.info(
        "%s %s %s%s%s: %d sockets and %d handshakes here",
        details.subject_kind,
        details.fingerprint,
        _DONE[details.kind],
        by,
        node,
        details.sockets,
        details.handshakes,
    )


def _is_mark(order: Order) -> bool:
    """
    Return whether an order only marks the newest generation of a session as seen.
    """
    changes = order.changes
    if len(changes) != 1 or type(changes[0]) is not LineageRenewed:
        return False
    return changes[0].seen and not order.closes


def _about(order: Order) -> About | None:
    """
    Return what an order is about: of several subjects, the one with the widest effect.
    """
    for change in order.changes:
        if isinstance(change, SubjectEnded):
            kind, value = change.subject
            return About("end", kind, value, (change.subject, change.at))
    for change in order.changes:
        match change:
            case LineageEnded(token=token, at=at):
                what: OrderKind = "end"
            case LineageRenewed(token=token, at=at):
                what = "renew" if order.refresh is None else "refresh"
            case _:
                continue
        for kind, value in order.closes:
            return About(what, kind, value, (token, at))
        return About(what, "lineage", token, (token, at))
    for subject in order.closes:
        return About("close", subject.kind, subject.value)
    return None
