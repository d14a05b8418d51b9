"""What Redis does for the sessions of a fleet, each in one script, so that all of it happens or nothing does.

A session has one node that carries it, or waits for its client; only that one may handle, confirm and end it, by the
`fence` that it was given when it took it. Every node may append to it. As in `scripts`, what changes something is
asked under a number, and its answer remembered until the asker has it. Deadlines and leases are by Redis' own time.

The keys, behind a common prefix:

| key | what it is |
| --- | --- |
| `epoch` | the name of these contents |
| `nodes` | sorted set: each node, and when its lease ends (ms); 0 where it has left |
| `heard` | when any node was heard last (ms) |
| `s:SID` | hash: a session's `Head`; its `node` (empty: nobody), `holder` of the fence; `bytes`; receipts `awaited` |
| | why it is `ending`, where that takes several calls |
| `m:SID` | hash: its marks |
| `l:SID` | stream: the messages that are kept for it, `SEQ-0` each, with `p` (payload), `r` (`=RECEIPT`, or nothing) |
| `r:=RECEIPT` | set of `SID SEQ`: the copies of which the fate is open |
| `n:NODE`, `c:CLIENT` | sets of the sids of a node, and of a client id |
| `deadlines` | sorted set: each sid that is nobody's, and when its window ends (ms) |
| `x:SID` | why a session is not there any more, for an hour |
| `p:CLIENT`, `q:NODE` | sets: the nodes where a client id has connections without a session; those ids of a node |
| `o:ASKER` | hash: answers that the asker may not have yet, by their numbers |

Those of groups are told in `group_scripts`.

Published to one node, on `node:NODE`: `pSID` (something was appended to a session of its), `mFENCE SID` (a session of
its has moved), `fBYTES SID` (one has no room for that, and nobody reads it), `lLENGTH:CLIENT` and a letter (for
connections without a session), and what is said in groups.
"""

from __future__ import annotations

from heartbeat.cluster.group_scripts import GROUPS
from heartbeat.cluster.scripts import APPEND, DETACH, HANDLE, OWNED, TAIL

__all__ = ["FLEET_ASKED", "FLEET_READING"]

# What both kinds of script know. `node` is who asks, and what it says that a session keeps of what is said in groups;
# `at` is where the next argument is.
_COMMON = """
local function next_argument()
  at = at + 1
  return ARGV[at - 1]
end

local node = next_argument()
local kept_messages, kept_bytes = tonumber(next_argument()), tonumber(next_argument())
-- Arguments are named to the asker by where they stand from here.
local base = at
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local nodes, deadlines = prefix .. 'nodes', prefix .. 'deadlines'

local function session(sid)
  return prefix .. 's:' .. sid
end

local function log(sid)
  return prefix .. 'l:' .. sid
end

local function sids_of(of)
  return prefix .. 'n:' .. of
end

local function tell(of, word)
  return redis.call('PUBLISH', prefix .. 'node:' .. of, word)
end

-- From now on it is this node's; whoever had it is told.
local function take(sid)
  local key = session(sid)
  local before = redis.call('HGET', key, 'node')
  local fence = redis.call('HINCRBY', key, 'fence', 1)
  redis.call('HSET', key, 'holder', node)
  redis.call('HDEL', key, 'detached_at')
  redis.call('ZREM', deadlines, sid)
  if before ~= node then
    redis.call('HSET', key, 'node', node)
    redis.call('SREM', sids_of(before), sid)
    redis.call('SADD', sids_of(node), sid)
    if before ~= '' then
      tell(before, 'm' .. fence .. ' ' .. sid)
    end
  end
end

-- What is wrong with this fence, if it is not this node's. A node counts its fence up before it is told, and another
-- may have been given the same number meanwhile.
local function not_held(sid, fence)
  local known = redis.call('HMGET', session(sid), 'fence', 'holder')
  if known[1] ~= fence then
    return {'!', 'the session was taken over: fence ' .. fence .. ', not ' .. known[1]}
  elseif known[2] ~= node then
    return {'!', 'the session was taken over: fence ' .. fence .. ' is of another server'}
  end
end

local function head(sid)
  return {redis.call('HGETALL', session(sid)), redis.call('HGETALL', prefix .. 'm:' .. sid)}
end
"""

# ARGV: the prefix, the asker, the number, how many answers are done with, their numbers, the node, the two bounds, the
# script's own.
_HEAD = (
    """
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
"""
    + _COMMON
    + GROUPS
    + """
local function copies(receipt)
  return prefix .. 'r:' .. receipt
end

-- Whoever sent this waits for so many receipts more.
local function await(receipt, more)
  local sender = string.match(receipt, '^=([^/]*)')
  if redis.call('EXISTS', session(sender)) == 1 then
    redis.call('HINCRBY', session(sender), 'awaited', more)
  end
end

-- The session of which the next arguments are the name and the fence; or what is wrong with these.
local function owned()
  local sid, fence = next_argument(), next_argument()
  if redis.call('EXISTS', session(sid)) == 0 then
    return nil, {'!', 'the session is not in the store'}
  end
  local wrong = not_held(sid, fence)
  if wrong then
    return nil, wrong
  end
  return sid
end

-- The messages up to this number are gone; of how many bytes they were.
local function forget(sid, upto)
  local bytes = 0
  for _, entry in ipairs(redis.call('XRANGE', log(sid), '-', upto)) do
    local payload, receipt = entry[2][2], entry[2][4]
    bytes = bytes + #payload
    if receipt ~= '' then
      local copy = sid .. ' ' .. string.match(entry[1], '^%d+')
      if redis.call('SREM', copies(receipt), copy) == 1 and redis.call('EXISTS', copies(receipt)) == 0 then
        await(receipt, -1)
      end
    end
  end
  return bytes
end

local poked = {}

local function append(sid, payload, receipt, is_told, place)
  local key = session(sid)
  local owner = redis.call('HGET', key, 'node')
  if not owner then
    return 0
  end
  local seq = redis.call('HINCRBY', key, 'sent', 1)
  redis.call('HINCRBY', key, 'bytes', #payload)
  redis.call('XADD', log(sid), seq .. '-0', 'p', payload, 'r', receipt)
  if receipt ~= '' and redis.call('SADD', copies(receipt), sid .. ' ' .. seq) == 1 then
    if redis.call('SCARD', copies(receipt)) == 1 then
      await(receipt, 1)
    end
  end
  if owner == node then
    if is_told then
      told[#told + 1] = {sid, seq, place or payload, receipt}
    end
  elseif owner ~= '' and not poked[sid] then
    poked[sid] = true
    tell(owner, 'p' .. sid)
  end
  return seq
end

-- To the connections of a client without a session; whether there are any, as far as is known.
local function to_plain(client, payload)
  local heard = 0
  for _, one in ipairs(redis.call('SMEMBERS', prefix .. 'p:' .. client)) do
    heard = heard + tell(one, 'l' .. #client .. ':' .. client .. payload)
  end
  return heard > 0
end

-- A letter into all sessions of a client that have room; the word for what became of it.
local function post(to, payload, receipt, sender, kept, bytes, place)
  local sids, roomy, abandoned, is_full = {}, {}, {}, false
  for _, sid in ipairs(redis.call('SMEMBERS', prefix .. 'c:' .. to)) do
    local known = redis.call('HMGET', session(sid), 'sent', 'confirmed', 'bytes', 'detached_at', 'node')
    if known[1] then
      sids[#sids + 1] = sid
      if known[1] - known[2] < kept and known[3] + #payload <= bytes then
        roomy[#roomy + 1] = sid
      elseif known[4] or known[5] == '' then
        abandoned[#abandoned + 1] = {sid, known[5]}
      else
        is_full = true
      end
    end
  end
  if #sids > 0 then
    -- Each of them is to be told about one day, and needs room for that.
    local awaited = tonumber(redis.call('HGET', session(sender), 'awaited') or 0)
    if awaited * 2 >= kept or is_full or #roomy == 0 then
      return 'full'
    end
    -- A tab that was closed long ago must not keep him from what he could read at his desk.
    for _, one in ipairs(abandoned) do
      if one[2] == '' then
        redis.call('ZADD', deadlines, now, one[1])
      else
        tell(one[2], 'f' .. #payload .. ' ' .. one[1])
      end
    end
    for _, sid in ipairs(roomy) do
      append(sid, payload, receipt, true, place)
    end
  end
  local is_sent = to_plain(to, payload)
  return #sids > 0 and 'queued' or is_sent and 'sent' or 'unknown'
end

local words = {queued = 1, sent = 2, full = 3, unknown = 4}
-- By its kind, what takes an effect from the arguments, and carries it out if it is to be; its number, if it has one.
local effects = {}

local function effect(does, is_told)
  return effects[next_argument()](does, is_told) or 0
end

function effects.append(does, is_told)
  local place = at + 1 - base
  local sid, payload, receipt = next_argument(), next_argument(), next_argument()
  return does and append(sid, payload, receipt, is_told, place)
end

function effects.mark(does)
  local sid, key, is_kept, value = next_argument(), next_argument(), next_argument(), next_argument()
  if does and redis.call('EXISTS', session(sid)) == 1 then
    redis.call('HDEL', prefix .. 'm:' .. sid, key)
    if is_kept == '1' then
      redis.call('HSET', prefix .. 'm:' .. sid, key, value)
    end
  end
end

function effects.settle(does)
  local receipt = next_argument()
  if does and redis.call('DEL', copies(receipt)) == 1 then
    await(receipt, -1)
  end
end

function effects.plain(does)
  local client, payload = next_argument(), next_argument()
  if does then
    to_plain(client, payload)
  end
end

function effects.post(does)
  local place = at + 1 - base
  local to, payload, receipt, sender = next_argument(), next_argument(), next_argument(), next_argument()
  local kept, bytes = tonumber(next_argument()), tonumber(next_argument())
  local first, last = next_argument(), next_argument()
  if does then
    local word = post(to, payload, receipt, sender, kept, bytes, place)
    if sender ~= '' then
      append(sender, first .. word .. last, '', true)
    end
    return words[word]
  end
end

-- A copy was confirmed or lost: what follows from the first that is confirmed, or the last that is lost.
function effects.fate(does)
  local sid, seq, receipt, is_confirmed = next_argument(), next_argument(), next_argument(), next_argument()
  local follow = tonumber(next_argument())
  local decides = false
  if does and redis.call('SREM', copies(receipt), sid .. ' ' .. seq) == 1 then
    decides = is_confirmed == '1' or redis.call('EXISTS', copies(receipt)) == 0
    if decides then
      redis.call('DEL', copies(receipt))
      await(receipt, -1)
    end
  end
  for _ = 1, follow do
    effect(decides, true)
  end
end

-- What a session is told whose effect is refused; a connection without one is told by the answer.
local function refuse(place, refused)
  if not plain_place(place) then
    append(place, refused, '', true)
  end
end

function effects.join(does)
  local name, place, more, refused = next_argument(), next_argument(), next_argument(), next_argument()
  local client, most, is_again = next_argument(), tonumber(next_argument()), next_argument() == '1'
  if does then
    local number = join(name, place, client, more, most, is_again)
    if number ~= 1 then
      refuse(place, refused)
    end
    return number
  end
end

-- What a member does: its number, nothing where he is none.
local function by_member(does, act)
  local name, place, more, refused = next_argument(), next_argument(), next_argument(), next_argument()
  if does then
    local number = act(name, place, more)
    if not number then
      refuse(place, refused)
    end
    return number
  end
end

function effects.leave(does)
  return by_member(does, function(name, place, more)
    return leave(name, place, more, true) and 1
  end)
end

function effects.say(does)
  return by_member(does, say)
end

function effects.missed(does)
  local sid, count = next_argument(), tonumber(next_argument())
  for _ = 1, count do
    local name = next_argument()
    if does then
      own_up(name, sid)
    end
  end
end

-- Carry out the effects in the other arguments; the number of each, what was appended besides, and texts of that.
local function carry_out()
  local numbers = {}
  while at <= #ARGV do
    numbers[#numbers + 1] = effect(true, false)
  end
  pass_on()
  return {numbers, told, texts}
end

local function done()
"""
)

_OPEN = """
  local sid = next_argument()
  local key = session(sid)
  if redis.call('EXISTS', key) == 1 then
    return {'!', 'the session is in the store already'}
  end
  local epoch, client, window = next_argument(), next_argument(), next_argument()
  redis.call('HSET', key, 'epoch', epoch, 'client_id', client, 'window', window, 'node', node, 'holder', node)
  for _, name in ipairs({'sent', 'confirmed', 'handled', 'attempt', 'fence', 'bytes', 'awaited'}) do
    redis.call('HSET', key, name, 0)
  end
  redis.call('SADD', sids_of(node), sid)
  redis.call('SADD', prefix .. 'c:' .. client, sid)
  return {}
"""

_CONFIRM = """
  local key = session(sid)
  local upto = math.min(tonumber(next_argument()), tonumber(redis.call('HGET', key, 'sent')))
  -- First what follows, which asks whether the copies are still there.
  local answer = carry_out()
  if upto > tonumber(redis.call('HGET', key, 'confirmed')) then
    redis.call('HINCRBY', key, 'bytes', -forget(sid, upto))
    redis.call('XTRIM', log(sid), 'MINID', '=', upto + 1)
    redis.call('HSET', key, 'confirmed', upto)
  end
  return answer
"""

# The session, the attempt, and the fence that it must have (nothing: any).
_TAKE_OVER = """
  local sid, attempt, fence = next_argument(), next_argument(), next_argument()
  if redis.call('EXISTS', session(sid)) == 0 then
    return {}
  end
  local wrong = fence ~= '' and not_held(sid, fence)
  if wrong then
    return wrong
  end
  redis.call('HSET', session(sid), 'attempt', attempt)
  take(sid)
  return head(sid)
"""

# A client has come to this node with a session that is not here: whose it must be (0: anybody's), the attempt, and the
# client's own numbers. A refusal is one word, and changes nothing.
_CLAIM = """
  local sid, is_named, name, attempt = next_argument(), next_argument(), next_argument(), tonumber(next_argument())
  local last, sent = tonumber(next_argument()), tonumber(next_argument())
  local key = session(sid)
  local known = redis.call('HMGET', key, 'client_id', 'attempt', 'sent', 'confirmed', 'handled', 'ending')
  if not known[1] then
    return {redis.call('GET', prefix .. 'x:' .. sid) or 'unknown'}
  elseif known[6] then
    return {known[6] ~= '' and known[6] or 'unknown'}
  elseif is_named == '1' and name ~= known[1] then
    return {'auth'}
  elseif attempt <= tonumber(known[2]) then
    return {'stale'}
  elseif last > tonumber(known[3]) or last < tonumber(known[4]) or sent < tonumber(known[5]) then
    return {'gap'}
  end
  redis.call('HSET', key, 'attempt', attempt)
  take(sid)
  return {'', head(sid)}
"""

# One whose window has ended while it was nobody's, to be ended here.
_ADOPT = """
  local sid = next_argument()
  local deadline = redis.call('ZSCORE', deadlines, sid)
  if not deadline or tonumber(deadline) > now then
    return {}
  end
  redis.call('ZREM', deadlines, sid)
  if redis.call('HGET', session(sid), 'node') ~= '' then
    return {}
  end
  take(sid)
  return head(sid)
"""

# After the session and the fence: the highest number that the asker knows of (nothing: whatever there is), why it ends,
# and how many are told in one go that it leaves its groups (nothing: all). Where there is more, that must be looked at
# first; and from then on nobody gets it any more who would find it in some of its groups.
_EXPIRE = """
  local key = session(sid)
  local known, why, work = next_argument(), next_argument(), tonumber(next_argument()) or math.huge
  local left, are_more = leave_some(sid, work)
  local all = redis.call('HMGET', key, 'sent', 'node', 'client_id')
  if are_more or known ~= '' and tonumber(all[1]) > tonumber(known) then
    if left > 0 then
      redis.call('HSET', key, 'ending', why)
    end
    pass_on()
    return {'behind', told, texts}
  end
  redis.call('DEL', key, prefix .. 'm:' .. sid)
  redis.call('SREM', sids_of(all[2]), sid)
  redis.call('SREM', prefix .. 'c:' .. all[3], sid)
  redis.call('ZREM', deadlines, sid)
  if why ~= '' then
    redis.call('SET', prefix .. 'x:' .. sid, why, 'EX', 3600)
  end
  local answer = carry_out()
  forget(sid, '+')
  redis.call('DEL', log(sid))
  return answer
"""

#: What changes something, by its name.
FLEET_ASKED = {
    name: _HEAD + body + TAIL
    for name, body in {
        "fleet open": _OPEN,
        "fleet append": APPEND,
        "fleet handle": OWNED + HANDLE,
        "fleet confirm": OWNED + _CONFIRM,
        "fleet detach": OWNED + DETACH,
        "fleet take_over": _TAKE_OVER,
        "fleet claim": _CLAIM,
        "fleet adopt": _ADOPT,
        "fleet expire": OWNED + _EXPIRE,
    }.items()
}

# ARGV: the prefix, the node, the two bounds, the script's own.
_READING = "local prefix, at = ARGV[1], 2\n" + _COMMON

# ARGV: the session, the number after which.
_REPLAY = """
local sid = next_argument()
if redis.call('EXISTS', session(sid)) == 0 then
  return {'!', 'the session is not in the store'}
end
local kept = {}
for _, entry in ipairs(redis.call('XRANGE', log(sid), math.max(0, next_argument() + 1), '+')) do
  local seq, receipt = string.match(entry[1], '^%d+'), entry[2][4]
  if receipt ~= '' and redis.call('SISMEMBER', prefix .. 'r:' .. receipt, sid .. ' ' .. seq) == 0 then
    receipt = ''
  end
  kept[#kept + 1] = {seq, entry[2][2], receipt}
end
return kept
"""

# A node is there: `stay` or `leave`, for how many ms its lease holds, for how many a session that is nobody's is kept,
# an epoch for contents that have none, how many sessions are looked at at most. The answer: the epoch; whether its
# lease had ended (then what is its own may be nobody's by now); the sessions that are nobody's, of which the window
# has ended; whether there is more to do; in how many ms the next lease ends.
_TEND = """
is_answered = false
local mode, lease, window, epoch = next_argument(), tonumber(next_argument()), next_argument(), next_argument()
local slice = tonumber(next_argument())
redis.call('SETNX', prefix .. 'epoch', epoch)

-- Nobody was heard for two refreshes: Redis was away from all, or its clock was set. Nobody is to be blamed for that.
local heard = tonumber(redis.call('GET', prefix .. 'heard') or now)
if now < heard or now - heard > lease * 2 / 3 then
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', nodes, '(0', '+inf')) do
    redis.call('ZADD', nodes, now + lease, one)
  end
end
redis.call('SET', prefix .. 'heard', now)

local ends = tonumber(redis.call('ZSCORE', nodes, node) or 0)
local has_ended = ends <= now and 1 or 0
redis.call('ZADD', nodes, mode == 'leave' and 0 or now + lease, node)

-- What nodes that are gone have left is nobody's, and kept for a window from now.
local left = slice
while left > 0 do
  local dead = redis.call('ZRANGEBYSCORE', nodes, '-inf', now, 'LIMIT', 0, 1)[1]
  if not dead then
    break
  end
  for _, sid in ipairs(redis.call('SPOP', sids_of(dead), left)) do
    left = left - 1
    if redis.call('HGET', session(sid), 'node') == dead then
      redis.call('HSET', session(sid), 'node', '')
      redis.call('ZADD', deadlines, now + window, sid)
    end
  end
  if left > 0 then
    for _, client in ipairs(redis.call('SPOP', prefix .. 'q:' .. dead, left)) do
      left = left - 1
      redis.call('SREM', prefix .. 'p:' .. client, dead)
    end
  end
  if left > 0 then
    left = sweep_places(dead, left)
  end
  if redis.call('EXISTS', sids_of(dead), prefix .. 'q:' .. dead, prefix .. 'y:' .. dead) == 0 then
    redis.call('ZREM', nodes, dead)
  end
end
pass_on()

local due = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, slice)
local next_end = redis.call('ZRANGEBYSCORE', nodes, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
return {redis.call('GET', prefix .. 'epoch'), has_ended, due, left > 0 and 0 or 1, next_end and next_end - now or lease}
"""

# A node has these sessions, with these fences: those that are still its own are it from now on, whatever became of its
# lease. For each how far it was sent, and has handled; -1 where it is not there, -2 where somebody else has it.
_KEEP = """
local answer = {}
while at <= #ARGV do
  local sid, fence = next_argument(), next_argument()
  local known = redis.call('HMGET', session(sid), 'sent', 'handled')
  if not known[1] then
    answer[#answer + 1] = {-1, -1}
  elseif not_held(sid, fence) then
    answer[#answer + 1] = {-2, -2}
  else
    redis.call('SADD', sids_of(node), sid)
    redis.call('HSET', session(sid), 'node', node)
    redis.call('ZREM', deadlines, sid)
    answer[#answer + 1] = {tonumber(known[1]), tonumber(known[2])}
  end
end
return answer
"""

# Client ids that have connections without a session here (1), or none any more (0).
_PLAIN = """
while at <= #ARGV do
  local client, are_there = next_argument(), next_argument() == '1'
  redis.call(are_there and 'SADD' or 'SREM', prefix .. 'p:' .. client, node)
  redis.call(are_there and 'SADD' or 'SREM', prefix .. 'q:' .. node, client)
end
return {}
"""

_MEMBERS = """
return redis.call('HLEN', prefix .. 'gc:' .. next_argument())
"""

#: What only reads, or may be done again.
FLEET_READING = {
    "fleet replay": _READING + _REPLAY,
    "fleet tend": _READING + GROUPS + _TEND,
    "fleet keep": _READING + _KEEP,
    "fleet plain": _READING + _PLAIN,
    "fleet members": _READING + _MEMBERS,
}
