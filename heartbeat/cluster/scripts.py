"""What Redis does for us, each in one script, so that all of it happens or nothing does.

A script that changes anything is asked under a number of the asker's. Redis remembers the answer until the asker has
it, so that one whose answer was lost with a connection is asked again and not done again.

The keys, behind a common prefix:

| key | what it is |
| --- | --- |
| `epoch` | the name of these contents |
| `owner` | the asker who started last, and is the only one who may write |
| `opened`, `sessions` | how many were ever opened; sorted set of the sids, in that order |
| `s:SID` | hash: what is known of a session (`Head`) |
| `m:SID` | hash: its marks |
| `l:SID` | stream: the messages that are kept for it, `SEQ-0` each, with `p` (payload), `r` (`=RECEIPT`, or nothing) |
| `r:=RECEIPT` | set of `SID SEQ`: the copies that still have this receipt |
| `o:ASKER` | hash: answers that the asker may not have yet, by their numbers |
"""

from __future__ import annotations

__all__ = ["ASKED", "READING"]

# ARGV: the prefix, the asker, the number, how many answers are done with, their numbers, then the script's own.
_HEAD = """
local prefix, asker, number = ARGV[1], ARGV[2], ARGV[3]
local answers = prefix .. 'o:' .. asker
local at = 5
for _ = 1, tonumber(ARGV[4]) do
  redis.call('HDEL', answers, ARGV[at])
  at = at + 1
end
local before = redis.call('HGET', answers, number)
if before then
  return cmsgpack.unpack(before)
end
if redis.call('GET', prefix .. 'owner') ~= asker then
  return {'!', 'another server has taken the store'}
end

local function next_argument()
  at = at + 1
  return ARGV[at - 1]
end

local function session(sid)
  return prefix .. 's:' .. sid
end

local function log(sid)
  return prefix .. 'l:' .. sid
end

local function copies(receipt)
  return prefix .. 'r:' .. receipt
end

local function missing()
  return {'!', 'the session is not in the store'}
end

-- The session of which the next arguments are the name and the fence; or what is wrong with these.
local function owned()
  local sid, fence = next_argument(), next_argument()
  local now = redis.call('HGET', session(sid), 'fence')
  if not now then
    return nil, missing()
  end
  if now ~= fence then
    return nil, {'!', 'the session was taken over: fence ' .. fence .. ', not ' .. now}
  end
  return sid
end

-- The messages up to this number are gone.
local function forget(sid, upto)
  for _, entry in ipairs(redis.call('XRANGE', log(sid), '-', upto)) do
    local receipt = entry[2][4]
    if receipt ~= '' then
      redis.call('SREM', copies(receipt), sid .. ' ' .. string.match(entry[1], '^%d+'))
    end
  end
end

-- Carry out the effects in the other arguments; the number of each append, 0 for all else.
local function carry_out()
  local numbers = {}
  while at <= #ARGV do
    local kind = next_argument()
    local seq = 0
    if kind == 'append' then
      local sid, payload, receipt = next_argument(), next_argument(), next_argument()
      if redis.call('EXISTS', session(sid)) == 1 then
        seq = redis.call('HINCRBY', session(sid), 'sent', 1)
        redis.call('XADD', log(sid), seq .. '-0', 'p', payload, 'r', receipt)
        if receipt ~= '' then
          redis.call('SADD', copies(receipt), sid .. ' ' .. seq)
        end
      end
    elseif kind == 'settle' then
      redis.call('DEL', copies(next_argument()))
    else
      local sid, key, is_kept, value = next_argument(), next_argument(), next_argument(), next_argument()
      if redis.call('EXISTS', session(sid)) == 1 then
        redis.call('HDEL', prefix .. 'm:' .. sid, key)
        if is_kept == '1' then
          redis.call('HSET', prefix .. 'm:' .. sid, key, value)
        end
      end
    end
    numbers[#numbers + 1] = seq
  end
  return numbers
end

local function head(sid)
  return {redis.call('HGETALL', session(sid)), redis.call('HGETALL', prefix .. 'm:' .. sid)}
end

local function done()
"""

_TAIL = """
end

local answer = done()
redis.call('HSET', answers, number, cmsgpack.pack(answer))
redis.call('EXPIRE', answers, 86400)
return answer
"""

_OPEN = """
  local sid = next_argument()
  if redis.call('EXISTS', session(sid)) == 1 then
    return {'!', 'the session is in the store already'}
  end
  redis.call('HSET', session(sid), 'epoch', next_argument(), 'client_id', next_argument(), 'window', next_argument())
  for _, name in ipairs({'sent', 'confirmed', 'handled', 'attempt', 'fence'}) do
    redis.call('HSET', session(sid), name, 0)
  end
  redis.call('ZADD', prefix .. 'sessions', redis.call('INCR', prefix .. 'opened'), sid)
  return {}
"""

_APPEND = """
  return carry_out()
"""

_HANDLE = """
  redis.call('HSET', session(sid), 'handled', next_argument())
  return carry_out()
"""

_CONFIRM = """
  local upto = math.min(tonumber(next_argument()), tonumber(redis.call('HGET', session(sid), 'sent')))
  if upto > tonumber(redis.call('HGET', session(sid), 'confirmed')) then
    forget(sid, upto)
    redis.call('XTRIM', log(sid), 'MINID', '=', upto + 1)
    redis.call('HSET', session(sid), 'confirmed', upto)
  end
  return carry_out()
"""

_DETACH = """
  redis.call('HSET', session(sid), 'detached_at', next_argument())
  return {}
"""

_TAKE_OVER = """
  local sid, attempt = next_argument(), next_argument()
  if redis.call('EXISTS', session(sid)) == 0 then
    return {}
  end
  redis.call('HSET', session(sid), 'attempt', attempt)
  redis.call('HINCRBY', session(sid), 'fence', 1)
  redis.call('HDEL', session(sid), 'detached_at')
  return head(sid)
"""

_EXPIRE = """
  forget(sid, '+')
  redis.call('DEL', session(sid), log(sid), prefix .. 'm:' .. sid)
  redis.call('ZREM', prefix .. 'sessions', sid)
  return carry_out()
"""

# What only the owner of a session may do to it.
_OWNED = """
  local sid, wrong = owned()
  if wrong then
    return wrong
  end
"""

#: What changes something, by its name.
ASKED = {
    name: _HEAD + body + _TAIL
    for name, body in {
        "open": _OPEN,
        "append": _APPEND,
        "handle": _OWNED + _HANDLE,
        "confirm": _OWNED + _CONFIRM,
        "detach": _OWNED + _DETACH,
        "take_over": _TAKE_OVER,
        "expire": _OWNED + _EXPIRE,
    }.items()
}

# ARGV: the prefix, an epoch for contents that have none, and who asks: from now on nobody else may write.
_START = """
local prefix = ARGV[1]
redis.call('SET', prefix .. 'owner', ARGV[3])
redis.call('SETNX', prefix .. 'epoch', ARGV[2])
local heads = {}
for _, sid in ipairs(redis.call('ZRANGE', prefix .. 'sessions', 0, -1)) do
  local session = redis.call('HGETALL', prefix .. 's:' .. sid)
  heads[#heads + 1] = {sid, session, redis.call('HGETALL', prefix .. 'm:' .. sid)}
end
return {redis.call('GET', prefix .. 'epoch'), heads}
"""

# ARGV: the prefix, the session, the number after which.
_REPLAY = """
local prefix, sid = ARGV[1], ARGV[2]
if redis.call('EXISTS', prefix .. 's:' .. sid) == 0 then
  return {'!', 'the session is not in the store'}
end
local kept = {}
for _, entry in ipairs(redis.call('XRANGE', prefix .. 'l:' .. sid, math.max(0, ARGV[3] + 1), '+')) do
  local seq, receipt = string.match(entry[1], '^%d+'), entry[2][4]
  if receipt ~= '' and redis.call('SISMEMBER', prefix .. 'r:' .. receipt, sid .. ' ' .. seq) == 0 then
    receipt = ''
  end
  kept[#kept + 1] = {seq, entry[2][2], receipt}
end
return kept
"""

#: What only reads, or may be done again.
READING = {"start": _START, "replay": _REPLAY}
