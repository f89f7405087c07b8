"""
The Lua scripts for records and heartbeats; records merge as in :mod:`...sessions.records`.

All keys of a registry share a hash tag, and so a slot of a Redis Cluster: a script may use keys
that it determines itself.

More than 300 lines, most of them Lua that is sent to Redis in one piece.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from ..messages import MAX_TTL

__all__: list[str] = []

HEARTBEAT_TTL: Final = 15.0  # seconds after its last heartbeat that a node counts as alive
MAX_CLOCK_ADVANCE: Final = 4.0  # seconds that may have passed since the last recorded heartbeat
KEPT: Final = 600.0  # seconds that a record can be found by its number
MOST: Final = 1_000_000  # records that can be found by their number


class Script(NamedTuple):
    """
    A Lua script.

    Attributes:
        text: The script.
        digest: Its SHA-1, by which Redis knows it.
    """

    text: str
    digest: str


def make_script(*parts: str) -> Script:
    text = "".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# The clock of all nodes: Redis' own plus the seconds by which that was set back, so that it never
# runs backwards. Nodes detect by how much and report it (HEARTBEAT). The key holds these seconds,
# and the last time that was returned to a heartbeat. Prepend a line that sets "prefix".
CLOCK: Final = """
local function clock()
    local t = redis.call('TIME')
    local text = redis.pcall('GET', prefix .. 'clock')
    local ahead, last = string.match(type(text) == 'string' and text or '', '^(%S+) (%S+)$')
    return t[1] + t[2] / 1000000, tonumber(ahead) or 0, tonumber(last) or 0
end
"""

# KEYS: the prefix of all keys, the hash tag in braces; then the keys of the records.
# ARGV: the channel; the message; "1" if it is published though writes are refused; the prefix of
# the numbers of close orders; how many rows of orders the message has; the positions of the first
# and the last byte of each row; then the TTL and the text of each record. The records of a row are
# made from the message itself. If that is a single order, there follow for _ONE its key without
# the tag, its text, its TTL, and for an end the key of the note an id of this name would have.
#
# A refused write raises nothing: its error is returned, and the message published without numbers.
# Records that were written before it stay, and are written again with the rest.
_WRITE: Final = (
    """
local prefix = KEYS[1]
local refused
local derived, known, dirty = {}, {}, {}

local function call(...)
    local answer = redis.pcall(...)
    if type(answer) == 'table' and answer.err then
        if string.find(answer.err, 'WRONGTYPE', 1, true) then return nil, true end
        refused = refused or answer.err
        return nil
    end
    return answer
end

local function put(key, text, ttl)
    call('SET', key, text, 'PX', ttl)
end

-- The old value, which is replaced at once: most are the first of their key.
local function swap(key, text, ttl)
    local old, foreign = call('SET', key, text, 'PX', ttl, 'GET')
    if foreign then put(key, text, ttl) end
    return old or nil
end

local ENDED = '^%[1,"ended",([^,]*),([^,]*),([^,]*),([^,]*),(.*)$'
local RENEWED = '^%[1,"renewed",([^,]*),([^,]*),([^,]*),([^,]*),([^,]*),([^,]*),(.*)$'
local BEFORE = '^%[1,"before",([^,]*),([^,]*),(.*)$'
local NOTE = '^%[1,"note",([^,]*),([^,]*),([^,]*),(.*)$'
local CLOSE = '^%[1,"close",([^,]*),'

-- Of two numbers the greater, as it was written.
local function max(a, b)
    return tonumber(b) > tonumber(a) and b or a
end

local function min(a, b)
    return tonumber(b) < tonumber(a) and b or a
end

local function milliseconds(seconds)
    return math.floor(math.min(tonumber(seconds), LONGEST) * 1000) + 1
end

local function ended(key, ttl, text)
    local old = swap(key, text, ttl)
    if not old or old == text then return text end
    local at2, carries2, seconds2, minor2 = string.match(old, ENDED)
    if not at2 then return text end
    local at, carries, seconds, minor, rest = string.match(text, ENDED)
    seconds = max(seconds, seconds2)
    local merged = '[1,"ended",' .. max(at, at2) .. ',' .. max(carries, carries2) .. ','
        .. seconds .. ',' .. min(minor, minor2) .. ',' .. rest
    if merged ~= text then put(key, merged, milliseconds(seconds)) end
    return merged
end

local function renewed(key, ttl, text)
    local old, foreign = call('GET', key)
    if not old and not foreign then
        put(key, text, ttl)
        return text
    end
    local gen2, after2, at2, by2, seen2, seconds2 = string.match(old or '', RENEWED)
    if not gen2 then return old end -- it has ended, or is of another version
    local gen, after, at, by, seen, seconds, rest = string.match(text, RENEWED)
    if tonumber(gen2) > tonumber(gen) then return old end
    local merged = text
    if tonumber(gen2) == tonumber(gen) then
        merged = '[1,"renewed",' .. gen .. ',' .. max(after, after2) .. ',' .. max(at, at2) .. ','
            .. bit.bor(tonumber(by), tonumber(by2)) .. ',' .. max(seen, seen2) .. ','
            .. max(seconds, seconds2) .. ',' .. rest
    end
    put(key, merged, ttl)
    return merged
end

-- Whichever comes second, an end of an id or the note of its lineage, ends the lineage.
local function end_noted(note, before, seconds)
    local began, _, length, rest = string.match(note or '', NOTE)
    if not began or tonumber(began) > tonumber(before) then return end
    local token = string.sub(rest, 1, tonumber(length))
    local text = string.format('[1,"ended",%s,0,%s,0,%s]', before, seconds, token)
    local key = prefix .. 'lineage:' .. token
    local merged = ended(key, milliseconds(seconds), text)
    derived[#derived + 1] = merged
    dirty[#dirty + 1] = key
end

local function before(key, ttl, text)
    local old = swap(key, text, ttl)
    local time, seconds, rest = string.match(text, BEFORE)
    local time2, seconds2 = string.match(old or '', BEFORE)
    if time2 then
        time, seconds = max(time, time2), max(seconds, seconds2)
        local merged = '[1,"before",' .. time .. ',' .. seconds .. ',' .. rest
        if merged ~= text then put(key, merged, milliseconds(seconds)) end
        text = merged
    end
    local id = string.match(key, '^.-}:end:id:(.*)$')
    if id then end_noted(call('GET', prefix .. 'of:' .. id), time, seconds) end
    return text
end

local function note(key, ttl, text)
    local old = call('GET', key)
    local began, _, length, rest = string.match(text, NOTE)
    local began2, _, length2, rest2 = string.match(old or '', NOTE)
    if began2 then
        local a, b = tonumber(began), tonumber(began2)
        local token, token2 = string.sub(rest, 1, length), string.sub(rest2, 1, length2)
        if b < a or b == a and token2 <= token then text = old end
    end
    if text ~= old then put(key, text, ttl) else call('PEXPIRE', key, ttl) end
    local id = string.match(key, '^.-}:of:(.*)$')
    local time, seconds = string.match(call('GET', prefix .. 'end:id:' .. id) or '', BEFORE)
    if time then end_noted(text, time, seconds) end
    return text
end

-- Of two close orders the later one stays, whichever was recorded first: it closes what the
-- earlier one would have, and more.
local function close(key, ttl, text)
    local old = swap(key, text, ttl)
    local time, time2 = string.match(text, CLOSE), string.match(old or '', CLOSE)
    if time2 and tonumber(time2) > tonumber(time) then
        put(key, old, ttl)
        return old
    end
    return text
end

local kinds = {ended = ended, renewed = renewed, before = before, note = note, close = close}

local function read(names)
    local found = {}
    for from = 1, #names, 1000 do
        local texts = call('MGET', unpack(names, from, math.min(#names, from + 999)))
        for _, text in ipairs(texts or {}) do
            found[#found + 1] = text
        end
    end
    return found
end

local keys = {} -- what gets a number

local function closes(line, kind, code, reason, ttl, number)
    local head = prefix .. 'close:' .. kind .. ':'
    local how = ',' .. code .. ',' .. ARGV[4] .. '/'
    local tail = '",' .. reason .. ',["' .. kind .. '",'
    for at, value in string.gmatch(line, '\\t([^\\t]*)\\t([^\\t]*)') do
        local key = head .. value
        local text = '[1,"close",' .. at .. how .. number .. tail .. value .. ']]'
        local merged = close(key, ttl, text)
        if refused then return end
        if merged ~= text then known[#known + 1] = merged end
        keys[#keys + 1] = key
        number = number + 1
    end
end

local function ends(line, kind, ttl, seconds)
    local head, of = prefix .. 'end:' .. kind .. ':', prefix .. 'of:'
    local tail = ',["' .. kind .. '",'
    local times, values, names, notes = {}, {}, {}, {}
    for at, value in string.gmatch(line, '\\t([^\\t]*)\\t([^\\t]*)') do
        local i = #times + 1
        times[i], values[i], names[i], notes[i] = at, value, head .. value, of .. value
    end
    local old, written = read(names), {}
    local noted = kind == 'id' and read(notes)
    for i, key in ipairs(names) do
        local time, lasts, known_text = times[i], seconds, written[key] or old[i]
        if known_text then
            local time2, lasts2 = string.match(known_text, BEFORE)
            if time2 then time, lasts = max(time, time2), max(lasts, lasts2) end
        end
        local text = '[1,"before",' .. time .. ',' .. lasts .. tail .. values[i] .. ']]'
        local life = lasts == seconds and ttl or milliseconds(lasts)
        local answer = redis.pcall('SET', key, text, 'PX', life)
        if answer.err then
            refused = answer.err
            return
        end
        written[key] = text
        keys[#keys + 1] = key
        if time ~= times[i] or lasts ~= seconds then known[#known + 1] = text end
        if noted and noted[i] then end_noted(noted[i], time, lasts) end
    end
end

local ROW = '^(%a+)\\t(%a+)\\t(%d+)\\t([^\\t]*)\\t(%d+)\\t([^\\t]*)()'

local function write_row(first, last)
    local line = string.sub(ARGV[2], first, last)
    local what, kind, code, reason, ttl, rest, cells = string.match(line, ROW)
    line = string.sub(line, cells)
    if what == 'ends' then
        ends(line, kind, ttl, rest)
    else
        closes(line, kind, code, reason, ttl, tonumber(rest))
    end
end

local function number_text(number)
    return string.format('%.0f', number)
end

-- Give numbers to the records of some keys, and publish them under these. Some hundred can be
-- found together, by the last number of them.
local function publish(names, body)
    local count = #names
    local number = count > 0 and (taken or call('INCRBY', prefix .. 'seq', count)) or 0
    taken = nil
    if refused then return end
    if count > 0 then
        local recent, before = prefix .. 'recent', number - count
        -- What had these numbers before they were lost would be found in their place.
        if before == 0 then call('DEL', recent, prefix .. 'marks', prefix .. 'floor') end
        for from = 1, count, 500 do
            local last = math.min(count, from + 499)
            local text = table.concat(names, '\\n', from, last)
            local _, foreign = call('ZADD', recent, number_text(before + last), text)
            if foreign then
                call('DEL', recent)
                call('SET', prefix .. 'floor', number_text(before))
                call('ZADD', recent, number_text(before + last), text)
            end
        end
        -- Now and then, for it costs as much as a record.
        if number % MOST_CHECKED < count and number > MOST then
            local oldest = number_text(number - MOST)
            if (call('ZREMRANGEBYSCORE', recent, '-inf', oldest) or 0) > 0 then
                call('SET', prefix .. 'floor', oldest)
            end
        end
    end
    if body ~= '' and not refused then
        redis.call('PUBLISH', ARGV[1], string.format('%.0f:%d\\n', number, count) .. body)
    end
end

local function write()
    local rows, count = tonumber(ARGV[5]), #KEYS - 1
    local at = 4 + 2 * rows
    for i = 1, count do
        local key, ttl, text = KEYS[i + 1], ARGV[at + 2 * i], ARGV[at + 2 * i + 1]
        local merged = kinds[string.match(text, '^%[1,"(%a+)"')](key, ttl, text)
        if refused then break end
        if merged ~= text then known[#known + 1] = merged end
        keys[#keys + 1] = key
    end
    for i = 1, rows do
        if refused then break end
        write_row(ARGV[4 + 2 * i], ARGV[5 + 2 * i])
    end
    if not refused then publish(keys, ARGV[2]) end
    if refused then
        if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[1], '0:0\\n' .. ARGV[2]) end
        return {err = refused}
    end
    if #derived > 0 then
        publish(dirty, '{"v":1,"from":""}\\n[[' .. table.concat(derived, ',') .. '],[]]')
    end
    return known
end
""".replace("MOST_CHECKED", "1000")
    .replace("MOST", str(MOST))
    .replace("LONGEST", str(MAX_TTL))
)

# A short cut for messages with one order, as most are, without the functions above: each run of
# the script would create them anew. If there is something to merge with, or anything is unusual,
# they do it all: writing twice is harmless, and a number that was taken is used.
_ONE: Final = """
local taken -- a number that belongs to the only record
if ARGV[8] and ARGV[5] == '1' and not KEYS[2] then
    local tag, note = KEYS[1], ARGV[11]
    local name, free = tag .. ARGV[8], true
    if note then
        local found = redis.pcall('MGET', name, tag .. note)
        free = not (found.err or found[1] or found[2])
        free = free and not redis.pcall('SET', name, ARGV[9], 'PX', ARGV[10]).err
    else
        local old = redis.pcall('SET', name, ARGV[9], 'PX', ARGV[10], 'GET')
        if type(old) == 'string' then
            local order = '^%[1,"close",([^,]*),'
            local time = tonumber(string.match(old, order) or '')
            if time and time > tonumber(string.match(ARGV[9], order)) then
                redis.pcall('SET', name, old, 'PX', ARGV[10])
                free = false
            end
        elseif old then
            free = false
        end
    end
    if free then
        taken = redis.pcall('INCR', tag .. 'seq')
        if type(taken) ~= 'number' then
            taken = nil
        elseif taken > 1 and taken % MOST_CHECKED > 0 then
            local text = string.format('%.0f', taken)
            if type(redis.pcall('ZADD', tag .. 'recent', text, name)) == 'number' then
                redis.call('PUBLISH', ARGV[1], text .. ':1\\n' .. ARGV[2])
                return {}
            end
        end
    end
end
""".replace("MOST_CHECKED", "1000")

WRITE: Final = make_script(_ONE, _WRITE, "return write()\n")

# ARGV from the back: how many keys, the last of KEYS, hold the lineage of the session that
# continues and its ends; from when on an end of its identity concerns it; the grace in seconds;
# its beginning; its generation; the deadline. The rest are the arguments of WRITE.
#
# The session must be alive by the records in Redis, since those of this node may be incomplete.
# After the deadline nothing is done: the caller has given up.
END_OTHERS: Final = make_script(
    "local taken\n",
    _WRITE,
    CLOCK,
    """
local function take() return tonumber(table.remove(ARGV)) end
local count = take()
local since, grace, began, generation, deadline = take(), take(), take(), take(), take()
local keys = {}
for i = count, 1, -1 do keys[i] = table.remove(KEYS) end
local time, ahead = clock()
local now = time + ahead
if now > deadline then return 0 end
if began > now + 5 then began = 0 end
for i, key in ipairs(keys) do
    local text = redis.pcall('GET', key)
    if type(text) == 'table' then return 0 end
    if text and i == 1 then
        local gen, after, at, _, seen = string.match(text, RENEWED)
        if not gen then return 0 end
        gen, after, at = tonumber(gen), tonumber(after), tonumber(at)
        if generation < gen then
            if generation < after or seen == '1' or now - at < grace then return 0 end
        end
    elseif text then
        local time = string.match(text, BEFORE)
        local from = string.find(key, '}:end:identity:', 1, true) and since or began
        if not time or tonumber(time) >= from then return 0 end
    end
end
local answer = write()
if answer.err then return answer end
return 1
""",
)

# KEYS: the prefix. ARGV: the node; whether it holds sockets; an epoch for a Redis without one; the
# seconds by which the clock of all nodes is at least ahead of Redis' own, "" if the node doesn't
# know the time yet; for how many seconds it needs the ends of sessions, 0 if unknown.
# Returns the time; the last number; the epoch; the identity of the server; the version of the list
# of members; why writes are refused; by how much the time is ahead of Redis' own; for how many
# seconds ends are needed (the longest time that a node has reported, remembered for as long); how
# many keys the server has evicted; whether the node was missing from the list.
HEARTBEAT: Final = make_script(
    "local prefix = KEYS[1]\n",
    CLOCK,
    """
local nodes, marks = prefix .. 'nodes', prefix .. 'marks'
local refused

local function call(...)
    local answer = redis.pcall(...)
    if type(answer) == 'table' and answer.err then
        if string.find(answer.err, 'WRONGTYPE', 1, true) then
            redis.pcall('DEL', ({...})[2])
        else
            refused = answer.err
        end
        return false
    end
    return answer
end

-- A number that is kept there; what isn't one isn't ours.
local function number(name)
    local text = call('GET', prefix .. name)
    local found = string.match(text or '', '^%d+$')
    if text and not found then call('DEL', prefix .. name) end
    return found or '0'
end

local time, ahead, latest = clock()
local wanted = tonumber(ARGV[4])
if wanted and wanted > ahead then ahead = wanted end
local behind = latest - time - ahead
if behind > 0.001 then
    -- Who knows the time goes on by it, and tells it soon; a newcomer doesn't, and perhaps nobody
    -- does any more.
    ahead = ahead + behind + (wanted and 0 or UNTOLD)
end
local now = time + ahead
local stamp = string.format('%.6f', now)
call('SET', prefix .. 'clock', string.format('%.6f %s', ahead, stamp))
local last, kept = number('seq'), tonumber(number('ttl'))
call('SET', prefix .. 'epoch', ARGV[3], 'NX')
local joined = 0
if not refused then
    if ARGV[2] == '1' then joined = call('ZADD', nodes, stamp, ARGV[1]) or 0 end
    local news = joined + (call('ZREMRANGEBYSCORE', nodes, '-inf', now - 3600) or 0)
    if news > 0 then call('INCR', prefix .. 'members') end
    local own = tonumber(ARGV[5]) or 0
    if own > 0 and own >= kept then
        call('SET', prefix .. 'ttl', ARGV[5], 'EX', ARGV[5])
        kept = own
    end
    -- When which number was reached: what is older is not kept to be found.
    call('ZADD', marks, 'NX', stamp, last)
    local old = call('ZREVRANGEBYSCORE', marks, now - KEPT, '-inf', 'LIMIT', 0, 1)
    if old and old[1] then
        call('ZREMRANGEBYSCORE', prefix .. 'recent', '-inf', old[1])
        call('ZREMRANGEBYSCORE', marks, '-inf', now - KEPT)
        if tonumber(old[1]) > tonumber(number('floor')) then
            call('SET', prefix .. 'floor', old[1])
        end
    end
end
-- What INFO says, "" if nobody may ask for it.
local function info(section, pattern)
    local text = redis.pcall('INFO', section)
    return type(text) == 'string' and string.match(text, pattern) or ''
end

-- The first is new when the server starts, the second when another has been primary meanwhile.
local server = info('server', 'run_id:(%w+)') .. info('replication', 'master_replid:(%w+)')
return {stamp, last, call('GET', prefix .. 'epoch') or '', server,
    number('members'), refused or '', string.format('%.6f', ahead),
    string.format('%.0f', kept), info('stats', 'evicted_keys:(%d+)'), tostring(joined)}
""".replace("KEPT", f"{KEPT:g}").replace("UNTOLD", f"{MAX_CLOCK_ADVANCE:g}"),
)

# KEYS: the prefix. ARGV: the nodes that stop.
LEAVE: Final = make_script(
    """
redis.call('ZREM', KEYS[1] .. 'nodes', unpack(ARGV))
redis.call('INCR', KEYS[1] .. 'members')
"""
)

# KEYS: the prefix. ARGV: the first and the last number, and how many records to stop at.
# Returns the number that was reached, the number up to which records may be missing, and keys and
# records alternately. The keys of some hundred records are filed together, under the last of their
# numbers. If the server has evicted keys, records may be missing up to the last number.
FIND: Final = make_script(
    """
local prefix = KEYS[1]
local from, last, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local keys, reached, floor = {}, ARGV[2], redis.pcall('GET', prefix .. 'floor')
repeat
    local found = redis.pcall('ZRANGEBYSCORE', prefix .. 'recent', from, '+inf', 'WITHSCORES',
        'LIMIT', 0, 10)
    if found.err then
        floor = ARGV[2]
        break
    end
    local done = #found < 20
    for i = 1, #found, 2 do
        for key in string.gmatch(found[i], '[^\\n]+') do keys[#keys + 1] = key end
        from = '(' .. found[i + 1]
        if tonumber(found[i + 1]) >= last then
            done = true
            break
        elseif #keys >= most then
            done, reached = true, found[i + 1]
            break
        end
    end
until done
local info = redis.pcall('INFO', 'stats')
if type(info) == 'string' and string.find(info, 'evicted_keys:[1-9]') then floor = ARGV[2] end
local answer = {reached, string.match(type(floor) == 'string' and floor or '', '^%d+$') or '0'}
for first = 1, #keys, 1000 do
    local names = {unpack(keys, first, math.min(#keys, first + 999))}
    for i, text in ipairs(redis.call('MGET', unpack(names))) do
        answer[#answer + 1], answer[#answer + 2] = names[i], text
    end
end
return answer
"""
)
