//! The `[uploads]` section.

use serde::Deserialize;

/// The `[uploads]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Photos that one session may have.
    pub max_photos: u32,
}
