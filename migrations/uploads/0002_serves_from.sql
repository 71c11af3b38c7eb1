-- Which programs may work with this schema: see outbox.serves_from().
create function uploads.serves_from() returns bigint
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$ begin return 2; end $$;
