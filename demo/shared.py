"""
What several demos share: a Redis, and in it the key of their cookies.
"""

from __future__ import annotations

from cryptography.fernet import Fernet
from redis import Redis
from redis.exceptions import RedisError

from aiohttp_session_ws.redis import RedisSessionWSRegistry

from .app import may_connect, user_of

KEY = "session_ws_demo:key"


class NoRedis(Exception):
    """
    Redis can't be used; says why, without its URL.
    """


def shared_key(url: str) -> bytes:
    """
    Return the key of the cookies, which the first demo has made.

    An application would be given its key by its settings. Here it is one option less.
    """
    try:
        with Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as redis:
            redis.set(KEY, Fernet.generate_key(), nx=True)
            return bytes(redis.get(KEY))
    except (RedisError, OSError) as exc:
        raise NoRedis(f"can't use Redis: {type(exc).__name__}; is it running?") from None


def make_registry(url: str) -> RedisSessionWSRegistry:
    """
    Return a registry that knows the sockets of all demos with this Redis.
    """
    return RedisSessionWSRegistry(
        url, prefix="session_ws_demo", identify=user_of, authorize=may_connect
    )
