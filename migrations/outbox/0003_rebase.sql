-- What a rebase needs to write down (src/outbox/rebase.rs).

-- Events that a relay's position does not know to be delivered and that Redis has all the same: Postgres went back to
-- before their delivery was written down. They use up numbers, and are not published again. Dropped with their rows.
create table outbox.delivered_before (
  relay text   not null references outbox.relay (name),
  id    bigint not null,
  primary key (relay, id)
);
