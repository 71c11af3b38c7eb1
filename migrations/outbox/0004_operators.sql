-- What operators steer, and what relays tell them.

-- A relay that has a row here delivers nothing. Looked at about once a second, beside the deliveries.
create table outbox.pause (
  relay  text        primary key references outbox.relay (name),
  since  timestamptz not null default clock_timestamp(),
  who    text        not null,
  reason text        not null
);

-- What each relay process says of itself: what `aftercommit status` shows and the log cannot tell. Written about once a
-- second by a connection of its own, never by a delivery. Unlogged, as it is worth nothing after a crash; the room
-- left in each page lets updates stay in it.
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
  primary key (relay, process)
) with (fillfactor = 20);

-- The audit is read from its end, and by time.
create index audit_at_idx on outbox.audit (at);
