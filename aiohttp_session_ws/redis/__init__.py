"""
The registry of many processes, which publish orders to each other through Redis.

Needs the extra ``redis``: ``pip install 'aiohttp-session-ws[redis]'``.
"""

from .health import State
from .io.connect import MakeClient
from .registry import RedisSessionWSRegistry, RegistryOptions

__all__ = [
    "MakeClient",
    "RedisSessionWSRegistry",
    "RegistryOptions",
    "State",
]
