//! Private Postgres and Redis servers for aftercommit dev and for tests.
