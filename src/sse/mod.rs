//! Redis to browsers.
