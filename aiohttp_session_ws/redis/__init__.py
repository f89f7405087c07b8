"""
The registry of many processes, which publish orders to each other through Redis.

Needs the extra ``redis``: ``pip install 'aiohttp-session-ws[redis]'``.
"""

try:
    from .health import State
    from .io.connect import MakeClient
    from .registry import RedisSessionWSRegistry, RegistryOptions
except ModuleNotFoundError as exc:
    missing = (exc.name or "").partition(".")[0]
    if missing not in ("redis", "hiredis"):
        raise
    raise ModuleNotFoundError(
        f"aiohttp_session_ws.redis needs {missing}: pip install 'aiohttp-session-ws[redis]'",
        name=missing,
    ) from exc

__all__ = [
    "MakeClient",
    "RedisSessionWSRegistry",
    "RegistryOptions",
    "State",
]
