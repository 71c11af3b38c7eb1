//! Moves the log to a sink, in order: one bounded step, and a loop around it.
