"""
Everything that calls need of a registry beyond its public methods.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from ..connections.connection import Connection, TrackedConnection
from ..connections.metered import MeteredWebSocket
from ..options import Timeouts
from ..registry.registry import SessionWSRegistry, core_of
from ..registry.relay import RelayHandler
from ..results import Delivery

__all__ = ["count_message", "is_running", "on_relay", "push", "timeouts"]


class _Receivers(list[RelayHandler]):
    """
    A relay handler that passes each message to several receivers.
    """

    async def __call__(self, data: bytes) -> None:
        for receiver in tuple(self):
            await receiver(data)


def push(
    registry: SessionWSRegistry, connections: Iterable[Connection], data: str | bytes
) -> Delivery:
    """
    Push to connections of this process, through their queues.
    """
    tracked = cast("Iterable[TrackedConnection]", connections)  # there are no others
    sockets, missed = core_of(registry).connections.push(tracked, data, by_endpoint=True)
    return Delivery(sockets, complete=not missed)


def count_message(connection: Connection) -> bool:
    """
    Count a further message of a frame, like the frame itself; return whether it may be processed.
    """
    ws = connection.ws
    return not isinstance(ws, MeteredWebSocket) or ws.on_message()


def is_running(registry: SessionWSRegistry) -> bool:
    """
    Return whether a web application is running with a registry.
    """
    return core_of(registry).loop is not None


def timeouts(registry: SessionWSRegistry) -> Timeouts:
    """
    Return the timeouts of a registry, for peers and handlers.
    """
    return core_of(registry).timeouts


def on_relay(registry: SessionWSRegistry, name: str, receiver: RelayHandler) -> None:
    """
    Pass what other processes relay by *name* to *receiver*; a name may have several receivers.
    """
    receivers = core_of(registry).relays.handler(name)
    if isinstance(receivers, _Receivers):
        receivers.append(receiver)
    else:
        registry.on_relay(name)(_Receivers([receiver]))
