begin;
set local lock_timeout = '2s';  -- holds the writers up no longer; if it fails, run it again

-- Waits until the transactions that have written to the table have ended, and keeps others out until the
-- commit. So each event is either in the old table or in the log, and those in the old table came first.
alter table outboxevent rename to outboxevent_before;

-- Writers and the old relay find the view under the old name and need no change.
create view outboxevent as select * from outboxevent_before;

create function outboxevent_to_log() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  topic text := new.aggregatetype || ':' || new.aggregateid;
begin
  new.id := coalesce(new.id, gen_random_uuid());
  perform outbox.lock_topic(topic);  -- not needed where all writers lock the aggregate's row before
  perform outbox.append(topic, new.type, coalesce(new.payload::text, 'null')::json, null, new.id);
  return new;
end
$$;
create trigger to_log instead of insert on outboxevent
  for each row execute function outboxevent_to_log();

-- The rights on the table become rights on the view.
do $$
declare
  right_of record;
begin
  for right_of in
    select privilege_type as name, case grantee when 0 then 'public' else grantee::regrole::text end as role
    from pg_class, aclexplode(relacl) where pg_class.oid = 'outboxevent_before'::regclass
  loop
    execute format('grant %s on outboxevent to %s', right_of.name, right_of.role);
  end loop;
end
$$;
commit;
