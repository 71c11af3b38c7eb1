-- What became of an event that was set aside, also after an operator released it.

-- A released event keeps its row as well, for as long as its row in the log: when it was parked, why, and until when. It
-- counts as delivered. Its payload is not kept twice.
alter table outbox.parked
  add column settled_at timestamptz,
  drop constraint settled_as_is_known,
  add constraint settled_as_is_known check (settled_as in ('discarded', 'copied', 'released'));

create or replace view outbox.event_status as
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
    select coalesce(
      pg_visible_in_snapshot(e.xid, p.lower)
      or (p.upper is not null and e.id <= p.after_id and pg_visible_in_snapshot(e.xid, p.upper)), false) as delivered
  ) d
  left join outbox.parked parked on parked.relay = p.relay and parked.id = e.id;
