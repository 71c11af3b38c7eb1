-- Publishes a chunk of events in order: the whole chunk, or a prefix of it and the reason for the stop.
--
-- KEYS[1]   the relay's top, a hash: `id`, the highest number that the relay has used up; `event`, the event
--           with that number (or -); and `recorded`, the highest number that a release or a restore has used
--           up: Postgres had recorded it by then
-- KEYS[2]   the owner of these keys, a hash: `format`; `log`, the log's identity; `relay`, the name of the
--           relay whose numbers these are; `ttl`, for how many seconds it keeps histories; `raised_at`, when
--           that time was last made longer (milliseconds), and `kept_before`, how many seconds it was at least
--           before that; and, after a repair that had to leave out events,
--           `lost`, up to which number histories may miss events, and `lost_at` (milliseconds)
-- KEYS[3…]  the history streams of the chunk's topics. In a cluster, where the keys of a call must be of one
--           slot, they are arguments: the script then runs with the flag allow-cross-slot-keys, at the server
--           that has all of these slots.
--
-- ARGV[1]   version of the format
-- ARGV[2]   identity of the log
-- ARGV[3]   epoch of the chunk's numbers
-- ARGV[4]   first number of the chunk
-- ARGV[5]   last number that the chunk uses up (0: none)
-- ARGV[6]   seconds that a history is kept after its last event
-- ARGV[7]   normal; release (the events keep earlier numbers); restore (Redis has forgotten the events); or
--           restore-release
-- ARGV[8]   the highest number that cannot be restored ('' if there is none)
-- ARGV[9]   the number that this server has reached, as far as the relay knows: the one before the chunk's
--           first, or in a cluster that of the last call to this server
-- ARGV[10]  restored events with a number above this one (a release's own) have never been published: so
--           their bare payloads are published too ('' if all of them have been)
-- ARGV[11]  in a cluster, the slots that this server's top speaks for, as far as the relay knows; '' for a
--           single server
-- ARGV[12]  the number up to which the relay has made sure that the events of this epoch are of its log
-- ARGV[13]  the relay's name
-- ARGV[14]  number of topics
-- then two for each topic, and in a cluster three:
--           its public channel
--           the id of its previous event; with a '?' before it if the history's TTL is due; '?' alone if the
--           relay does not know the event
--           its history stream
-- then eight for each event:
--           index of its topic; its id; event uuid; type; payload; about how many entries the history keeps;
--           the envelope's JSON text between the uuid and the payload; its transaction ('' if that is not
--           known)
--
-- The loop runs once an event, and Redis serves nobody else meanwhile. So it reads arguments where it needs
-- them, and parses an id only where its number decides.
--
-- Returns {events done, verdict, detail}. The verdicts and their details:
-- OK        "<live> <public>": how many subscribers received the messages
-- FORMAT    the other format that the keys have
-- FOREIGN   the other log that the keys belong to
-- RELAY     the other relay of the log that the keys belong to
-- GAP       top: it lacks numbers before this chunk, or this epoch's claim, or it has passed the release's
--           number, or numbers that the relay does not vouch for, or speaks for other slots
-- OTHER     the stream and id of another event under the number of this one
-- AHEAD     top, which is of a later epoch
-- CONFLICT  the stream and id at which another event stands
-- ERROR     Redis's own error, for the event after those done
-- SERVER    Redis's own error, for no event
local KEYS, ARGV, call = KEYS, ARGV, redis.pcall
local format, log = ARGV[1], ARGV[2]
local epoch, first, last = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local ttl, mode, lost = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local known, unpublished_above = tonumber(ARGV[9]), tonumber(ARGV[10])
local slots, vouched, relay, topic_count = ARGV[11], tonumber(ARGV[12]), ARGV[13], tonumber(ARGV[14])
local begun_outlives = 60 -- seconds, as in history.rs
local is_cluster = topic_count > 0 and not KEYS[3]
local a_topic = is_cluster and 3 or 2
local first_event = 15 + topic_count * a_topic
local publish_live = is_cluster and 'SPUBLISH' or 'PUBLISH'
local is_release = mode == 'release' or mode == 'restore-release'
local is_restore = mode == 'restore' or mode == 'restore-release'

local function parse(id)
  local e, s = string.match(id, '^(%d+)-(%d+)')
  return tonumber(e), tonumber(s)
end

local function seq_of(id)
  local _, seq = parse(id)
  return seq
end

local function is_above(one, other)
  local e, s = parse(one)
  local other_e, other_s = parse(other)
  return e > other_e or (e == other_e and s > other_s)
end

local owner = call('HMGET', KEYS[2], 'format', 'log', 'lost', 'lost_at', 'relay', 'ttl', 'kept_before')
if owner.err then return {0, 'SERVER', owner.err .. ' (' .. KEYS[2] .. ')'} end
if owner[1] and owner[1] ~= format then return {0, 'FORMAT', owner[1]} end
if owner[2] and owner[2] ~= log then return {0, 'FOREIGN', owner[2]} end
-- Two relays number the events of one log each in its own way, and a history has one order.
if owner[5] and owner[5] ~= relay then return {0, 'RELAY', owner[5]} end
if owner[3] and not parse(owner[3]) then
  return {0, 'SERVER', 'ERR no relay wrote ' .. owner[3] .. ' (' .. KEYS[2] .. ')'}
end

local topped = call('HMGET', KEYS[1], 'id', 'slots')
if topped.err then return {0, 'SERVER', topped.err .. ' (' .. KEYS[1] .. ')'} end
local top = topped[1]
-- Another leader has divided the slots in another way since. This call may lack events of slots that the top
-- speaks for now, and would move it past them.
if slots ~= '' and topped[2] ~= slots then return {0, 'GAP', top or 'nothing'} end
local top_epoch, top_seq = 0, 0
if top then
  top_epoch, top_seq = parse(top)
  if top_epoch == nil then return {0, 'SERVER', 'ERR no relay wrote ' .. top .. ' (' .. KEYS[1] .. ')'} end
end
local published = 0
if top_epoch == tonumber(epoch) then
  published = top_seq
elseif top_epoch > tonumber(epoch) then
  return {0, 'AHEAD', top}
end
-- Redis went back: by a failover to a replica that lagged, or by a restart without its last writes.
-- Publishing on would leave a hole before these events. An epoch after the first one is claimed by its
-- rebase, or by a repair that marks the loss. A top without the claim has gone back to before it.
local is_claim = is_restore and (last == 0 or lost ~= '')
local is_unclaimed = not is_claim and tonumber(epoch) > 1 and top_epoch < tonumber(epoch)
-- The number of a release is always new. If it is used up already, the call is of a leader that was frozen
-- while another one, and the operator, went on.
local is_late = mode == 'release' and first <= published
-- Some of these numbers are used up: by an earlier try, whose events the relay has compared with its log by
-- now; or by a relay of the same log in another Postgres, a promoted standby or a clone, for other events.
local is_unknown = mode == 'normal' and #ARGV >= first_event and first <= published and published > vouched
if known > published or is_unclaimed or is_late or is_unknown then return {0, 'GAP', top or 'nothing'} end

-- Written at each call. So the owner's hash comes back if it was deleted, and a Redis that takes no writes
-- says so before an event is at stake.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
-- A history from before may have expired already, although one of now would be kept.
local before = tonumber(owner[6] or '')
local raised = {}
if before and before < ttl then
  before = math.min(before, tonumber(owner[7] or '') or before)
  raised = {'raised_at', string.format('%.0f', now_ms), 'kept_before', string.format('%.0f', before)}
end
local owned = call('HSET', KEYS[2], 'format', format, 'log', log, 'relay', relay, 'ttl', ttl, unpack(raised))
if type(owned) == 'table' then return {0, 'SERVER', owned.err} end
if lost ~= '' then
  if owner[3] and is_above(owner[3], lost) then lost = owner[3] end
  local marked = call('HSET', KEYS[2], 'lost', lost, 'lost_at', string.format('%.0f', now_ms))
  if type(marked) == 'table' then return {0, 'SERVER', marked.err} end
elseif owner[3] and now_ms - (tonumber(owner[4] or '') or now_ms) < ttl * 1000 then
  -- Older losses need no mark: a history that lacks such an event has expired, and so has every place before
  -- it.
  lost = owner[3]
else
  lost = nil
end

-- Returns the id of the topic's event before this one, or '' if there is none. If that is not known for sure,
-- returns an id that shows the hole: clients at an earlier place are reset.
local function previous(stream, begun, id)
  local newest = call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  if newest.err then return nil, newest.err end
  local prev = newest[1] and newest[1][1]
  local epoch_of_id, seq = parse(id)
  local below = string.format('%.0f-%.0f', epoch_of_id, seq - 1)
  if not prev then
    local left = call('PTTL', begun)
    if type(left) == 'table' then return nil, left.err end
    -- A history that has expired leaves this key with less. This one has vanished, with all of its entries.
    if left == -1 or left > begun_outlives * 1000 then return below end
  end
  if lost then
    local missing = is_above(lost, below) and below or lost
    if not prev or is_above(missing, prev) then return missing end
  end
  return prev or ''
end

-- Returns the uuid of the event with this id, '' if the entry is no event, and nil if there is no entry.
local function event_at(stream, id)
  local found = call('XRANGE', stream, id, id)
  if found.err then return nil, found.err end
  if #found == 0 then return nil end
  local fields = found[1][2]
  for i = 1, #fields, 2 do
    if fields[i] == 'event' then return fields[i + 1] end
  end
  return ''
end

-- XADD refuses the id because the stream is at or past it. Returns whether this event is the one that stands
-- there.
local function is_repeat(stream, id, uuid)
  local found, err = event_at(stream, id)
  if err then return nil, err end
  if found then return found == uuid end
  -- The entry is not in the history. A restored event is a repeat, whose entry was trimmed. Any other event
  -- is new, so another program has added an entry with a later id. The same holds for a parked event: no
  -- relay publishes a later event of its topic before it.
  return is_restore
end

-- Another key or channel of a topic. As Keys::begun and Keys::live make them.
local function beside(stream, name)
  return string.sub(stream, 1, -1 - string.len('history')) .. name
end

-- Returns the refusal of a message. It must be known before XADD: if the message were refused after XADD, a
-- later call would find the entry, take the event for a repeat and never publish it. (Redis 6 cannot be
-- asked.)
local function forbidden(live, public)
  if not redis.acl_check_cmd then return nil end
  if not redis.acl_check_cmd(publish_live, live, '') then
    return 'NOPERM the relay may not ' .. publish_live .. ' on the channel ' .. live
  end
  if not redis.acl_check_cmd('PUBLISH', public, '') then
    return 'NOPERM the relay may not PUBLISH on the channel ' .. public
  end
end

-- Whether XADD would be taken, and the commands after it would be refused.
local function lacks_right_to_set_ttl(stream)
  return redis.acl_check_cmd and redis.acl_check_cmd('XADD', stream, '*', 'f', 'v')
    and not (redis.acl_check_cmd('SET', beside(stream, 'begun'), '', 'EX', 1)
      and redis.acl_check_cmd('EXPIRE', stream, 1))
end

-- Of each topic, by its index: the id of its previous event, its live channel once it has been prepared, and
-- whether its history's TTL has to be set.
local prevs, lives, needs_ttl = {}, {}, {}

-- Runs once a topic in each call, because permissions can change between two calls and not within one.
local function prepare(t, stream, public, id)
  local live = beside(stream, 'live')
  local refused = forbidden(live, public)
  if refused then return refused end
  local prev = prevs[t] or ARGV[16 + (t - 1) * a_topic]
  if string.sub(prev, 1, 1) == '?' then
    prev, needs_ttl[t] = string.sub(prev, 2), true
    if prev == '' then
      local err
      prev, err = previous(stream, beside(stream, 'begun'), id)
      if err then return err end
    end
  end
  -- In the middle of a slot's move, this key may be at the next server while the history is here still.
  if is_cluster and needs_ttl[t] then
    local begun = call('PTTL', beside(stream, 'begun'))
    if type(begun) == 'table' then return begun.err end
  end
  -- A right that all topics need: the words say so, and nothing is parked.
  if needs_ttl[t] and lacks_right_to_set_ttl(stream) then
    return 'NOPERM the relay is not allowed to run the commands SET and EXPIRE for ' .. stream
  end
  prevs[t] = prev
  lives[t] = live
end

local done, done_id, done_uuid = 0, '0-0', '-'
local live_receivers, public_receivers = 0, 0

-- Writes how far this call has come, whatever its verdict: top must never be behind the histories. (A release
-- that stops in its middle moves nothing, because its number is used up after its last event.)
local function finish(verdict, detail)
  if last > 0 and not (is_release and verdict ~= 'OK') then
    local seq, uuid = seq_of(done_id), done_uuid
    if verdict == 'OK' and (is_release or seq ~= last) then seq, uuid = last, '-' end
    if seq > published or tonumber(epoch) > top_epoch then
      local id = string.format('%s-%.0f', epoch, seq)
      local recorded = mode ~= 'normal' and {'recorded', id} or {}
      local set = call('HSET', KEYS[1], 'id', id, 'event', uuid, unpack(recorded))
      if type(set) == 'table' then return {done, 'SERVER', set.err} end
    end
  elseif last == 0 and is_restore and tonumber(epoch) > top_epoch then
    -- Claims the epoch. From here on a relay of an earlier epoch is refused.
    local set = call('HSET', KEYS[1], 'id', epoch .. '-0', 'event', '-')
    if type(set) == 'table' then return {done, 'SERVER', set.err} end
  end
  return {done, verdict, detail}
end

-- Whether top may have passed some of these numbers.
local some_arrived = mode == 'normal' and first <= published
for a = first_event, #ARGV, 8 do
  local t, id, uuid, payload = tonumber(ARGV[a]), ARGV[a + 1], ARGV[a + 2], ARGV[a + 4]
  local stream, public = KEYS[2 + t] or ARGV[17 + (t - 1) * a_topic], ARGV[15 + (t - 1) * a_topic]
  if some_arrived and seq_of(id) <= published then
    -- Top has passed this number, so the event has arrived, and the relay died or froze before it wrote that.
    -- The event is not added again, also not to a history that has vanished since, which would then seem to
    -- end with it. The history's end is looked up instead.
    local found = event_at(stream, id)
    if found and found ~= uuid then return finish('OTHER', stream .. ' ' .. id) end
    prevs[t], lives[t] = '?', nil
  else
    if not lives[t] then
      local refused = prepare(t, stream, public, id)
      if refused then return finish('ERROR', refused) end
    end
    local prev, added = prevs[t], false
    if not needs_ttl[t] then
      -- The history exists and has a TTL. If it has vanished, the new one needs a TTL of its own.
      added = call('XADD', stream, 'NOMKSTREAM', 'MAXLEN', '~', ARGV[a + 5], id,
        'event', uuid, 'type', ARGV[a + 3], 'payload', payload, 'prev', prev, 'xid', ARGV[a + 7])
      needs_ttl[t] = not added
    end
    if not added then
      added = call('XADD', stream, 'MAXLEN', '~', ARGV[a + 5], id,
        'event', uuid, 'type', ARGV[a + 3], 'payload', payload, 'prev', prev, 'xid', ARGV[a + 7])
    end
    local is_new = added == id
    if not is_new then
      if not string.find(added.err, 'equal or smaller', 1, true) then return finish('ERROR', added.err) end
      local repeated, err = is_repeat(stream, id, uuid)
      if err then return finish('ERROR', err) end
      if not repeated then return finish('CONFLICT', stream .. ' ' .. id) end
    end
    -- Set also for a repeat, because the relay notes that it was set.
    if needs_ttl[t] then
      local set = call('SET', beside(stream, 'begun'), '', 'EX', ttl + begun_outlives)
      if type(set) == 'table' and set.err then return finish('ERROR', set.err) end
      local expiring = call('EXPIRE', stream, ttl)
      if type(expiring) == 'table' then return finish('ERROR', expiring.err) end
      needs_ttl[t] = false
    end
    if is_new then
      -- Envelope first, bare payload second, in one script. So a subscriber to both channels knows that the
      -- bare message right after an envelope is its twin, and that every other bare message came from another
      -- program.
      if prev == '' then prev = 'null' else prev = '"' .. prev .. '"' end
      local receivers = call(publish_live, lives[t],
        '{"id":"' .. id .. '","prev":' .. prev .. ',"event":"' .. uuid .. ARGV[a + 6] .. payload .. '}')
      if type(receivers) == 'table' then return finish('ERROR', receivers.err) end
      live_receivers = live_receivers + receivers
      -- Plain Redis subscribers do not receive restored events again, because they cannot tell a repeat.
      -- Readers of envelopes can, and may have missed the event at the moment when Redis lost it.
      if not is_restore or (unpublished_above and (is_release and first or seq_of(id)) > unpublished_above) then
        receivers = call('PUBLISH', public, payload)
        if type(receivers) == 'table' then return finish('ERROR', receivers.err) end
        public_receivers = public_receivers + receivers
      end
    end
    prevs[t] = id
  end
  done, done_id, done_uuid = done + 1, id, uuid
end

return finish('OK', live_receivers .. ' ' .. public_receivers)
