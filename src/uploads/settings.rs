//! The `[uploads]` section.

use serde::Deserialize;

/// The `[uploads]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The largest number of photos in a session.
    pub max_photos: u32,
}
