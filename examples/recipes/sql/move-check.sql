-- Old rows that the log would refuse. Run it before the switch: it has to find nothing.
select id, aggregatetype || ':' || aggregateid as topic, type, octet_length(payload::text) as bytes
from outboxevent
where (aggregatetype || ':' || aggregateid) collate "C" !~ '^[A-Za-z0-9:._-]{1,200}$'
   or type collate "C" !~ '^[A-Za-z0-9._-]{1,100}$'
   or type in ('reset', 'refused', 'token_expired', 'revoked', 'skipped', 'error', 'open')
   or octet_length(payload::text) > 1048576;
