-- The upload application: sessions of photos. The outbox knows nothing of it.

create table uploads.session (
  id             uuid        primary key,
  user_id        uuid        not null,
  total_count    integer     not null check (total_count > 0),
  uploaded_count integer     not null default 0 check (uploaded_count >= 0),
  failed_count   integer     not null default 0 check (failed_count >= 0),
  created_at     timestamptz not null default now(),
  completed_at   timestamptz,
  constraint counts_fit check (uploaded_count + failed_count <= total_count)
);
create index session_user_idx on uploads.session (user_id, created_at);

create table uploads.photo (
  session_id  uuid        not null references uploads.session (id) on delete cascade,
  id          uuid        not null,
  position    integer     not null,
  file_name   text,
  status      text        not null default 'PENDING' check (status in ('PENDING', 'UPLOADED', 'FAILED')),
  fail_reason text,
  settled_at  timestamptz,
  primary key (session_id, id),
  constraint only_failures_have_a_reason check ((status = 'FAILED') = (fail_reason is not null))
);
