-- What repairs need to know about events that were set aside.

-- A parked event that was discarded, or sent on as a copy, keeps its row for as long as its row in the log: when Redis
-- has forgotten everything and is given the log again, that event must not come back.
alter table outbox.parked
  add column settled_as text constraint settled_as_is_known check (settled_as in ('discarded', 'copied'));

drop index outbox.parked_topic_idx;
drop index outbox.parked_wish_idx;
create index parked_topic_idx on outbox.parked (relay, topic, epoch, seq) where settled_as is null;
create index parked_wish_idx on outbox.parked (relay) where wish is not null and settled_as is null;
create index parked_id_idx on outbox.parked (id);

create or replace view outbox.event_status as
  select e.id, e.event_id, e.topic, e.type, e.created_at, e.xid, p.relay,
         case when parked.settled_as is not null then 'discarded'
              when parked.seq is not null then 'parked'
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
