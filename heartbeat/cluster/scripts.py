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

Those of a fleet that counts its clients, behind a prefix of their own:

| key | what it is |
| --- | --- |
| `nodes` | sorted set: each node, and when its lease ends (ms); 0 where it has ended by itself |
| `serials` | hash: the number of the last call of each node |
| `known:NODE`, `active:NODE` | sets of the client ids that a node knows, and of those that are active there |
| `connections:each` | hash: the connections of each node |
| `known`, `active` | hashes: of each client id, how many nodes know it, or have it active |
| `counts` | hash: `connections` of all; `version`, which changes with what is counted; `told`, `told_at`; `heard` |
"""

from __future__ import annotations

__all__ = ["APPEND", "ASKED", "DETACH", "HANDLE", "OWNED", "READING", "TAIL"]

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

TAIL = """
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

APPEND = """
  return carry_out()
"""

HANDLE = """
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

DETACH = """
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
OWNED = """
  local sid, wrong = owned()
  if wrong then
    return wrong
  end
"""

#: What changes something, by its name.
ASKED = {
    name: _HEAD + body + TAIL
    for name, body in {
        "open": _OPEN,
        "append": APPEND,
        "handle": OWNED + HANDLE,
        "confirm": OWNED + _CONFIRM,
        "detach": OWNED + DETACH,
        "take_over": _TAKE_OVER,
        "expire": OWNED + _EXPIRE,
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

# A node of a fleet calls: what has changed of its clients, and that it is there. Done twice it is as done once: it says
# how things are, and not by what they differ.
#
# ARGV: the prefix, the node, `begin` (all that is known of it is out of date), `go on` or `leave`, the number of the
# call, for how many ms the lease holds, the connections of the node, the channel to tell others by, how many ms lie
# between two such words, how many ids of dead nodes are swept at most; then ids, each with 0 (not known), 1 (known) or
# 2 (active).
#
# Nothing is the answer to a node whose state is not here, or not as of its last call: it has to begin.
_CALL = """
local prefix, node, mode, number, channel = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[7]
local lease, connections, pause, slice = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[8]), tonumber(ARGV[9])
local nodes, serials, counts = prefix .. 'nodes', prefix .. 'serials', prefix .. 'counts'
local known, active, each = prefix .. 'known', prefix .. 'active', prefix .. 'connections:each'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local has_changed = false

local function count_of(name)
  return tonumber(redis.call('HGET', counts, name) or 0)
end

-- Of how many nodes an id is counted; `all` is `known` or `active`.
local function one_more(all, id)
  redis.call('HINCRBY', all, id, 1)
  has_changed = true
end

local function one_less(all, id)
  if redis.call('HINCRBY', all, id, -1) <= 0 then
    redis.call('HDEL', all, id)
  end
  has_changed = true
end

local function stand(all, id, is_so)
  local own = all .. ':' .. node
  if is_so then
    if redis.call('SADD', own, id) == 1 then
      one_more(all, id)
    end
  elseif redis.call('SREM', own, id) == 1 then
    one_less(all, id)
  end
end

local function connect(of, count)
  local more = count - (redis.call('HGET', each, of) or 0)
  if more ~= 0 then
    redis.call('HINCRBY', counts, 'connections', more)
    redis.call('HSET', each, of, count)
    has_changed = true
  end
  if count == 0 then
    redis.call('HDEL', each, of)
  end
end

-- Nothing that was said by it counts any more; its ids are swept by and by.
local function end_lease(of)
  redis.call('HDEL', serials, of)
  connect(of, 0)
end

local serial = tonumber(redis.call('HGET', serials, node) or -1)
if mode == 'go on' and serial ~= number and serial ~= number - 1 then
  return {}
end

-- Nobody was heard for two refreshes: Redis was away from all, or its clock was set. Nobody is to be blamed for that.
local heard = count_of('heard')
if mode == 'go on' and (now < heard or now - heard > lease * 2 / 3) then
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', nodes, '(0', '+inf')) do
    redis.call('ZADD', nodes, now + lease, one)
  end
end
redis.call('HSET', counts, 'heard', now)
-- No version is ever used twice, whatever becomes of what is here: there are fewer changes than microseconds.
redis.call('HSETNX', counts, 'version', now * 1000)

if mode == 'leave' then
  redis.call('ZADD', nodes, 0, node)
  end_lease(node)
else
  if mode == 'begin' then
    has_changed = true
    -- What is left of it goes under another name, and is counted until it is swept: clients do not vanish meanwhile.
    local grave = node .. '/' .. string.format('%.0f', redis.call('HINCRBY', counts, 'version', 1))
    for _, all in ipairs({known, active}) do
      if redis.call('EXISTS', all .. ':' .. node) == 1 then
        redis.call('RENAME', all .. ':' .. node, all .. ':' .. grave)
        redis.call('ZADD', nodes, 0, grave)
      end
    end
    end_lease(node)
  end
  redis.call('ZADD', nodes, now + lease, node)
  redis.call('HSET', serials, node, number)
  connect(node, connections)
  for at = 10, #ARGV, 2 do
    stand(known, ARGV[at], ARGV[at + 1] ~= '0')
    stand(active, ARGV[at], ARGV[at + 1] == '2')
  end
end

while slice > 0 do
  local dead = redis.call('ZRANGEBYSCORE', nodes, '-inf', now, 'LIMIT', 0, 1)[1]
  if not dead then
    break
  end
  end_lease(dead)
  for _, all in ipairs({active, known}) do
    if slice > 0 then
      local gone = redis.call('SPOP', all .. ':' .. dead, slice)
      slice = slice - #gone
      for _, id in ipairs(gone) do
        one_less(all, id)
      end
    end
  end
  if redis.call('EXISTS', known .. ':' .. dead, active .. ':' .. dead) == 0 then
    redis.call('ZREM', nodes, dead)
    has_changed = true
  end
end

if has_changed then
  redis.call('HINCRBY', counts, 'version', 1)
end
local version, told, told_at = count_of('version'), count_of('told'), count_of('told_at')
if told ~= version and (mode == 'leave' or now < told_at or now - told_at >= pause) then
  redis.call('PUBLISH', channel, version)
  redis.call('HSET', counts, 'told', version, 'told_at', now)
  told = version
end

local next_end = redis.call('ZRANGEBYSCORE', nodes, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
return {
  version,
  told,
  redis.call('ZCOUNT', nodes, '(' .. now, '+inf'),
  redis.call('ZCOUNT', nodes, '-inf', now),
  next_end and next_end - now or lease,
  redis.call('HLEN', active),
  redis.call('HLEN', known),
  count_of('connections'),
  redis.call('SCARD', active .. ':' .. node),
  redis.call('SCARD', known .. ':' .. node),
  tonumber(redis.call('HGET', each, node) or 0),
  now,
}
"""

# Not behind the prefix: channels are common to all databases, and named whole. What holds until a moment is told to
# nobody after that.
_PUBLISH = """
if ARGV[4] ~= '' then
  local time = redis.call('TIME')
  if time[1] * 1000 + math.floor(time[2] / 1000) > tonumber(ARGV[4]) then
    return 0
  end
end
return redis.call('PUBLISH', ARGV[2], ARGV[3])
"""

#: What only reads, or may be done again.
READING = {"start": _START, "replay": _REPLAY, "call": _CALL, "publish": _PUBLISH}
