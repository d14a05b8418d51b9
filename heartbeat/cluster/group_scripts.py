"""What Redis does for the groups of a fleet: who is in each, and what each of these hears.

A part of the scripts of `fleet_scripts`, so that whatever is said in a group is said with the note that it was handled,
and whoever ends leaves his groups with that. A name of a group and a client id are texts of JSON here, as they stand
in an event. Of a member that nobody carries the number of what he missed is kept, and not what he missed.

The keys, behind the prefix of the sessions:

| key | what it is |
| --- | --- |
| `g:NAME` | hash: each place in a group, and its client id; a place is a sid, or `NODE/ID` for a page without one |
| `gc:NAME` | hash: each client id in it, and of how many places; those with one are its `members` |
| `gm:NAME` | hash: the sids that have missed something, and how many messages |
| `y:NODE` | set of `ID NAME`: the places of a node's connections without a session |

A session has a mark `group:NAME` for each that it is in.

Published to one node: `gLENGTH:EVENT`, and who hears it there, in pairs: a sid and the number that the event has in
that session, or `/ID` and 0.
"""

from __future__ import annotations

__all__ = ["GROUPS"]

#: What scripts know that have to do with groups. It needs what is common to the scripts of a fleet.
GROUPS = """
-- What was appended to sessions of this node, but for what it has appended by itself: sid, seq, what, receipt. What is
-- the payload; or where it stands among the arguments; or, below 0, among the texts.
local told, texts = {}, {}
-- Whether the asker is told by the answer; else all are told on their channels.
local is_answered = true
-- Of each node, and each text: who hears it there.
local heard = {}

local function group(kind, name)
  return prefix .. kind .. ':' .. name
end

-- The node of a place that has no session, and the id that it has there.
local function plain_place(place)
  return string.match(place, '^(.*)/(.*)$')
end

local function mark_of(name)
  return 'group:' .. name
end

local function event(name, action, client, more)
  texts[#texts + 1] = '{"type":"ongroupchat","group":' .. name .. ',"action":"' .. action .. '","from":' .. client
    .. more .. ',"members":' .. redis.call('HLEN', group('gc', name)) .. '}'
  return #texts
end

local function missed_text(name, missed)
  texts[#texts + 1] = '{"type":"ongroupchat","group":' .. name .. ',"missed":' .. missed .. '}'
  return #texts
end

local function is_heard_at(of, text, place, seq)
  local there = heard[of] or {}
  heard[of] = there
  local places = there[text] or {}
  there[text] = places
  places[#places + 1] = place
  places[#places + 1] = seq
end

-- Append a text to a session of which so much is known.
local function put(sid, owner, sent, bytes, text, is_alone)
  redis.call('HSET', session(sid), 'sent', sent, 'bytes', bytes)
  redis.call('XADD', log(sid), sent .. '-0', 'p', texts[text], 'r', '')
  if owner == node and is_answered then
    told[#told + 1] = {sid, sent, -text, ''}
  elseif owner ~= '' and is_alone then
    is_heard_at(owner, text, sid, sent)
  elseif owner ~= '' then
    tell(owner, 'p' .. sid)
  end
end

-- A place hears a text of a group, of which it has missed so many; who has no room for it misses it. A session that
-- nobody carries comes back to half of its bound at most, and after it to the number of the rest.
local function hear(name, place, text, missed, is_member)
  local at_node, id = plain_place(place)
  if at_node then
    is_heard_at(at_node, text, '/' .. id, 0)
    return
  end
  local known = redis.call('HMGET', session(place), 'sent', 'confirmed', 'bytes', 'detached_at', 'node')
  if not known[1] then
    return
  end
  local sent, count, bytes, size = tonumber(known[1]), known[1] - known[2], tonumber(known[3]), #texts[text]
  local is_away = known[4] or known[5] == ''
  local is_half_full = (count + 1) * 2 > kept_messages or (bytes + size) * 2 > kept_bytes
  if is_away and (missed > 0 or is_half_full) or count >= kept_messages or bytes + size + 256 > kept_bytes then
    if is_member then
      redis.call('HINCRBY', group('gm', name), place, 1)
    end
    return
  end
  if missed == 0 then
    put(place, known[5], sent + 1, bytes + size, text, true)
    return
  end
  local before = missed_text(name, missed)
  put(place, known[5], sent + 1, bytes + #texts[before], before, false)
  if count + 1 >= kept_messages then
    redis.call('HSET', group('gm', name), place, 1)
    return
  end
  redis.call('HDEL', group('gm', name), place)
  put(place, known[5], sent + 2, bytes + #texts[before] + size, text, false)
end

-- One place alone hears a text.
local function tell_one(name, place, text)
  local client = redis.call('HGET', group('g', name), place)
  hear(name, place, text, tonumber(redis.call('HGET', group('gm', name), place) or 0), client)
end

-- All places hear it; how many these are.
local function tell_all(name, text)
  local missed, misses = {}, redis.call('HGETALL', group('gm', name))
  for at = 1, #misses, 2 do
    missed[misses[at]] = tonumber(misses[at + 1])
  end
  local places = redis.call('HKEYS', group('g', name))
  for _, place in ipairs(places) do
    hear(name, place, text, missed[place] or 0, true)
  end
  return #places
end

local function join(name, place, client, more, most, is_again)
  local places, at_node, id = group('g', name), plain_place(place)
  if redis.call('HEXISTS', places, place) == 1 then
    if not is_again then
      tell_one(name, place, event(name, 'join', client, more))
    end
    return 1
  elseif not at_node and redis.call('EXISTS', session(place)) == 0 then
    return 0
  elseif redis.call('HLEN', places) >= most then
    return 2
  end
  redis.call('HSET', places, place, client)
  local is_first = redis.call('HINCRBY', group('gc', name), client, 1) == 1
  if at_node then
    redis.call('SADD', prefix .. 'y:' .. at_node, id .. ' ' .. name)
    -- One whose lease has ended meanwhile, and was swept, is swept again until it says that it is there.
    redis.call('ZADD', nodes, 'NX', now, at_node)
  else
    redis.call('HSET', prefix .. 'm:' .. place, mark_of(name), '0')
  end
  -- Another tab of somebody who is in it already is no news to the others.
  local text = event(name, 'join', client, more)
  if is_first then
    tell_all(name, text)
  else
    tell_one(name, place, text)
  end
  return 1
end

-- A place is in a group no more, and hears of that if it is to; how many others do. Nothing where it was not in it.
local function leave(name, place, more, is_told)
  local client = redis.call('HGET', group('g', name), place)
  if not client then
    return
  end
  redis.call('HDEL', group('g', name), place)
  redis.call('HDEL', group('gm', name), place)
  local is_last = redis.call('HINCRBY', group('gc', name), client, -1) <= 0
  if is_last then
    redis.call('HDEL', group('gc', name), client)
  end
  local at_node, id = plain_place(place)
  if at_node then
    redis.call('SREM', prefix .. 'y:' .. at_node, id .. ' ' .. name)
  else
    redis.call('HDEL', prefix .. 'm:' .. place, mark_of(name))
  end
  if not (is_last or is_told) then
    return 0
  end
  local text = event(name, 'leave', client, more)
  local others = is_last and tell_all(name, text) or 0
  if is_told then
    tell_one(name, place, text)
  end
  return others
end

-- A session that ends leaves its groups, as many as so much work allows. How many these were; whether there are more.
local function leave_some(sid, work)
  local left = 0
  for _, mark in ipairs(redis.call('HKEYS', prefix .. 'm:' .. sid)) do
    if string.sub(mark, 1, 6) == 'group:' then
      if work <= 0 then
        return left, true
      end
      work = work - 1 - (leave(string.sub(mark, 7), sid, '', false) or 0)
      left = left + 1
    end
  end
  return left, false
end

local function say(name, place, more)
  local client = redis.call('HGET', group('g', name), place)
  return client and tell_all(name, event(name, 'say', client, more))
end

-- A session is told how much it has missed in a group, whatever room it has.
local function own_up(name, sid)
  local missed = redis.call('HGET', group('gm', name), sid)
  local known = redis.call('HMGET', session(sid), 'sent', 'bytes', 'node')
  if missed and known[1] then
    redis.call('HDEL', group('gm', name), sid)
    local text = missed_text(name, missed)
    put(sid, known[3], known[1] + 1, known[2] + #texts[text], text, true)
  end
end

-- Whoever is at a node that has died, or has stopped, leaves; so much work is done at most. What is left of that.
local function sweep_places(dead, work)
  while work > 0 do
    local one = redis.call('SPOP', prefix .. 'y:' .. dead)
    if not one then
      break
    end
    local id, name = string.match(one, '^(%S+) (.*)$')
    work = work - 1 - math.ceil((leave(name, dead .. '/' .. id, '', false) or 0) / 5)
  end
  return work
end

-- Tell all nodes what is heard there.
local function pass_on()
  for of, there in pairs(heard) do
    for text = 1, #texts do
      if there[text] then
        tell(of, 'g' .. #texts[text] .. ':' .. texts[text] .. table.concat(there[text], ' '))
      end
    end
  end
end
"""
