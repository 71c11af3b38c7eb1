//! What every HTTP server here shares.
