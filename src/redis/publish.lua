-- Publishes a chunk of events in order: all of it, or a prefix of it and the reason why no more.
--
-- KEYS[1]  the relay's top: the highest number that it has used up and the event that has it, "<epoch>-<seq> <uuid or ->"
-- KEYS[2…] the history streams of the chunk's topics
-- ARGV[1]  epoch    ARGV[2] first number of the chunk    ARGV[3] last number that the chunk uses up (0: none)
-- ARGV[4]  about how many entries a history keeps        ARGV[5] seconds that a history is kept after its last event
-- ARGV[6]  '1': these events have been told before, and Redis has forgotten them since
-- then nine for each event: index of its stream in KEYS, topic, number, event uuid, type, payload,
--          the topic's previous id ('' if there is none, '?' if the relay does not know), how its history stands ('new': it
--          may be, so its TTL is to be set; 'aged': it must still be there, and its TTL is due; 'kept': it must be), what else its envelope says, as members of a JSON object
--
-- Answers {events done, verdict, detail}. The detail of OK is how many subscribers were told: "<live> <public>".
-- Verdicts: OK, GAP (top lacks numbers before this chunk), AHEAD (top is of a
-- later epoch), CONFLICT (another event stands under this number), ERROR (Redis's own error, for the event after those
-- done), SERVER (Redis's own error, for no event).
local epoch, first, last = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local keep, ttl, told_before = ARGV[4], ARGV[5], ARGV[6] == '1'

local top = redis.pcall('GET', KEYS[1])
if type(top) == 'table' then return {0, 'SERVER', top.err} end
local top_epoch, top_seq = 0, 0
if top then
  local e, s = string.match(top, '^(%d+)-(%d+)')
  if e == nil then return {0, 'CONFLICT', KEYS[1] .. ' holds ' .. top} end
  top_epoch, top_seq = tonumber(e), tonumber(s)
end
local published = 0
if top_epoch == tonumber(epoch) then
  published = top_seq
elseif top_epoch > tonumber(epoch) then
  if last > 0 then return {0, 'AHEAD', top} end
  -- Released events that were set aside in an earlier epoch: all of its numbers are behind us.
  published = math.huge
end
-- Redis went back: a failover to a replica that lagged, a restart without its last writes. Publishing on would leave a
-- hole in histories that nobody could ever see.
if first > published + 1 then return {0, 'GAP', top or 'nothing'} end

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
  if seq <= published or told_before then return 'repeat' end
  return 'conflict'
end

-- What would be refused after XADD has to be known before it: an entry in the history that nobody was told of would be
-- taken for a repeat. (Redis 6 cannot be asked.)
local function forbidden(live, topic)
  if not redis.acl_check_cmd then return nil end
  for _, channel in ipairs({live, topic}) do
    if not redis.acl_check_cmd('PUBLISH', channel, '') then
      return 'NOPERM the relay may not PUBLISH on the channel ' .. channel
    end
  end
end

-- Adds an event to its history. One that has vanished (evicted, or deleted) begins with an entry for what is gone, which
-- is trimmed at once: so Redis's own count, which readers go by, says that this history does not hold all there was.
local function add(stream, id, mark, must_be_there, uuid, kind, payload)
  if must_be_there then
    local added = redis.pcall('XADD', stream, 'NOMKSTREAM', 'MAXLEN', '~', keep, id,
      'event', uuid, 'type', kind, 'payload', payload)
    if added then return added, false end
    local marked = redis.pcall('XADD', stream, mark, 'event', '-')
    if type(marked) == 'table' and marked.err then return marked, false end
    return redis.pcall('XADD', stream, 'MAXLEN', '=', 1, id, 'event', uuid, 'type', kind, 'payload', payload), true
  end
  return redis.pcall('XADD', stream, 'MAXLEN', '~', keep, id, 'event', uuid, 'type', kind, 'payload', payload), false
end

local done, newest_uuid, allowed = 0, '-', {}
local told_live, told_public = 0, 0
for a = 7, #ARGV, 9 do
  local stream, topic, seq = KEYS[tonumber(ARGV[a])], ARGV[a + 1], ARGV[a + 2]
  local uuid, kind, payload, prev = ARGV[a + 3], ARGV[a + 4], ARGV[a + 5], ARGV[a + 6]
  local id, live = epoch .. '-' .. seq, 'aftercommit:{' .. topic .. '}:live'
  if prev == '?' then
    local newest = redis.pcall('XREVRANGE', stream, '+', '-', 'COUNT', 1)
    if newest.err then return {done, 'ERROR', newest.err} end
    prev = newest[1] and newest[1][1] or ''
  end
  -- Once for a topic in each call: permissions can change between two, and not within one.
  if not allowed[topic] then
    local refused = forbidden(live, topic)
    if refused then return {done, 'ERROR', refused} end
    allowed[topic] = true
  end
  local history = ARGV[a + 7]
  -- Nothing is there although this number was used up before: what was published is gone, with all that may have been before
  -- it. (For a released event whose topic never had another one that is too cautious, and costs a reset at most.)
  local is_lost = prev == '' and tonumber(seq) <= published and not told_before
  local mark = is_lost and string.format('%s-%.0f', epoch, tonumber(seq) - 1) or prev
  local added, had_vanished = add(stream, id, mark, history ~= 'new' or is_lost, uuid, kind, payload)
  local is_new = true
  if type(added) == 'table' then
    if not string.find(added.err, 'equal or smaller', 1, true) then return {done, 'ERROR', added.err} end
    local how, err = standing(stream, id, tonumber(seq), uuid)
    if err then return {done, 'ERROR', err} end
    if how == 'conflict' then return {done, 'CONFLICT', stream .. ' ' .. id} end
    is_new = false
  end
  -- Also for a repeat: the relay notes that it was set.
  if history ~= 'kept' or had_vanished then
    local expiring = redis.pcall('EXPIRE', stream, ttl)
    if type(expiring) == 'table' then return {done, 'ERROR', expiring.err} end
  end
  if is_new then
    -- Envelope first, bare payload second, in one script: a subscriber to both knows that the bare message right behind
    -- an envelope is its twin, and that any other one came from somebody else.
    local told = redis.pcall('PUBLISH', live,
      '{"id":"' .. id .. '","prev":' .. (prev == '' and 'null' or '"' .. prev .. '"') .. ',"event":"' .. uuid ..
      '","type":"' .. kind .. '",' .. ARGV[a + 8] .. ',"payload":' .. payload .. '}')
    if type(told) == 'table' then return {done, 'ERROR', told.err} end
    told_live = told_live + told
    -- Who listens to bare payloads alone cannot tell a repeat, and has heard what was told before. Who listens to
    -- envelopes can, and may have missed it in the same moment as Redis forgot it.
    if not told_before then
      told = redis.pcall('PUBLISH', topic, payload)
      if type(told) == 'table' then return {done, 'ERROR', told.err} end
      told_public = told_public + told
    end
  end
  done = done + 1
  newest_uuid = tonumber(seq) == last and uuid or '-'
end

if last > published then
  local set = redis.pcall('SET', KEYS[1], epoch .. '-' .. ARGV[3] .. ' ' .. newest_uuid)
  if set.err then return {done, 'SERVER', set.err} end
end
return {done, 'OK', told_live .. ' ' .. told_public}
