-- The events that the old relay has not delivered, in their order, before any later one.
select outbox.append(topic, type, payload, null, id)
from (
  select aggregatetype || ':' || aggregateid as topic, type, coalesce(payload::text, 'null')::json as payload, id
  from outboxevent_before
  order by position  -- the column that tells the order of an aggregate's events
) rest;
delete from outboxevent_before;
