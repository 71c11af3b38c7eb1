-- Which programs may work with this schema, so that an upgrade need not restart everything in one moment.

-- A program that knows this version of the schema, or a later one, works with the schema as it is now. A migration that
-- leaves to older programs all that they use changes nothing here; one that takes something away puts its own number here.
create function outbox.serves_from() returns bigint
language sql immutable parallel safe as $$ select 7::bigint $$;
