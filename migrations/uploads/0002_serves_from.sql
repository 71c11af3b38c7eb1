-- Which programs may work with this schema: see outbox.serves_from().
create function uploads.serves_from() returns bigint
language sql immutable parallel safe as $$ select 2::bigint $$;
