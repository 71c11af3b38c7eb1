-- The outbox log: what an application appends, and how far each relay has delivered it.
-- Nothing here is ever updated or deleted on the hot path; partitions are emptied by TRUNCATE (src/outbox/rotate.rs).
-- Works on PostgreSQL 13 and later, without extensions, triggers or superuser rights.

-- How long one slot takes rows before the next one does. `aftercommit migrate` replaces it from [outbox] rotation_seconds.
create function outbox.rotation_seconds() returns integer
language sql immutable parallel safe as $$ select 86400 $$;

-- Which of the eight slots takes the rows of a transaction that began at this time. A hint for rotation, never a
-- promise: rotation looks at what a slot really holds, so a clock that jumps or a long transaction does no harm.
create function outbox.slot_at(at timestamptz) returns smallint
language sql stable parallel safe as $$
  select ((floor(extract(epoch from at) / outbox.rotation_seconds())::bigint % 8 + 8) % 8)::smallint
$$;

create sequence outbox.event_id_seq as bigint cache 1;

create table outbox.event (
  -- First, because defaults are evaluated in column order: a row's id must be taken after its transaction has an xid.
  -- The reading rule (src/outbox/read.rs) rests on it.
  xid        xid8        not null default pg_current_xact_id(),
  id         bigint      not null default nextval('outbox.event_id_seq'),
  slot       smallint    not null default outbox.slot_at(now()),
  event_id   uuid        not null default gen_random_uuid(),
  topic      text        not null constraint topic_fits check (topic collate "C" ~ '^[A-Za-z0-9:._-]{1,200}$'),
  type       text        not null constraint type_fits check (type collate "C" ~ '^[A-Za-z0-9._-]{1,100}$'),
  payload    json        not null constraint payload_fits check (octet_length(payload::text) <= 1048576),
  headers    jsonb       constraint headers_are_an_object check (jsonb_typeof(headers) = 'object'),
  created_at timestamptz not null default now()
) partition by list (slot);

alter sequence outbox.event_id_seq owned by outbox.event.id;
create index event_id_idx on outbox.event (id);
-- With id behind it, so that one late transaction's rows are read in order however many they are.
create index event_xid_idx on outbox.event (xid, id);

create table outbox.event_0 partition of outbox.event for values in (0);
create table outbox.event_1 partition of outbox.event for values in (1);
create table outbox.event_2 partition of outbox.event for values in (2);
create table outbox.event_3 partition of outbox.event for values in (3);
create table outbox.event_4 partition of outbox.event for values in (4);
create table outbox.event_5 partition of outbox.event for values in (5);
create table outbox.event_6 partition of outbox.event for values in (6);
create table outbox.event_7 partition of outbox.event for values in (7);

comment on table outbox.event is 'The log: one row an event, append-only. Write it with outbox.append in the transaction that changes the state.';

-- The whole interface for an application in any language.
create function outbox.append(topic text, type text, payload json, headers jsonb default null) returns uuid
language sql volatile as $$
  insert into outbox.event (topic, type, payload, headers)
  values (append.topic, append.type, append.payload, append.headers)
  returning event_id
$$;
comment on function outbox.append is 'Appends an event to the log in the caller''s transaction and returns its event id. Hold the lock that orders the topic (the aggregate''s row) first.';

-- For a topic whose writers share no row: makes the transactions that append to it follow each other.
create function outbox.lock_topic(topic text) returns void
language sql volatile as $$ select pg_advisory_xact_lock(hashtextextended('outbox.topic:' || lock_topic.topic, 0)) $$;
comment on function outbox.lock_topic is 'Waits until no other transaction holds this topic and holds it until the end of the caller''s.';

-- One row a relay: where it belongs. The position itself is in outbox.checkpoint.
create table outbox.relay (
  name              text        primary key constraint name_fits check (name collate "C" ~ '^[A-Za-z0-9._-]{1,60}$'),
  -- pg_control_system().system_identifier: xids mean nothing in another cluster, so a moved log is refused.
  system_identifier bigint      not null,
  created_at        timestamptz not null default now()
);

-- One row for each step of a relay; the newest (highest n) is its whole position. See src/outbox/checkpoint.rs.
create table outbox.checkpoint (
  relay         text        not null references outbox.relay (name),
  n             bigint      not null,
  slot          smallint    not null constraint slot_follows_n check (slot = (n >> 17) & 15),
  -- Everything that `lower` sees has been delivered; high_id is the highest id among it.
  lower         pg_snapshot not null,
  lower_horizon xid8        not null,
  high_id       bigint      not null,
  -- The open window, if any: what `upper` sees and `lower` does not, in order of id, delivered up to after_id.
  upper         pg_snapshot,
  upper_horizon xid8,
  after_id      bigint      not null,
  -- The id that the next event gets in Redis.
  epoch         bigint      not null,
  next_seq      bigint      not null,
  created_at    timestamptz not null default clock_timestamp(),
  constraint window_is_whole check ((upper is null) = (upper_horizon is null)),
  -- The fence: two relays that both believe they lead cannot both write row n + 1. (slot is a function of n.)
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

comment on table outbox.checkpoint is 'How far each relay has delivered the log: one row a step, the highest n of a relay is its position.';

-- Events that Redis refuses for a reason of their own, and the later ones of their topics, in order of seq.
create table outbox.parked (
  relay      text        not null references outbox.relay (name),
  epoch      bigint      not null,
  seq        bigint      not null,
  id         bigint      not null,
  event_id   uuid        not null,
  topic      text        not null,
  type       text        not null,
  payload    json        not null,
  created_at timestamptz not null,
  reason     text        not null,
  parked_at  timestamptz not null default clock_timestamp(),
  -- False for an event that was set aside alone ([relay] on_poison = "skip"): its topic flows on without it.
  holds_topic boolean    not null,
  -- What an operator asked for. The relay does it, as it alone knows what of the topic is under way.
  wish       text        constraint wish_is_known check (wish in ('release', 'discard')),
  primary key (relay, epoch, seq)
);
create index parked_topic_idx on outbox.parked (relay, topic, epoch, seq);
create index parked_wish_idx on outbox.parked (relay) where wish is not null;

-- What operators did, and why.
create table outbox.audit (
  id        bigint      generated always as identity primary key,
  at        timestamptz not null default clock_timestamp(),
  who       text        not null,
  action    text        not null,
  reason    text        not null,
  selection jsonb       not null,
  events    bigint      not null
);

-- The reading rule: the rows of a window, in order of id, from after_id on. A window is what `upper` sees and `lower`
-- does not. It is found by index alone, in two parts that cannot overlap:
--
-- 1. late rows, id <= high_id: their transactions were running when `lower` was taken. Those with an xid below its xmax
--    are its xip. But a snapshot's xmax is the latest *completed* xid plus one, so transactions with an xid above it may
--    have been running too, and may have taken ids: all xids from xmax up to the horizon, an xid assigned after the
--    snapshot, are asked for as well. Without that part their rows are lost.
-- 2. new rows, id > high_id.
--
-- Rows are never ordered by xid: a transaction can take its xid before another one that then commits first on the same
-- key. Ids are taken under the key's lock, xids are not.
create function outbox.window_rows(
  lower pg_snapshot, lower_horizon xid8, high_id bigint, upper pg_snapshot, after_id bigint, max_rows bigint
) returns setof outbox.event
language sql stable as $$
  select w.* from (
    (
      select late.*
      from (
        select pg_snapshot_xip($1) as xid
        union all
        select n::text::xid8 from generate_series(pg_snapshot_xmax($1)::text::bigint, $2::text::bigint - 1) n
      ) running
      cross join lateral (
        -- Compared and ordered as (xid, id), so that only the index on both can serve: with `xid = running.xid order by id`
        -- a planner without statistics walks the index on id through everything already delivered.
        select e.* from outbox.event e
        where (e.xid, e.id) > (running.xid, $5) and (e.xid, e.id) <= (running.xid, $3)
        order by e.xid, e.id
        limit $6
      ) late
      where pg_visible_in_snapshot(late.xid, $4)
    )
    union all
    (
      select e.* from outbox.event e
      where e.id > greatest($3, $5) and not pg_visible_in_snapshot(e.xid, $1) and pg_visible_in_snapshot(e.xid, $4)
      order by e.id
      limit $6
    )
  ) w
  order by w.id
  limit $6
$$;

-- The newest checkpoint of each relay: a walk down one primary key for each, however many rows there are.
create view outbox.position as
  select newest.*
  from outbox.relay r
  cross join lateral (
    select c.* from outbox.checkpoint c where c.relay = r.name order by c.n desc limit 1
  ) newest;

-- When a relay had delivered the row (xid, id), or null: the oldest kept checkpoint that covers it. Positions only
-- grow, so this is a binary search over n.
create function outbox.delivered_at(relay text, xid xid8, id bigint) returns timestamptz
language plpgsql stable as $$
declare
  low bigint; high bigint; middle bigint; probe record; found_at timestamptz;
begin
  select min(c.n), max(c.n) into low, high from outbox.checkpoint c where c.relay = delivered_at.relay;
  while low <= high loop
    middle := low + (high - low) / 2;
    select c.n, c.created_at,
           pg_visible_in_snapshot(delivered_at.xid, c.lower)
           or (c.upper is not null and delivered_at.id <= c.after_id and pg_visible_in_snapshot(delivered_at.xid, c.upper)) as covers
      into probe
      from outbox.checkpoint c
      where c.relay = delivered_at.relay and c.n >= middle and c.n <= high
      order by c.n limit 1;
    if probe.n is null then
      high := middle - 1;
    elsif probe.covers then
      found_at := probe.created_at;
      high := middle - 1;
    else
      low := probe.n + 1;
    end if;
  end loop;
  return found_at;
end
$$;

-- The state of each event for each relay: pending, delivered or parked, and since when. Before the first relay has run
-- there is one row an event, without a relay.
create view outbox.event_status as
  select e.id, e.event_id, e.topic, e.type, e.created_at, e.xid, p.relay,
         case when parked.seq is not null then 'parked'
              when d.delivered then 'delivered'
              else 'pending' end as state,
         case when parked.seq is not null then parked.parked_at
              when d.delivered then outbox.delivered_at(p.relay, e.xid, e.id)
              else e.created_at end as since
  from outbox.event e
  left join outbox.position p on true
  cross join lateral (
    select coalesce(
      pg_visible_in_snapshot(e.xid, p.lower)
      or (p.upper is not null and e.id <= p.after_id and pg_visible_in_snapshot(e.xid, p.upper)), false) as delivered
  ) d
  left join outbox.parked parked on parked.relay = p.relay and parked.id = e.id;
