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
