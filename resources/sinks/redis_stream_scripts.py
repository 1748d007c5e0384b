"""The changes that Redis makes in one step: the scripts of a stream's sink.

What must always hold:

- A chunk is in the stream, and no longer in the list of staged chunks, in one step: it can be moved
  once. So it does not matter who moves it, nor how often it is tried.
- Whoever commits a delivery decides what is in it. Only the staged chunks of the attempt that
  committed are moved.
- A step that Redis refuses (no right, no memory, another type) changes nothing. A script is not
  rolled back if it fails halfway, so the first command that writes is the one that may be refused,
  and those after it were all used by the same user in an earlier step.

Keys: 1 the stream, 2 the ledger, 3 the ranges, 4 what is staged. `redis_stream` has their format.
"""

from __future__ import annotations

LOOK = """
local noted = redis.call('HMGET', KEYS[2], 'state', 'redo', 'rows', 'added', 'staged')
return {redis.call('XLEN', KEYS[1]), noted[1], noted[2], noted[3], noted[4], noted[5]}
"""
# Arguments: time to live in milliseconds, elements...
STAGE = """
for i = 2, #ARGV do redis.call('RPUSH', KEYS[4], ARGV[i]) end
redis.call('PEXPIRE', KEYS[4], ARGV[1])
"""
# Arguments: token, redo, rows, elements that are staged, most entries of the stream or -1.
# Takes the header of the list, which shows that the user may.
COMMIT = """
local redo, rows = tonumber(ARGV[2]), tonumber(ARGV[3])
local noted = redis.call('HMGET', KEYS[2], 'state', 'redo')
local noted_redo = tonumber(noted[2] or '-1')
if noted[1] == 'moving' or (noted[1] == 'done' and noted_redo >= redo) then return {'noted', 0} end
local length = redis.call('XLEN', KEYS[1])
local most = tonumber(ARGV[5])
if most >= 0 and length + rows > most then return {'full', length} end
if redis.call('LLEN', KEYS[4]) ~= tonumber(ARGV[4]) then return {'lost', 0} end
local earlier = redis.call('LLEN', KEYS[3])
if earlier > 0 then
    redis.call('XRANGE', KEYS[1], '0-0', '0-0')
    redis.call('XDEL', KEYS[1], '0-0')
end
redis.call('LPOP', KEYS[4])
for _, key in ipairs({KEYS[2], KEYS[3], KEYS[4]}) do redis.call('PERSIST', key) end
redis.call('HSET', KEYS[2], 'state', 'moving', 'redo', math.max(redo, noted_redo), 'rows', rows,
    'added', 0, 'staged', ARGV[1], 'earlier', earlier)
return {'committed', length}
"""
# Argument: token. What was committed stays, though we may not have got the answer.
DROP = """
if redis.call('HGET', KEYS[2], 'staged') ~= ARGV[1] then redis.call('DEL', KEYS[4]) end
"""
# Deletes one range of earlier entries. Returns how many are left.
FORGET = """
local left = tonumber(redis.call('HGET', KEYS[2], 'earlier') or '0')
if left == 0 then return 0 end
local range = redis.call('LINDEX', KEYS[3], 0)
if range then
    local first, last = range:match('^(%S+) (%S+)$')
    local ids = {}
    for _, entry in ipairs(redis.call('XRANGE', KEYS[1], first, last)) do
        ids[#ids + 1] = entry[1]
    end
    if #ids > 0 then redis.call('XDEL', KEYS[1], unpack(ids)) end
    redis.call('LPOP', KEYS[3])
end
redis.call('HSET', KEYS[2], 'earlier', left - 1)
return left - 1
"""
# Arguments: token, most entries of the stream or -1, time to live of the ledger in milliseconds.
MOVE = """
local noted = redis.call('HMGET', KEYS[2], 'state', 'staged', 'rows', 'added')
if noted[1] ~= 'moving' or noted[2] ~= ARGV[1] then return {'ended', 0} end
local rows, added = tonumber(noted[3]), tonumber(noted[4])
local chunk = redis.call('LINDEX', KEYS[4], 0)
if chunk then
    local entries = cmsgpack.unpack(chunk)
    local length = redis.call('XLEN', KEYS[1])
    local most = tonumber(ARGV[2])
    if most >= 0 and length + #entries > most then return {'full', length} end
    local first, last
    for _, fields in ipairs(entries) do
        last = redis.call('XADD', KEYS[1], '*', unpack(fields))
        first = first or last
    end
    redis.call('RPUSH', KEYS[3], first .. ' ' .. last)
    redis.call('LPOP', KEYS[4])
    added = added + #entries
    redis.call('HSET', KEYS[2], 'added', added)
elseif added < rows then
    redis.call('HSET', KEYS[2], 'state', 'lost', 'staged', '')
    return {'lost', added}
end
if added < rows then return {'moved', added} end
redis.call('HSET', KEYS[2], 'state', 'done', 'staged', '')
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return {'done', added}
"""
# Does everything that a user needs a right for, and leaves nothing. An entry 0-0 is refused for its
# id, after rights and memory were checked. Comes first, because a server that is full, or cannot
# save, checks only the first change of a script.
PROVE = """
local function try(...)
    local answer = redis.pcall(...)
    if type(answer) == 'table' and answer.err then return answer end
end
local failed = try('XADD', KEYS[1], '0-0', 'field', 'value')
if failed and not failed.err:find('must be greater than 0') then return failed end
failed = try('XLEN', KEYS[1]) or try('XRANGE', KEYS[1], '0-0', '0-0')
    or try('XDEL', KEYS[1], '0-0') or try('DEL', KEYS[2], KEYS[3], KEYS[4])
if failed then return failed end
failed = try('HSET', KEYS[2], 'state', 'proof') or try('HMGET', KEYS[2], 'state')
    or try('HGET', KEYS[2], 'state') or try('RPUSH', KEYS[3], 'range')
    or try('RPUSH', KEYS[4], 'staged') or try('LLEN', KEYS[3]) or try('LINDEX', KEYS[4], 0)
    or try('LPOP', KEYS[4]) or try('PEXPIRE', KEYS[3], 1000) or try('PERSIST', KEYS[3])
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
return failed
"""
