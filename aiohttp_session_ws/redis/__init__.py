"""
The registry of many processes, which tell each other of orders through Redis.

Needs the extra ``redis``: ``pip install 'aiohttp-session-ws[redis]'``.
"""

from .looking import NodeInfo, Nodes
from .registry import RedisSessionWSRegistry, RegistryOptions, State
from .store import MakeClient

__all__ = [
    "MakeClient",
    "NodeInfo",
    "Nodes",
    "RedisSessionWSRegistry",
    "RegistryOptions",
    "State",
]
