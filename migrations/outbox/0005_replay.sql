-- Replays that can be stopped at any moment and go on (src/outbox/replay.rs).

-- One row a replay. What it repeats is fixed when it begins: what its relay had delivered by then, and so never a copy.
-- Each batch of copies moves done_id in its own transaction, so that a replay that dies repeats nothing and omits nothing.
create table outbox.replay (
  id         bigint      generated always as identity primary key,
  relay      text        not null,
  who        text        not null,
  reason     text        not null,
  selection  jsonb       not null,
  started_at timestamptz not null default clock_timestamp(),
  -- The relay's position when it began, as in outbox.checkpoint, and the last row that may be repeated.
  lower      pg_snapshot not null,
  upper      pg_snapshot,
  after_id   bigint      not null,
  through_id bigint      not null,
  -- How many events it found when it began.
  selected   bigint      not null,
  -- All rows up to this one are dealt with; how many copies that made, and between which rows they lie.
  done_id    bigint      not null,
  copied     bigint      not null default 0,
  first_copy bigint,
  last_copy  bigint,
  moved_at   timestamptz not null default clock_timestamp(),
  finished   boolean     not null default false
-- The room left in each page lets the updates stay in it.
) with (fillfactor = 20);

comment on table outbox.replay is 'What was delivered once more: who asked for it and why, and how far it is.';

-- The transactions that were running at a snapshot and can have left rows since: those that ended, and not by a rollback.
-- What one that is still open, or was rolled back, has inserted can be millions of rows that nobody sees.
create function outbox.ended_since(at pg_snapshot, horizon xid8) returns setof xid8
language sql stable as $$
  select running.xid
  from (
    select pg_snapshot_xip($1) as xid
    union all
    select n::text::xid8 from generate_series(pg_snapshot_xmax($1)::text::bigint, $2::text::bigint - 1) n
  ) running
  where case when pg_visible_in_snapshot(running.xid, pg_current_snapshot())
             then pg_xact_status(running.xid) is distinct from 'aborted' else false end
$$;

-- The reading rule of the first migration, which looked through the rows of a late transaction before it asked whether
-- `upper` sees that transaction. It asks first: an open one with five million rows cost every look over a second.
create or replace function outbox.window_rows(
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
      where pg_visible_in_snapshot(running.xid, $4)
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

-- The oldest kept checkpoint of a relay by which the row (xid, id) is delivered, or null. Positions only grow, so this is a
-- binary search over n.
create function outbox.delivered_in(relay text, xid xid8, id bigint) returns bigint
language plpgsql stable as $$
declare
  low bigint; high bigint; middle bigint; probe record; found bigint;
begin
  select min(c.n), max(c.n) into low, high from outbox.checkpoint c where c.relay = delivered_in.relay;
  while low <= high loop
    middle := low + (high - low) / 2;
    select c.n,
           pg_visible_in_snapshot(delivered_in.xid, c.lower)
           or (c.upper is not null and delivered_in.id <= c.after_id and pg_visible_in_snapshot(delivered_in.xid, c.upper)) as covers
      into probe
      from outbox.checkpoint c
      where c.relay = delivered_in.relay and c.n >= middle and c.n <= high
      order by c.n limit 1;
    if probe.n is null then
      high := middle - 1;
    elsif probe.covers then
      found := probe.n;
      high := middle - 1;
    else
      low := probe.n + 1;
    end if;
  end loop;
  return found;
end
$$;

create or replace function outbox.delivered_at(relay text, xid xid8, id bigint) returns timestamptz
language sql stable as $$
  select c.created_at from outbox.checkpoint c
  where c.relay = delivered_at.relay and c.n = outbox.delivered_in(delivered_at.relay, delivered_at.xid, delivered_at.id)
$$;
