"""
Registry for several processes, which publish orders to each other through Redis.

Needs the extra ``redis``: ``pip install 'aiohttp-session-ws[redis]'``.
"""

try:
    from .health import State
    from .io.connect import MakeClient
    from .registry import RedisSessionWSRegistry, RegistryOptions
except ModuleNotFoundError as exc:
    _missing = (exc.name or "").partition(".")[0]
    if _missing not in ("redis", "hiredis"):
        raise
    raise ModuleNotFoundError(
        f"aiohttp_session_ws.redis needs {_missing}: pip install 'aiohttp-session-ws[redis]'",
        name=_missing,
    ) from exc

__all__ = [
    "MakeClient",
    "RedisSessionWSRegistry",
    "RegistryOptions",
    "State",
]
