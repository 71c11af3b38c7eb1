//! Placeholder until the first integration test.
