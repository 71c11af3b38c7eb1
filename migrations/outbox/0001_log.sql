-- The outbox log: the events of applications, and how far each relay has delivered them. The hot path updates
-- and deletes nothing; partitions are emptied by TRUNCATE (src/log/rotate.rs). Works on PostgreSQL 13 and
-- later, without extensions, triggers or superuser rights.
--
-- Names are resolved in pg_catalog alone, here and in every function. If others may create objects in a
-- schema of the search path, their operator can fit better than pg_catalog's, and would run with the rights
-- of the log's users.
set local search_path = pg_catalog, pg_temp;

-- Tells which programs work with this schema, so that an upgrade need not restart everything at once. A
-- program that knows at least this version of the schema works with the schema as it is now. A migration that
-- keeps everything that older programs use leaves this function alone. A migration that removes something
-- puts its own number here.
create function outbox.serves_from() returns bigint
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$ begin return 1; end $$;

-- The log's identity: one row. Redis carries the id, so that two logs on one Redis are told apart. `rebase
-- --copy` replaces it.
create table outbox.log (
  only_row          boolean     primary key default true constraint is_the_only_row check (only_row),
  id                uuid        not null default gen_random_uuid(),
  -- pg_control_system().system_identifier: xids mean nothing in another cluster, so a log that was moved is
  -- refused.
  system_identifier bigint      not null,
  -- pg_database.oid: in another database of the cluster the log is a copy, and is refused too.
  database_oid      oid         not null,
  -- The format of rows and positions. A program refuses a format above the one that it knows.
  format            integer     not null,
  created_at        timestamptz not null default now()
);
insert into outbox.log (system_identifier, database_oid, format)
select c.system_identifier, d.oid, 1
from pg_control_system() c join pg_database d on d.datname = current_database();
comment on table outbox.log is 'Which log this is: one row.';

-- How long one slot takes rows before the next one does. `aftercommit migrate` replaces it from [outbox]
-- rotation_seconds. An append calls it and slot_at, so the planner puts their bodies in place of the calls.
-- It does that only for functions without settings: they pin no search path, and name the schema of every
-- function and operator instead.
create function outbox.rotation_seconds() returns integer
language sql stable parallel safe as $$ select 86400 $$;

-- Returns which of the eight slots takes the rows of a transaction that began at this time. It is only a
-- hint. Rotation looks at the rows that a slot really holds, so a clock that jumps or a long transaction does
-- no harm.
create function outbox.slot_at(at timestamptz) returns smallint
language sql stable parallel safe as $$
  select (
    pg_catalog.floor(
      pg_catalog.date_part('epoch', $1) operator(pg_catalog./) outbox.rotation_seconds()::float8
    )::bigint operator(pg_catalog.&) 7::bigint
  )::smallint
$$;

-- Appending -------------------------------------------------------------------------------------------------

-- The rules of an event. The functions that append check them, and no constraint does: Postgres reads a
-- CHECK anew for each statement, which took as long as two whole rows of a plain table. A row that the log's
-- owner inserts past the functions is parked by the relay if it is no event.
--
-- The planner puts the body in place of each call: see rotation_seconds. No pattern counts, because '{1,200}'
-- takes 25 times as long as '+' and the length.
create function outbox.is_event(topic text, type text, payload json, headers jsonb) returns boolean
language sql immutable parallel safe as $$
  select coalesce(
    $1 collate "C" operator(pg_catalog.~) '^[A-Za-z0-9:._-]+$'
      and pg_catalog.octet_length($1) operator(pg_catalog.<=) 200
      and $1 operator(pg_catalog.<>) all (array['.', '..'])
      and $2 collate "C" operator(pg_catalog.~) '^[A-Za-z0-9._-]+$'
      and pg_catalog.octet_length($2) operator(pg_catalog.<=) 100
      and $2 operator(pg_catalog.<>) all (
        array['reset', 'refused', 'token_expired', 'revoked', 'skipped', 'error', 'open'])
      and pg_catalog.octet_length($3::text) operator(pg_catalog.<=) 1048576
      and ($4 is null
           or pg_catalog.jsonb_typeof($4) operator(pg_catalog.=) 'object'
              and pg_catalog.octet_length($4::text) operator(pg_catalog.<=) 16384),
    false)
$$;

-- The size of an event, by which batches are cut, so that no payload is fetched to learn it.
create function outbox.bytes_of(payload json, headers jsonb) returns integer
language sql immutable parallel safe as $$
  select pg_catalog.octet_length($1::text)
    operator(pg_catalog.+) coalesce(pg_catalog.octet_length($2::text), 0)
$$;

-- Whether this transaction has taken a resume token that calls the transaction's own events seen. A later
-- event of the transaction would be hidden from the token's page. The setting ends with the transaction.
create function outbox.token_is_taken() returns boolean
language sql stable parallel safe as $$
  select coalesce(pg_catalog.current_setting('outbox.token_is_taken', true), '') operator(pg_catalog.=) 'yes'
$$;

-- Refuses what is no event, in one sentence that names the rule and quotes nothing of the payload.
create function outbox.refuse_event(topic text, type text, payload json, headers jsonb, event_id uuid)
returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  refused text; rule text;
begin
  if topic is null or type is null or payload is null or event_id is null then
    refused := 'null';
    rule := 'topic, type, payload and event id are never null (a payload may be the JSON value null)';
  elsif topic collate "C" !~ '^[A-Za-z0-9:._-]+$' or octet_length(topic) > 200 or topic in ('.', '..') then
    refused := format('the topic ''%s''', regexp_replace(left(topic, 60) collate "C", '[^ -~]', '?', 'g'));
    rule := 'a topic has 1 to 200 characters of A-Z a-z 0-9 : . _ - and is neither . nor ..';
  elsif type collate "C" !~ '^[A-Za-z0-9._-]+$' or octet_length(type) > 100 then
    refused := format('the type ''%s''', regexp_replace(left(type, 60) collate "C", '[^ -~]', '?', 'g'));
    rule := 'a type has 1 to 100 characters of A-Z a-z 0-9 . _ -';
  elsif octet_length(payload::text) > 1048576 then
    refused := format('a payload of %s bytes', octet_length(payload::text));
    rule := 'a payload has at most 1048576: store large data elsewhere and send a reference';
  elsif jsonb_typeof(headers) <> 'object' then
    refused := format('headers that are of type %s', jsonb_typeof(headers));
    rule := 'headers are a JSON object';
  elsif octet_length(headers::text) > 16384 then
    refused := format('headers of %s bytes', octet_length(headers::text));
    rule := 'headers have at most 16384';
  elsif outbox.token_is_taken() then
    refused := format('the type ''%s''', type);
    rule := 'this transaction took a resume token after its first write: take it after the last append';
  else
    refused := format('the type ''%s''', type);
    rule := 'the server and the browser use reset, refused, token_expired, revoked, skipped, error and open '
            'themselves';
  end if;
  raise check_violation using message = format('outbox.append refuses %s: %s', refused, rule);
end
$$;

create sequence outbox.event_id_seq as bigint cache 1;

create table outbox.event (
  -- The first column, because defaults are evaluated in column order: a row must take its id after its
  -- transaction has an xid. The reading rule (outbox.window_rows) needs that.
  xid        xid8        not null default pg_current_xact_id(),
  id         bigint      not null default nextval('outbox.event_id_seq') constraint id_fits check (id > 0),
  slot       smallint    not null default outbox.slot_at(now()),
  event_id   uuid        not null default gen_random_uuid(),
  topic      text        not null,
  type       text        not null,
  payload    json        not null,
  headers    jsonb,
  created_at timestamptz not null default now(),
  -- outbox.bytes_of, written by those who append. A row without it counts as the largest.
  bytes      integer     not null default 1048576
) partition by list (slot);

alter sequence outbox.event_id_seq owned by outbox.event.id;
create index event_id_idx on outbox.event (id);
-- (xid, id), so that the rows of one late transaction are read in order, however many they are.
create index event_xid_idx on outbox.event (xid, id);

create table outbox.event_0 partition of outbox.event for values in (0);
create table outbox.event_1 partition of outbox.event for values in (1);
create table outbox.event_2 partition of outbox.event for values in (2);
create table outbox.event_3 partition of outbox.event for values in (3);
create table outbox.event_4 partition of outbox.event for values in (4);
create table outbox.event_5 partition of outbox.event for values in (5);
create table outbox.event_6 partition of outbox.event for values in (6);
create table outbox.event_7 partition of outbox.event for values in (7);

-- The table has no primary key, and Postgres refuses to update a published table without a replica identity.
-- So a publication for all tables would make `aftercommit rebase` impossible, the only program that updates
-- rows of the log. An insert writes no more to the WAL for it. Partitions do not inherit it.
alter table outbox.event   replica identity full;
alter table outbox.event_0 replica identity full;
alter table outbox.event_1 replica identity full;
alter table outbox.event_2 replica identity full;
alter table outbox.event_3 replica identity full;
alter table outbox.event_4 replica identity full;
alter table outbox.event_5 replica identity full;
alter table outbox.event_6 replica identity full;
alter table outbox.event_7 replica identity full;

comment on table outbox.event is
  'The log: one row an event, append-only. Write it with outbox.append in the transaction that changes '
  'the state.';

-- The whole interface for applications in any language. Writers have no other right on the log. Runs as the
-- log's owner, so that no writer chooses a row's xid, id, slot or time.
create function outbox.append(
  topic text, type text, payload json, headers jsonb default null, event_id uuid default gen_random_uuid()
) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if $5 is null or not outbox.is_event($1, $2, $3, $4) or outbox.token_is_taken() then
    perform outbox.refuse_event($1, $2, $3, $4, $5);
  end if;
  insert into outbox.event (topic, type, payload, headers, event_id, bytes)
  values ($1, $2, $3, $4, $5, outbox.bytes_of($3, $4));
  return $5;
end
$$;
comment on function outbox.append(text, text, json, jsonb, uuid) is
  'Appends an event to the log in the caller''s transaction and returns its event id. Hold the lock that '
  'orders the topic (the aggregate''s row) first.';

create function outbox.append(
  topic text, type text, payload jsonb, headers jsonb default null, event_id uuid default gen_random_uuid()
) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  return outbox.append($1, $2, $3::text::json, $4, $5);
end
$$;

-- For a literal without a type, or a text that a driver binds.
create function outbox.append(
  topic text, type text, payload text, headers jsonb default null, event_id uuid default gen_random_uuid()
) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  parsed json;
begin
  begin
    parsed := $3::json;
  exception when data_exception or program_limit_exceeded then
    -- Postgres's own message would quote the payload.
    raise check_violation using message = 'outbox.append refuses the payload: it is not JSON';
  end;
  return outbox.append($1, $2, parsed, $4, $5);
end
$$;

-- Appends several events in the order given, in one statement. Without event ids each gets a random one.
create function outbox.append_all(
  topics text[], types text[], payloads json[], headers jsonb[] default null, event_ids uuid[] default null
) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if $5 is null then
    event_ids := array(select gen_random_uuid() from unnest($1, $2, $3));
  end if;
  -- Shorter arrays are filled up with nulls, which are refused.
  perform outbox.refuse_event(given.topic, given.type, given.payload, given.headers, given.event_id)
  from unnest($1, $2, $3, $4, $5) given (topic, type, payload, headers, event_id)
  where given.event_id is null or outbox.token_is_taken()
     or not outbox.is_event(given.topic, given.type, given.payload, given.headers);
  -- Defaults (xid, id) are evaluated above the sort, so ids follow the order given.
  insert into outbox.event (topic, type, payload, headers, event_id, bytes)
  select given.topic, given.type, given.payload, given.headers, given.event_id,
         outbox.bytes_of(given.payload, given.headers)
  from unnest($1, $2, $3, $4, $5) with ordinality given (topic, type, payload, headers, event_id, place)
  order by given.place;
end
$$;
comment on function outbox.append_all is
  'Appends events in the order of the arrays, as outbox.append does for one.';

-- For a topic whose writers share no row: makes the transactions that append to it follow each other.
create function outbox.lock_topic(topic text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('outbox.topic:' || $1, 0::bigint));
end
$$;
comment on function outbox.lock_topic is
  'Waits until no other transaction holds this topic, and holds it until the caller''s transaction ends.';

-- Positions -------------------------------------------------------------------------------------------------

-- One row a relay. Its position is in outbox.checkpoint.
create table outbox.relay (
  name       text        primary key constraint name_fits check (name collate "C" ~ '^[A-Za-z0-9._-]{1,60}$'),
  -- The key that the leader locks (src/log/lead.rs). Random, and replaced if a stranger holds it.
  lead_key   bigint      not null
                           default ('x' || right(replace(gen_random_uuid()::text, '-', ''), 16))
                                   ::bit(64)::bigint,
  -- The log's highest id at the relay's last rebase. Clients may have received events up to it in an earlier
  -- epoch, also where neither the position nor Redis shows that.
  rebased_id bigint      not null default 0,
  -- Whether a server of this relay's Redis Cluster lacks events that only the log still has, although the
  -- position has passed them. Rotation keeps them, also the rotation of another relay.
  lacks_events boolean   not null default false,
  -- Whether a rebase for another relay has changed the log, and has not looked at this relay's Redis. The relay
  -- delivers nothing before a rebase of its own.
  rebase_needed boolean  not null default false,
  created_at timestamptz not null default now()
);

-- One row for each step of a relay. The newest row (highest n) is its whole position. See
-- src/log/checkpoint.rs.
create table outbox.checkpoint (
  relay         text        not null references outbox.relay (name),
  n             bigint      not null,
  slot          smallint    not null,
  -- The slot of row n + 1. The writer of row n chooses it. So all relays that continue from row n insert into
  -- one partition, where the primary key lets only one of them in.
  next_slot     smallint    not null constraint next_slot_fits check (next_slot >= 0 and next_slot < 16),
  -- When this relay began to write to this slot.
  slot_since    timestamptz not null default clock_timestamp(),
  -- All rows that `lower` sees have been delivered; high_id is the highest id of these.
  lower         pg_snapshot not null,
  lower_horizon xid8        not null,
  high_id       bigint      not null,
  -- The open window, if there is one: the rows that `upper` sees and `lower` does not, in order of id,
  -- delivered up to after_id.
  upper         pg_snapshot,
  upper_horizon xid8,
  after_id      bigint      not null,
  -- The id of the next event in Redis.
  epoch         bigint      not null,
  next_seq      bigint      not null,
  created_at    timestamptz not null default clock_timestamp(),
  constraint window_is_whole check ((upper is null) = (upper_horizon is null)),
  -- The fence: two relays that both believe they lead cannot both write row n + 1.
  primary key (relay, n, slot)
) partition by list (slot);

create table outbox.checkpoint_0  partition of outbox.checkpoint for values in (0);
create table outbox.checkpoint_1  partition of outbox.checkpoint for values in (1);
create table outbox.checkpoint_2  partition of outbox.checkpoint for values in (2);
create table outbox.checkpoint_3  partition of outbox.checkpoint for values in (3);
create table outbox.checkpoint_4  partition of outbox.checkpoint for values in (4);
create table outbox.checkpoint_5  partition of outbox.checkpoint for values in (5);
create table outbox.checkpoint_6  partition of outbox.checkpoint for values in (6);
create table outbox.checkpoint_7  partition of outbox.checkpoint for values in (7);
create table outbox.checkpoint_8  partition of outbox.checkpoint for values in (8);
create table outbox.checkpoint_9  partition of outbox.checkpoint for values in (9);
create table outbox.checkpoint_10 partition of outbox.checkpoint for values in (10);
create table outbox.checkpoint_11 partition of outbox.checkpoint for values in (11);
create table outbox.checkpoint_12 partition of outbox.checkpoint for values in (12);
create table outbox.checkpoint_13 partition of outbox.checkpoint for values in (13);
create table outbox.checkpoint_14 partition of outbox.checkpoint for values in (14);
create table outbox.checkpoint_15 partition of outbox.checkpoint for values in (15);

comment on table outbox.checkpoint is
  'How far each relay has delivered the log: one row a step, the highest n of a relay is its position.';

-- The newest checkpoint of each relay. Reads one primary key from its end for each relay, however many rows
-- there are.
create view outbox.position as
  select newest.*
  from outbox.relay r
  cross join lateral (
    select c.* from outbox.checkpoint c where c.relay = r.name order by c.n desc limit 1
  ) newest;

-- Whether a position (the last four arguments) calls the row (id, xid) delivered. The only place that knows.
--
-- `lower` alone does not decide: in a log that was moved, newer rows can have lower xids, which the old
-- snapshot seems to see. Without a position (nulls) nothing is delivered.
--
-- The planner puts the body in place of each call, which it does only for a function without settings. So
-- this function pins no search path, and names the schema of every function and operator instead.
create function outbox.is_delivered(
  id bigint, xid xid8, high_id bigint, lower pg_snapshot, after_id bigint, upper pg_snapshot
) returns boolean
language sql immutable parallel safe as $$
  select coalesce(
    ($1 operator(pg_catalog.<=) $3 and pg_catalog.pg_visible_in_snapshot($2, $4))
    or ($1 operator(pg_catalog.<=) $5 and pg_catalog.pg_visible_in_snapshot($2, $6)),
    false)
$$;

-- Returns the slot of the checkpoint after one in `slot`, to which the relay has written since `since`. It
-- stays the same for rotation_seconds. Then it is the next empty slot, or the same one if no slot is empty.
create function outbox.slot_after(slot smallint, since timestamptz) returns smallint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  other smallint;
begin
  if clock_timestamp() < since + make_interval(secs => outbox.rotation_seconds()::float8) then
    return $1;
  end if;
  for further in 1..15 loop
    other := ($1::integer + further) % 16;
    if not exists (select from outbox.checkpoint c where c.slot = other) then
      return other;
    end if;
  end loop;
  return $1;
end
$$;

-- Reading ---------------------------------------------------------------------------------------------------

-- The reading rule: returns the rows of a window in order of id, from after_id on. A window holds the rows
-- that `upper` sees and `lower` does not. They are found by index alone, in two parts that cannot overlap:
--
-- 1. Late rows, id <= high_id: their transactions were running when `lower` was taken. Those with an xid
--    below its xmax are in its xip. But a snapshot's xmax is the latest *completed* xid plus one, so
--    transactions with an xid from xmax on may have been running too, and may have taken ids. So all xids
--    from xmax up to the horizon, an xid assigned after the snapshot, are searched as well. Without that part
--    their rows are lost.
-- 2. New rows, id > high_id: `lower` sees none of them, because high_id is the highest id that it sees. So an
--    xid that somebody wrote into a row by hand cannot hide the row.
--
-- Rows are never ordered by xid. A transaction can take its xid before another one that then commits first on
-- the same key. Ids are taken under the key's lock, xids are not.
--
-- The settings make it use index scans and keep its plan. That suits the log, also if it was just filled and
-- has no statistics. The result stays in memory: a batch of rows, whose large payloads are only pointers yet.
create function outbox.window_rows(
  lower pg_snapshot, lower_horizon xid8, high_id bigint, upper pg_snapshot, after_id bigint, max_rows bigint
) returns setof outbox.event
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
set plan_cache_mode = force_generic_plan set work_mem = '64MB' as $$
begin
  return query select w.* from (
    (
      select late.*
      from (
        select pg_snapshot_xip($1) as xid
        union all
        select n::text::xid8
        from generate_series(pg_snapshot_xmax($1)::text::bigint, $2::text::bigint - 1::bigint) n
      ) running
      cross join lateral (
        -- Compared and ordered as (xid, id), so that only the index on both can serve. With `xid =
        -- running.xid order by id` a planner without statistics walks the index on id through all delivered
        -- rows.
        select e.* from outbox.event e
        where (e.xid, e.id) > (running.xid, $5) and (e.xid, e.id) <= (running.xid, $3)
        order by e.xid, e.id
        limit $6
      ) late
      -- Checked before the rows are read: one open transaction can have millions of them.
      where pg_visible_in_snapshot(running.xid, $4)
    )
    union all
    (
      select e.* from outbox.event e
      where e.id > greatest($3, $5) and pg_visible_in_snapshot(e.xid, $4)
      order by e.id
      limit $6
    )
  ) w
  order by w.id
  limit $6;
end
$$;

-- Returns rows that contradict a position, because the log was not written by outbox.append and its sequence
-- alone:
-- - behind: appended after everything that the position calls delivered, with an id that it calls delivered.
--   The sequence was set back (setval, `truncate ... restart identity`), or somebody chose the id.
-- - above: the id is above the sequence's last value. All later appends would get lower ids.
-- - unborn: the transaction is far from having begun. (A row of a transaction that is near is an `above` row
--   by the time that the transaction begins.)
--
-- Without such rows this takes a few index look-ups; the rows of the window are walked in the index alone.
create function outbox.contradictions(lower_horizon xid8, high_id bigint, max_rows bigint)
returns table (row_id bigint, row_xid xid8, cause text)
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
set plan_cache_mode = force_generic_plan as $$
declare
  taken bigint;
  unborn xid8 := (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1048576::bigint)::text::xid8;
begin
  -- Read after this statement's snapshot was taken, so no visible row can be ahead of it.
  select case when s.is_called then s.last_value else s.last_value - 1::bigint end
    into taken from outbox.event_id_seq s;
  return query
  select found.id, found.xid, found.cause
  from (
    (
      select e.id, e.xid, 'behind' as cause from outbox.event e
      where (e.xid, e.id) >= ($1, -9223372036854775807) and e.id <= $2
      order by e.xid, e.id limit $3
    )
    union all
    (select e.id, e.xid, 'above' from outbox.event e where e.id > taken order by e.id limit $3)
    union all
    (
      select e.id, e.xid, 'unborn' from outbox.event e
      where (e.xid, e.id) >= (unborn, -9223372036854775807)
      order by e.xid, e.id limit $3
    )
  ) found
  order by found.id limit $3;
end
$$;

-- Returns signs of contradictions at a bounded cost, for readers that only look. Differs from
-- outbox.contradictions in two points: it looks for `behind` rows only in the ten transactions right after
-- the position, one row for each, and it reports a sequence that stands below high_id, before that does harm.
create function outbox.signs_of_contradiction(lower_horizon xid8, high_id bigint, max_rows bigint)
returns table (row_id bigint, cause text)
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
set plan_cache_mode = force_generic_plan as $$
declare
  taken bigint;
  begun bigint := $1::text::bigint;
  ahead bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
begin
  select case when s.is_called then s.last_value else s.last_value - 1::bigint end
    into taken from outbox.event_id_seq s;
  if taken < $2 then
    return query select taken, 'sequence';
  end if;
  return query
  (
    select late.id, 'behind'
    from generate_series(begun, least(begun + 9::bigint, ahead - 1::bigint)) n
    cross join lateral (
      select e.id, e.xid from outbox.event e
      where (e.xid, e.id) > (n::text::xid8, -9223372036854775807) and (e.xid, e.id) <= (n::text::xid8, $2)
      order by e.xid, e.id limit 1
    ) late
    limit $3
  )
  union all
  (select e.id, 'above' from outbox.event e where e.id > taken order by e.id limit $3)
  union all
  (
    select e.id, 'unborn' from outbox.event e
    where (e.xid, e.id) >= ((ahead + 1048576::bigint)::text::xid8, -9223372036854775807)
    order by e.xid, e.id limit $3
  );
end
$$;

-- Whether there is a row after a position: a row to deliver, or a row that reading will refuse.
create function outbox.has_more(lower pg_snapshot, lower_horizon xid8, high_id bigint) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return exists (select from outbox.window_rows($1, $2, $3, pg_current_snapshot(), 0::bigint, 1::bigint))
      or exists (select from outbox.contradictions($2, $3, 1::bigint));
end
$$;

-- Returns the transactions that were running at a snapshot and have ended since, without a rollback. Open and
-- rolled back transactions are left out, because they can have inserted millions of rows that nobody sees.
create function outbox.ended_since(at pg_snapshot, horizon xid8) returns setof xid8
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return query select running.xid
  from (
    select pg_snapshot_xip($1) as xid
    union all
    select n::text::xid8
    from generate_series(pg_snapshot_xmax($1)::text::bigint, $2::text::bigint - 1::bigint) n
  ) running
  where case when pg_visible_in_snapshot(running.xid, pg_current_snapshot())
             then pg_xact_status(running.xid) is distinct from 'aborted' else false end;
end
$$;

-- Operators -------------------------------------------------------------------------------------------------

-- Events that Redis refuses for a reason of their own, and the later events of their topics, in order of seq.
-- A settled row stays as long as its row in the log: a restore leaves out discarded events, and operators can
-- look up the fate of an event. A released event counts as delivered.
create table outbox.parked (
  relay      text        not null references outbox.relay (name),
  epoch      bigint      not null,
  seq        bigint      not null,
  id         bigint      not null,
  event_id   uuid        not null,
  topic      text        not null,
  type       text        not null,
  payload    json        not null,
  created_at timestamptz not null constraint created_at_fits
                           check (created_at >= '1970-01-01 00:00:00+00'
                                  and created_at < '10000-01-01 00:00:00+00'),
  reason     text        not null,
  parked_at  timestamptz not null default clock_timestamp(),
  -- Whether clients may have received the event: it was published before it was parked, or by a release, in a
  -- try whose end nobody knows. Redis, which has forgotten it by now, cannot be asked.
  may_have_arrived boolean not null default false,
  -- The event's transaction; unknown (null) where the row could not be read.
  xid        xid8,
  -- An operator's request for this row. The relay carries it out, because only the relay knows which events
  -- of the topic are in progress. Only `discard_arrived` gives up an event that may have arrived.
  requested  text        constraint requested_is_known
                           check (requested in ('release', 'discard', 'discard_arrived')),
  settled_as text        constraint settled_as_is_known check (settled_as in ('discarded', 'released')),
  settled_at timestamptz,
  -- The number that the event's newest release used up. The event is published under its own number.
  release_epoch bigint,
  release_seq   bigint,
  primary key (relay, epoch, seq)
);
create index parked_release_idx on outbox.parked (relay, release_epoch, release_seq)
  where release_seq is not null;
create index parked_topic_idx on outbox.parked (relay, topic, epoch, seq) where settled_as is null;
create index parked_requested_idx on outbox.parked (relay) where requested is not null and settled_as is null;
create index parked_id_idx on outbox.parked (id);

-- Events that Redis has although a relay's position does not call them delivered: Postgres went back to
-- before their delivery was written down. They use up numbers, and are not published again. Deleted with
-- their rows. An id alone does not name a row here: a sequence that was set back gives it once more.
create table outbox.delivered_before (
  relay    text   not null references outbox.relay (name),
  id       bigint not null,
  event_id uuid   not null,
  primary key (relay, id, event_id)
);

-- The actions of operators, and their reasons. Read from its end, and by time.
create table outbox.audit (
  id        bigint      generated always as identity primary key,
  at        timestamptz not null default clock_timestamp(),
  who       text        not null,
  action    text        not null,
  reason    text        not null,
  selection jsonb       not null,
  events    bigint      not null
);
create index audit_at_idx on outbox.audit (at);

-- The credentials that operators have revoked (src/ops/revoke.rs): of each user, topic and token the newest
-- revocation. SSE servers keep all rows in memory. A row may be deleted once every credential that was issued
-- before it has expired.
create table outbox.revocation (
  kind    text        not null constraint kind_is_known check (kind in ('user', 'topic', 'token')),
  subject text        not null,
  at      timestamptz not null default clock_timestamp(),
  who     text        not null,
  reason  text        not null,
  primary key (kind, subject)
);

-- A relay with a row here delivers nothing. The relay looks about once a second, beside the deliveries.
create table outbox.pause (
  relay  text        primary key references outbox.relay (name),
  since  timestamptz not null default clock_timestamp(),
  who    text        not null,
  reason text        not null
);

-- The status of each relay process: facts for `aftercommit status` that the log does not hold. Written about
-- once a second on a connection of its own, never by a delivery. Unlogged, because it is worth nothing after
-- a crash. The free space in each page lets updates stay in the page.
create unlogged table outbox.heartbeat (
  relay            text        not null,
  process          text        not null,
  role             text        not null,
  at               timestamptz not null default clock_timestamp(),
  published        bigint      not null,
  rate             float8      not null,
  error            text,
  error_at         timestamptz,
  rotation_blocked text,
  listen           text        not null,
  -- How long the process is silent after this heartbeat, if it sleeps.
  asleep_seconds   float8,
  primary key (relay, process)
) with (fillfactor = 20);

-- One row a replay (src/ops/replay.rs). Its events are fixed when it begins: those that its relay had
-- delivered by then, and so never a copy of this replay. Each batch of copies moves done_id in its own
-- transaction, so that a replay that dies repeats nothing and omits nothing.
create table outbox.replay (
  id         bigint      generated always as identity primary key,
  relay      text        not null,
  who        text        not null,
  reason     text        not null,
  selection  jsonb       not null,
  started_at timestamptz not null default clock_timestamp(),
  -- The relay's position when the replay began, as in outbox.checkpoint, and the last row that may be
  -- repeated.
  lower      pg_snapshot not null,
  upper      pg_snapshot,
  after_id   bigint      not null,
  through_id bigint      not null,
  -- When the relay's deliveries were looked at. An event that was parked then is not repeated, whatever has
  -- become of it since.
  seen_at    timestamptz not null,
  -- The number of events that it found when it began.
  selected   bigint      not null,
  -- All rows up to done_id are done. `copied` counts their copies, whose row ids are from first_copy to
  -- last_copy.
  done_id    bigint      not null,
  copied     bigint      not null default 0,
  first_copy bigint,
  last_copy  bigint,
  moved_at   timestamptz not null default clock_timestamp(),
  finished   boolean     not null default false,
  -- The key that its process locks. Random, as in outbox.relay.
  lock_key   bigint      not null
                           default ('x' || right(replace(gen_random_uuid()::text, '-', ''), 16))
                                   ::bit(64)::bigint
-- The free space in each page lets updates stay in the page.
) with (fillfactor = 20);

comment on table outbox.replay is
  'One row a replay: who asked for it and why, and how far it is.';

-- Returns the oldest kept checkpoint of a relay whose position has delivered the row (xid, id), or null.
-- Positions only grow, so this is a binary search over n.
create function outbox.delivered_in(relay text, xid xid8, id bigint) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  low bigint; high bigint; middle bigint; probe record; found bigint;
begin
  select min(c.n), max(c.n) into low, high from outbox.checkpoint c where c.relay = $1;
  while low <= high loop
    middle := low + (high - low) / 2::bigint;
    select c.n, outbox.is_delivered($3, $2, c.high_id, c.lower, c.after_id, c.upper) as covers
      into probe
      from outbox.checkpoint c
      where c.relay = $1 and c.n >= middle and c.n <= high
      order by c.n limit 1;
    if probe.n is null then
      high := middle - 1::bigint;
    elsif probe.covers then
      found := probe.n;
      high := middle - 1::bigint;
    else
      low := probe.n + 1::bigint;
    end if;
  end loop;
  return found;
end
$$;

create function outbox.delivered_at(relay text, xid xid8, id bigint) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return (
    select c.created_at from outbox.checkpoint c
    where c.relay = $1 and c.n = outbox.delivered_in($1, $2, $3));
end
$$;

-- Resume tokens ---------------------------------------------------------------------------------------------

-- Returns which events the calling statement sees, as a short text for a URL: see src/event/resume_token.rs.
-- A page that reads its state in the same statement (or in the same repeatable read transaction) gives the
-- text to its stream, and gets exactly the events that its state does not hold yet.
--
-- Must be stable: a volatile function would take a newer snapshot than the statement that calls it.
--
-- - In a transaction that has written, the state holds the transaction's own writes, which no snapshot says.
--   So the token names the transaction, and later appends of it are refused.
-- - On a standby Postgres leaves out the transactions that were running (pg_current_snapshot, up to 18 at
--   least). So the token names the ones from xmin on whose events the statement sees; a few at most, unless a
--   transaction has been open for long. With more than a thousand it says that they are unknown.
create function outbox.resume_token() returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  now_seen  pg_snapshot := pg_current_snapshot();
  low       bigint := pg_snapshot_xmin(now_seen)::text::bigint;
  high      bigint := pg_snapshot_xmax(now_seen)::text::bigint;
  own       xid8 := pg_current_xact_id_if_assigned();
  at        timestamptz := now();
  named     bigint[];
  events    bigint;
  among     text;
begin
  if own is not null then
    perform set_config('outbox.token_is_taken', 'yes', true);
  end if;
  if pg_is_in_recovery() then
    at := least(at, pg_last_xact_replay_timestamp());
    select array_agg(distinct e.xid), count(*) into named, events
    from (
      select e.xid::text::bigint as xid from outbox.event e
      where (e.xid, e.id) >= (low::text::xid8, -9223372036854775807)
        and (e.xid, e.id) < (high::text::xid8, -9223372036854775807)
      order by e.xid, e.id limit 10000
    ) e;
    among := case when events = 10000 or cardinality(named) > 1000 then 'u' else 's' end;
  else
    named := array(select pg_snapshot_xip(now_seen)::text::bigint);
    among := 'r';
  end if;
  return concat_ws('~', '1',
    (select replace(l.id::text, '-', '') from outbox.log l),
    floor(date_part('epoch', at) * 1000::float8)::bigint,
    low, high - low,
    case when among = 'u' then among else among || array_to_string(array(
      -- Each as its distance from the one before, so that the text stays short.
      select n.xid - lag(n.xid, 1, low) over (order by n.xid) from unnest(named) n (xid) order by n.xid), '.')
    end,
    coalesce(own::text, ''),
    -- A relay that needs a rebase still has the transaction numbers of another cluster in Redis. Its next epoch
    -- makes all of them older than the token.
    (select string_agg(p.relay || '~' || (p.epoch + r.rebase_needed::integer)::text, '~' order by p.relay)
     from outbox.position p join outbox.relay r on r.name = p.relay));
end
$$;
comment on function outbox.resume_token() is
  'Returns which events this statement sees, for ?resume= of a stream: call it in the statement that reads '
  'the state.';

-- The state of each event for each relay: pending, delivered, parked or discarded, and since when. Before the
-- first relay has run there is one row an event, without a relay.
create view outbox.event_status as
  select e.id, e.event_id, e.topic, e.type, e.created_at, e.xid, p.relay,
         case when parked.settled_as = 'released' then 'delivered'
              when parked.settled_as is not null then parked.settled_as
              when parked.seq is not null then 'parked'
              when d.delivered then 'delivered'
              else 'pending' end as state,
         case when parked.seq is not null then coalesce(parked.settled_at, parked.parked_at)
              when d.delivered then outbox.delivered_at(p.relay, e.xid, e.id)
              else e.created_at end as since
  from outbox.event e
  left join outbox.position p on true
  cross join lateral (
    select outbox.is_delivered(e.id, e.xid, p.high_id, p.lower, p.after_id, p.upper) as delivered
  ) d
  left join outbox.parked parked on parked.relay = p.relay and parked.id = e.id;

-- No role may call a function of this schema without a grant. `aftercommit grants` prints the rights that
-- each role needs.
revoke all on all functions in schema outbox from public;
