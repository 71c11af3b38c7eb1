-- The events that the old relay has not delivered, in their order, before any later one.
select outbox.append(
  aggregatetype || ':' || aggregateid, type, coalesce(payload::text, 'null')::json, null, id)
from (
  select * from outboxevent_before
  order by position  -- the column that tells the order of an aggregate's events
) rest;
delete from outboxevent_before;
