"""The changes that Redis makes in one step: the scripts of a pipeline's state.

What must always hold: a script declares all keys it uses (`KEYS[1]` to `[6]`: slots, highest,
claims, sealed, totals, epochs; that of the notes alone), so that a cluster and a user's rights can
be checked against them. A value that is not ours never fails a script: it is replaced. Claims lapse
by the server's clock.
"""

from __future__ import annotations

from fuploader_dagster.contracts.state import (
    HIGHEST_EPOCH,
    HIGHEST_NOTE_TIME,
    HIGHEST_NUMBER,
    LONGEST_CLAIM_SECONDS,
)

_NOW = """
local function now_ms()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
# Defines last(slot): epoch, nonce, place and root of its last take-over; and claim(slots, root,
# ttl): nil when all were claimed or renewed, or {kind, slot, holder, place}.
# A claim of another root that would last too long was made before the clock was set back. It holds
# for one more time to live, in which its holder renews it if it is alive.
_CLAIM = (
    _NOW
    + f"local LONGEST_MS = {round(LONGEST_CLAIM_SECONDS * 1000)}\n"
    + f"local EPOCH_DIGITS = {len(str(HIGHEST_EPOCH))}"
    + """
local function last(slot)
    local text = redis.call('HGET', KEYS[6], slot) or ''
    local epoch, nonce, place, root = text:match('^(%d+) (%x+) ([^\\n]*)\\n(.*)$')
    if epoch and #epoch <= EPOCH_DIGITS then return tonumber(epoch), nonce, place, root end
end
local function refused(kind, slot, holder)
    local _, _, place, root = last(slot)
    return {kind, slot, holder, root == holder and place or ''}
end
local function live_holder(slot, now)
    local held = redis.call('HGET', KEYS[3], slot) or ''
    local lapses_at, holder = held:match('^(%d+) (.+)$')
    if holder and tonumber(lapses_at) > now then return holder, tonumber(lapses_at) end
end
local function hold(slot, root, now, ttl_ms)
    redis.call('HSET', KEYS[3], slot, string.format('%.0f %s', now + ttl_ms, root))
end
local function shorten(slot, holder, lapses_at, now, ttl_ms)
    if lapses_at > now + LONGEST_MS then hold(slot, holder, now, ttl_ms) end
end
local function claim(slots, root, ttl_ms)
    local now = now_ms()
    for _, slot in ipairs(slots) do
        local holder, lapses_at = live_holder(slot, now)
        if holder and holder ~= root then
            shorten(slot, holder, lapses_at, now, ttl_ms)
            return refused('held', slot, holder)
        end
    end
    for _, slot in ipairs(slots) do hold(slot, root, now, ttl_ms) end
    return nil
end
local function is_last(slot, root, epoch, nonce)
    local last_epoch, last_nonce, _, last_root = last(slot)
    local same = last_root == root and last_epoch == tonumber(epoch) and last_nonce == nonce
    return not last_root or same
end
local function note(slot, epoch, nonce, place, root)
    redis.call('HSET', KEYS[6], slot, epoch .. ' ' .. nonce .. ' ' .. place .. '\\n' .. root)
end
"""
)
CLAIM = (
    _CLAIM
    + """
local slots = {}
for i = 3, #ARGV do slots[#slots + 1] = ARGV[i] end
return claim(slots, ARGV[1], tonumber(ARGV[2]))
"""
)
# Arguments: root, ttl, then of each claim slot, epoch, nonce and place.
# Returns {"taken", epoch, ...} or {kind, slot, holder, place}.
TAKE = (
    _CLAIM
    + """
local root, ttl_ms, now = ARGV[1], tonumber(ARGV[2]), now_ms()
local taken = {'taken'}
for i = 3, #ARGV, 4 do
    local slot, epoch, nonce, place = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
    local holder, lapses_at = live_holder(slot, now)
    local last_epoch, last_nonce, last_place, last_root = last(slot)
    local same = last_epoch == epoch and last_nonce == nonce
    if holder and holder ~= root then
        shorten(slot, holder, lapses_at, now, ttl_ms)
        return refused('held', slot, holder)
    end
    if last_root == root and last_place ~= place then
        if last_epoch >= epoch and not same then return refused('outdated', slot, root) end
        if holder then
            shorten(slot, holder, lapses_at, now, ttl_ms)
            return refused('held', slot, root)
        end
    end
    if last_root == root and not same then epoch = math.max(epoch, last_epoch + 1) end
    taken[#taken + 1] = string.format('%.0f', epoch)
end
for i = 3, #ARGV, 4 do
    hold(ARGV[i], root, now, ttl_ms)
    note(ARGV[i], taken[2 + (i - 3) / 4], ARGV[i + 2], ARGV[i + 3], root)
end
return taken
"""
)
# Arguments: root, then of each claim slot, epoch and nonce.
GIVE_BACK = (
    _CLAIM
    + """
for i = 2, #ARGV, 3 do
    local held = redis.call('HGET', KEYS[3], ARGV[i]) or ''
    local ours = is_last(ARGV[i], ARGV[1], ARGV[i + 1], ARGV[i + 2])
    if ours and held:match('^%d+ (.*)$') == ARGV[1] then redis.call('HDEL', KEYS[3], ARGV[i]) end
end
"""
)
RELEASE = """
for i = 2, #ARGV do
    local held = redis.call('HGET', KEYS[3], ARGV[i])
    if held and held:match('^%d+ (.*)$') == ARGV[1] then redis.call('HDEL', KEYS[3], ARGV[i]) end
end
"""
# Arguments: root, ttl, the four totals, number of slots, (slot, number, messages, bytes)..., number
# of claims, (slot, epoch, nonce, place)..., keys
RECORD = (
    _CLAIM
    + f"local MOST_DIGITS = {len(str(HIGHEST_NUMBER))}"
    + """
local claims_at = 8 + 4 * tonumber(ARGV[7])
local first_key = claims_at + 1 + 4 * tonumber(ARGV[claims_at])
for i = claims_at + 1, first_key - 1, 4 do
    if not is_last(ARGV[i], ARGV[1], ARGV[i + 1], ARGV[i + 2]) then
        local _, _, _, root = last(ARGV[i])
        return refused('held', ARGV[i], root)
    end
end
local slots = {}
for i = 8, claims_at - 1, 4 do slots[#slots + 1] = ARGV[i] end
local held = claim(slots, ARGV[1], tonumber(ARGV[2]))
if held then return held end
for i = claims_at + 1, first_key - 1, 4 do
    if not last(ARGV[i]) then note(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[1]) end
end
for i = 8, claims_at - 1, 4 do
    local slot, number = ARGV[i], ARGV[i + 1]
    redis.call('HSET', KEYS[1], slot, number .. ' ' .. ARGV[i + 2] .. ' ' .. ARGV[i + 3])
    local highest = redis.call('HGET', KEYS[2], slot) or ''
    local usable = highest:match('^%d+$') and #highest <= MOST_DIGITS
    if not usable or tonumber(highest) < tonumber(number) then
        redis.call('HSET', KEYS[2], slot, number)
    end
end
for i = first_key, #ARGV do redis.call('ZADD', KEYS[4], 0, ARGV[i]) end
for i, name in ipairs({'stored_messages', 'stored_bytes', 'duplicates', 'dead_letters'}) do
    local more = ARGV[2 + i]
    if more ~= '0' then
        local total = redis.pcall('HINCRBY', KEYS[5], name, more)
        if type(total) == 'table' then
            local nonsense = total.err:find('not an integer') or total.err:find('overflow')
            if not nonsense then return total end
            redis.call('HSET', KEYS[5], name, more)
        end
    end
end
return nil
"""
)
SNAPSHOT = (
    _NOW
    + """
return {
    redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[3]),
    redis.call('ZCARD', KEYS[4]), redis.call('HGETALL', KEYS[5]), now_ms()
}
"""
)
# The one key is that of the notes. Arguments: name, time, text.
PUT_NOTE = f"""
local held = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local at = held:match('^(%d+) ')
local nonsense = not at or #at > 16 or tonumber(at) > {HIGHEST_NOTE_TIME}
if nonsense or tonumber(at) < tonumber(ARGV[2]) then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
end
"""
# Argument: a field that nobody uses.
UNPROVE = """
for _, key in ipairs({KEYS[1], KEYS[2], KEYS[3], KEYS[5], KEYS[6]}) do
    redis.call('HDEL', key, ARGV[1])
end
redis.call('ZREM', KEYS[4], ARGV[1])
"""
# Writes such a field into each key and removes it, in one step, so nobody sees it. Must run after
# UNPROVE, which shows that the field may be removed, and start with what needs memory, because a
# server that is full, or cannot save, checks only the first change of a script.
PROVE = (
    """
local failed
local function try(...)
    local answer = redis.pcall(...)
    if type(answer) == 'table' and answer.err then failed = failed or answer end
end
for _, key in ipairs({KEYS[1], KEYS[2], KEYS[3], KEYS[5], KEYS[6]}) do
    try('HSET', key, ARGV[1], '0')
    try('HGET', key, ARGV[1])
end
try('HINCRBY', KEYS[5], ARGV[1], 1)
try('ZADD', KEYS[4], 0, ARGV[1])
try('TIME')
"""
    + UNPROVE
    + "return failed"
)
