//! The log in Postgres: appending to it, reading it in windows, and remembering how far.
