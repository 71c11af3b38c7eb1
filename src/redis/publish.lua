-- Publishes a chunk of events in order: all of it, or a prefix of it and the reason why no more.
--
-- KEYS[1]  the relay's top: the highest id that it has published, "<epoch>-<seq>"
-- KEYS[2…] the history streams of the chunk's topics
-- ARGV[1]  epoch    ARGV[2] first number of the chunk    ARGV[3] last number that the chunk uses up
-- ARGV[4]  about how many entries a history keeps        ARGV[5] seconds that a history is kept after its last event
-- ARGV[6]  '1': accept a top that lacks numbers before this chunk (the relay has decided so)
-- then eight for each event: index of its stream in KEYS, topic, number, event uuid, type, payload,
--          the topic's previous id ('' if there is none, '?' if the relay does not know), '1' if the TTL is due
--
-- Answers {events done, verdict, detail}. Verdicts: OK, GAP (top lacks numbers), AHEAD (top is of a later epoch),
-- CONFLICT (another event stands under this number), ERROR (Redis's own error, for the event after those done),
-- SERVER (Redis's own error, for no event).
local epoch, first, last = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local keep, ttl, accept_gap = ARGV[4], ARGV[5], ARGV[6] == '1'

local function parse(id)
  local e, s = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(e), tonumber(s)
end

local top = redis.pcall('GET', KEYS[1])
if type(top) == 'table' then return {0, 'SERVER', top.err} end
local top_epoch, top_seq = 0, 0
if top then
  top_epoch, top_seq = parse(top)
  if top_epoch == nil then return {0, 'CONFLICT', KEYS[1] .. ' holds ' .. top} end
end
if top_epoch > tonumber(epoch) then return {0, 'AHEAD', top} end
local published = top_epoch == tonumber(epoch) and top_seq or 0
if first > published + 1 and not accept_gap then return {0, 'GAP', top or ''} end

-- The number is taken in this stream, or below it: is it by this very event?
local function standing(stream, id, seq, uuid)
  local found = redis.pcall('XRANGE', stream, id, id)
  if found.err then return nil, found.err end
  if #found == 1 then
    local fields = found[1][2]
    for i = 1, #fields, 2 do
      if fields[i] == 'event' and fields[i + 1] == uuid then return 'repeat' end
    end
    return 'conflict'
  end
  -- Not there any more. What this relay has published before and history has trimmed since is a repeat; a number that
  -- it has not reached yet, in a stream that is past it, was written by somebody else.
  if seq <= published then return 'repeat' end
  return 'conflict'
end

local done = 0
for a = 7, #ARGV, 8 do
  local stream, topic, seq = KEYS[tonumber(ARGV[a])], ARGV[a + 1], ARGV[a + 2]
  local uuid, kind, payload, prev = ARGV[a + 3], ARGV[a + 4], ARGV[a + 5], ARGV[a + 6]
  local id = epoch .. '-' .. seq
  if prev == '?' then
    local newest = redis.pcall('XREVRANGE', stream, '+', '-', 'COUNT', 1)
    if newest.err then return {done, 'ERROR', newest.err} end
    prev = newest[1] and newest[1][1] or ''
  end
  local added = redis.pcall('XADD', stream, 'MAXLEN', '~', keep, id, 'event', uuid, 'type', kind, 'payload', payload)
  local is_new = true
  if type(added) == 'table' then
    if not string.find(added.err, 'equal or smaller', 1, true) then return {done, 'ERROR', added.err} end
    local how, err = standing(stream, id, tonumber(seq), uuid)
    if err then return {done, 'ERROR', err} end
    if how == 'conflict' then return {done, 'CONFLICT', stream .. ' ' .. id} end
    is_new = false
  end
  if is_new then
    if ARGV[a + 7] == '1' then
      local expiring = redis.pcall('EXPIRE', stream, ttl)
      if type(expiring) == 'table' then return {done, 'ERROR', expiring.err} end
    end
    -- Envelope first, bare payload second, in one script: a subscriber to both knows that the bare message right behind
    -- an envelope is its twin, and that any other one came from somebody else.
    local told = redis.pcall('PUBLISH', 'aftercommit:{' .. topic .. '}:live',
      '{"id":"' .. id .. '","prev":' .. (prev == '' and 'null' or '"' .. prev .. '"') .. ',"event":"' .. uuid ..
      '","type":"' .. kind .. '","payload":' .. payload .. '}')
    if type(told) == 'table' then return {done, 'ERROR', told.err} end
    told = redis.pcall('PUBLISH', topic, payload)
    if type(told) == 'table' then return {done, 'ERROR', told.err} end
  end
  done = done + 1
end

if tonumber(last) > published then
  local set = redis.pcall('SET', KEYS[1], epoch .. '-' .. last)
  if set.err then return {done, 'SERVER', set.err} end
end
return {done, 'OK', ''}
