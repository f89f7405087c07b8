"""
The registry of many processes, which tell each other of orders through Redis.

Needs the extra ``redis``: ``pip install 'aiohttp-session-ws[redis]'``.
"""

from .client import MakeClient
from .looking import NodeInfo, Nodes
from .registry import RedisSessionWSRegistry, RegistryOptions, State

__all__ = [
    "MakeClient",
    "NodeInfo",
    "Nodes",
    "RedisSessionWSRegistry",
    "RegistryOptions",
    "State",
]
