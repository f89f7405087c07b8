"""
The Lua scripts for limits over all nodes: a register of the sockets of each subject.

Each socket of a subject has a place in its sorted set: the member ``<instance>#<number>``, scored
by when it was taken. A script that reads the set removes the places of nodes without heartbeats.
"""

from __future__ import annotations

from typing import Final

from .scripts import CLOCK, HEARTBEAT_TTL, Script, make_script

__all__: list[str] = []

KEPT: Final = 600.0  # seconds that the places of a subject are kept after the last report

# KEYS: the prefix of all keys, then the keys of the subjects. ARGV: the node; whether the oldest
# sockets are evicted.
_PLACES: Final = (
    f"local prefix = KEYS[1]\n{CLOCK}"
    + """
local me, evict = ARGV[1], ARGV[2] == '1'
local time, ahead = clock()
local now = time + ahead
local lives = {[me] = true}

local function node_of(place)
    return string.match(place, '^(.*)#%d+$') or ''
end

-- The places of nodes that live, the oldest first.
local function living(key)
    local found = {}
    for _, place in ipairs(redis.call('ZRANGE', key, 0, -1)) do
        local node = node_of(place)
        if lives[node] == nil then
            local beat = redis.call('ZSCORE', prefix .. 'nodes', node)
            lives[node] = beat and tonumber(beat) > now - LIVING or false
        end
        if lives[node] then
            found[#found + 1] = place
        else
            redis.call('ZREM', key, place)
        end
    end
    return found
end

local function add(key, place, since)
    redis.call('ZADD', key, 'NX', since, place)
    redis.call('PEXPIRE', key, KEPT)
end
""".replace("LIVING", f"{HEARTBEAT_TTL:g}").replace("KEPT", f"{KEPT * 1000:.0f}")
)

# Further ARGV: the number of the new socket, and the limit of each subject.
# Returns whether that has its places, then for each subject the places to evict, or if it was
# refused those in the way. An evicted socket keeps its place until its node reports that it is
# gone: the reply may be lost, and then the next run finds it here.
TAKE: Final[Script] = make_script(
    _PLACES,
    """
local place = me .. '#' .. ARGV[3]
local answer, granted = {1}, true
for i = 2, #KEYS do
    local others = {}
    for _, other in ipairs(living(KEYS[i])) do
        if other ~= place then others[#others + 1] = other end
    end
    local over = #others + 1 - tonumber(ARGV[i + 2])
    if over <= 0 then
        others = {}
    elseif evict then
        for j = over + 1, #others do others[j] = nil end
    else
        granted = false
    end
    answer[i] = others
end
for i = 2, #KEYS do
    if granted then
        add(KEYS[i], place, string.format('%.6f', now))
    else
        redis.call('ZREM', KEYS[i], place)
    end
end
answer[1] = granted and 1 or 0
return answer
""",
)

# Further ARGV: for each subject its limit, how many places the node has, and of each the number
# and since when it exists.
# Returns for each subject the places, of any node, that exceed the limit.
REPORT: Final[Script] = make_script(
    _PLACES,
    """
local at = 2
local function take() at = at + 1 return ARGV[at] end
local answer = {}
for i = 2, #KEYS do
    local key, limit, count, mine = KEYS[i], tonumber(take()), tonumber(take()), {}
    for _ = 1, count do
        local place = me .. '#' .. take()
        mine[place] = true
        add(key, place, take())
    end
    local kept = {}
    for _, place in ipairs(living(key)) do
        if node_of(place) == me and not mine[place] then
            redis.call('ZREM', key, place)
        else
            kept[#kept + 1] = place
        end
    end
    local over = {}
    for j = 1, #kept - limit do
        over[j] = evict and kept[j] or kept[#kept + 1 - j]
    end
    answer[#answer + 1] = over
end
return answer
""",
)
