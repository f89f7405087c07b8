"""
How orders are recorded: the script that Redis runs.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from redis.asyncio import RedisCluster
from redis.exceptions import NoPermissionError, NoScriptError

from .client import Client, channel_of
from .wire import Order

__all__: list[str] = []

#: The key, without the prefix, of what was recorded within an hour: keys by Redis' time.
RECENT: Final = "recent"

LONGEST: Final = 1e9  # seconds that a record is kept; Redis can't count much further
AT_ONCE: Final = 32  # scripts on a cluster

# One script, so that what is known already decides, whoever comes first: an end beats a
# move, moves add up, the later end of an identity beats the earlier. It returns what was there.
# Orders of the same sort follow one upon the other: what they share is said once, before them.
# Nothing is decoded and encoded again but lists of strings: Lua's numbers have 14 digits.
_WRITE: Final = """
local function kind_of(text)
    return text and string.match(text, '^{"v":1,"do":"([%a ]+)",')
end
local function before(text)
    return tonumber(string.match(text, ',"before":([^,]+),') or '') or 0
end
local function ttl_of(text)
    return math.floor((tonumber(string.match(text, ',"ttl":([%d.]+)}$') or '') or 0) * 1000)
end
local function successors(text)
    local list = string.match(text, ',"to":%[(.-)%],"at":') or ''
    local ok, ids = pcall(cjson.decode, '[' .. list .. ']')
    return ok and ids or {}, list
end
local function with_successors_of(old, text)
    local ids, list = successors(text)
    local known, more = {}, {}
    for _, id in ipairs(ids) do known[id] = true end
    for _, id in ipairs(successors(old)) do
        if not known[id] then table.insert(more, cjson.encode(id)) end
    end
    if #more == 0 then return text end
    local _, last = string.find(text, ',"to":[', 1, true)
    local added = table.concat(more, ',') .. (list == '' and '' or ',')
    return string.sub(text, 1, last) .. added .. string.sub(text, last + 1)
end
local olds = {}
local op, ttl
local at, left = 0, 0
local log, count = nil, #KEYS
if KEYS[count] == ARGV[1] then log, count = KEYS[count], count - 1 end
at = 1
local now = nil
if log then
    local t = redis.call('TIME')
    now = t[1] + t[2] / 1000000
end
for i = 1, count do
    local key = KEYS[i]
    if left == 0 then
        op, ttl, left, at = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), at + 3
    end
    at, left = at + 1, left - 1
    local value = ARGV[at]
    local old
    if op == 'set' or op == 'end' then
        old = redis.pcall('SET', key, value, 'PX', ttl, 'GET')
        if type(old) == 'table' then redis.call('SET', key, value, 'PX', ttl) end
    else
        old = redis.pcall('GET', key)
    end
    if type(old) ~= 'string' then old = false end
    if op == 'end' and old and ttl_of(old) > tonumber(ttl) then
        redis.call('PEXPIRE', key, ttl_of(old))
    elseif op == 'lift' then
        redis.call('DEL', key)
    elseif op == 'move' or op == 'identity' then
        local kind = kind_of(old)
        if op == 'move' and kind == 'end' then
            value = old
        elseif op == 'move' and kind == 'move' then
            value = with_successors_of(old, value)
        elseif op == 'identity' and kind == 'end identity' and before(old) > before(value) then
            value = old
        end
        local rest = old and redis.call('PTTL', key) or 0
        redis.call('SET', key, value, 'PX', math.max(rest, tonumber(ttl)))
    end
    if log then redis.call('ZADD', log, now, key) end
    olds[i] = old
end
if log and count > 0 then
    redis.call('ZREMRANGEBYSCORE', log, '-inf', now - 3600)
    redis.call('ZREMRANGEBYRANK', log, 0, -100001)
    redis.call('EXPIRE', log, 3600)
end
if ARGV[at + 1] then redis.call('PUBLISH', ARGV[at + 1], ARGV[at + 2]) end
return olds
"""


_LOG: Final = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
for i = 1, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 3600)
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -100001)
redis.call('EXPIRE', KEYS[1], 3600)
"""

_DIGESTS: Final = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (_WRITE, _LOG)
}


async def record(
    client: Client,
    prefix: str,
    orders: Sequence[Order],
    texts: Sequence[str],
    channel: str,
    message: str | None,
) -> list[bytes | None]:
    """
    Record *orders*, whose JSON is *texts*, then publish *message*, if there is one.

    Returns:
        For each order what was recorded before.
    """
    channel, log = channel_of(client, prefix, channel), f"{prefix}:{RECENT}"
    # As bytes: redis-py would look at each of them to find out what it is.
    keys = [f"{prefix}:{order.key()}".encode() for order in orders]
    if not isinstance(client, RedisCluster):
        args = _arguments(orders, texts)
        if message is not None:
            args += channel, message
        olds = await _run(client, _WRITE, len(keys) + 1, *keys, log, log, *args)
        return list(olds)
    # The keys of a cluster are in many places.
    olds = []
    for start in range(0, len(orders), AT_ONCE):
        some = range(start, min(start + AT_ONCE, len(orders)))
        scripts = [
            _run(client, _WRITE, 1, keys[n], "", *_arguments([orders[n]], [texts[n]]))
            for n in some
        ]
        olds += [old for (old,) in await asyncio.gather(*scripts)]
    if keys:
        await _run(client, _LOG, 1, log, *keys)
    if message is not None:
        await client.publish(channel, message)
    return olds


async def _run(client: Client, script: str, count: int, *args: str | int | bytes) -> Any:
    """
    Run a script by its digest, or by itself where Redis doesn't know it yet.

    Args:
        client: Who runs it.
        script: The script.
        count: How many of *args* are keys.
        *args: The keys, and the other arguments.
    """
    try:
        return await client.evalsha(_DIGESTS[script], count, *args)
    except (NoScriptError, NoPermissionError):  # some may do the one and not the other
        return await client.eval(script, count, *args)


def _arguments(orders: Sequence[Order], texts: Sequence[str]) -> list[str | int | bytes]:
    """
    Return what the script is told of orders.
    """
    args: list[str | int | bytes] = []
    start = 0
    for (op, ttl), alike in groupby(orders, lambda order: (order.op, order.ttl)):
        count = sum(1 for _ in alike)
        args += op, int(min(ttl, LONGEST) * 1000) + 1, count
        args += [text.encode() for text in texts[start : start + count]]
        start += count
    return args
