//! Merges the layers: defaults, then a file, then the environment.
//!
//! `config/default.toml` is compiled in and is the only home of defaults. Layers are merged as tables, so
//! that an unknown key is a problem that names the key, whichever layer it is in. Must not show any value,
//! because any may be a secret.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::{Table, Value};

use super::{Problem, service_links};

/// The commented defaults.
pub(crate) const DEFAULT_TOML: &str = include_str!("../../../../config/default.toml");

/// The prefix of our environment variables.
const PREFIX: &str = "AFTERCOMMIT_";
/// Variables that other programs use as well, with the settings they stand for. An empty one is ignored.
const CONVENTIONAL: [(&str, &str, &str); 3] = [
    ("DATABASE_URL", "database", "url"),
    ("REDIS_URL", "redis", "url"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry", "otlp_endpoint"),
];
/// Variables with the prefix that are not settings. Tests and scripts read them.
const NOT_SETTINGS: [&str; 1] = ["AFTERCOMMIT_CONFIG"];
/// Says where all settings are listed.
const ALL_SETTINGS: &str = "`aftercommit config show --defaults` lists all settings";
/// The largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The merged table, and the problems of merging it.
#[derive(Debug)]
pub(crate) struct Layers {
    /// The defaults, overlaid with all values that could be read.
    pub(crate) table: Table,
    /// Values that could not be read.
    pub(crate) problems: Vec<Problem>,
}

impl Layers {
    /// Reads the defaults, `file` and these variables.
    pub(crate) fn read(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut layers = Self { table: Table::new(), problems: Vec::new() };
        match DEFAULT_TOML.parse() {
            Ok(table) => layers.table = table,
            Err(error) => layers.add_problem(format!("config/default.toml is not valid TOML: {error}")),
        }
        if let Some(path) = file {
            match overlay(path) {
                Ok(overlay) => layers.lay_over(overlay, &path.display().to_string()),
                Err(reason) => {
                    layers.add_problem(format!("the configuration file {} {reason}", path.display()));
                }
            }
        }
        let variables = layers.ours(environment);
        for (conventional, section, key) in CONVENTIONAL {
            let found = variables.iter().find(|(name, value)| name == conventional && !value.is_empty());
            if let Some((_, value)) = found {
                layers.set(section, key, Value::String(value.clone()));
            }
        }
        for (name, value) in &variables {
            layers.lay_variable(name, value);
        }
        layers
    }

    fn add_problem(&mut self, text: impl Into<String>) {
        self.problems.push(Problem::new(text));
    }

    /// Our variables, sorted by name.
    fn ours(&mut self, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
        let mut ours = Vec::new();
        for (name, value) in environment {
            // A name that is not UTF-8 gets a replacement character, and so names no setting.
            let name = name.to_string_lossy().into_owned();
            let is_conventional = CONVENTIONAL.iter().any(|(conventional, ..)| *conventional == name);
            if !is_conventional && !name.starts_with(PREFIX) {
                continue;
            }
            match value.into_string() {
                Ok(value) => ours.push((name, value)),
                Err(_) => {
                    self.add_problem(format!("the value of the environment variable {name} is not UTF-8"))
                }
            }
        }
        ours.sort();
        ours
    }

    fn lay_over(&mut self, overlay: Table, origin: &str) {
        for (section, value) in overlay {
            let Some(known) = self.table.get_mut(&section).and_then(Value::as_table_mut) else {
                self.add_problem(format!("{origin}: there is no section [{section}]; {ALL_SETTINGS}"));
                continue;
            };
            let Value::Table(keys) = value else {
                self.add_problem(format!("{origin}: [{section}] must be a section"));
                continue;
            };
            for (key, value) in keys {
                let problem = match known.get(&key) {
                    None => format!("{origin}: there is no setting '{key}' in [{section}]; {ALL_SETTINGS}"),
                    Some(default) if default.type_str() != value.type_str() => {
                        let (wanted, given) = (default.type_str(), value.type_str());
                        format!("{origin}: {key} in [{section}] must be of type {wanted}, not {given}")
                    }
                    Some(_) => {
                        known.insert(key, value);
                        continue;
                    }
                };
                self.problems.push(Problem::new(problem));
            }
        }
    }

    /// Overlays `AFTERCOMMIT_<SECTION>_<KEY>`. Its value is converted to the type of the default.
    fn lay_variable(&mut self, name: &str, text: &str) {
        let Some(path) = name.strip_prefix(PREFIX).filter(|_| !NOT_SETTINGS.contains(&name)) else { return };
        let path = path.to_ascii_lowercase();
        let found = path.split_once('_').and_then(|(section, key)| {
            let default = self.table.get(section)?.as_table()?.get(key)?;
            Some((section, key, default.clone()))
        });
        let Some((section, key, default)) = found else {
            if !service_links::is_one(name, text) {
                self.add_problem(format!("the environment variable {name} is not a setting; {ALL_SETTINGS}"));
            }
            return;
        };
        match typed(&default, text) {
            Some(value) => self.set(section, key, value),
            None if text.is_empty() => {
                let wanted = default.type_str();
                self.add_problem(format!("{name} is empty: set it to a value of type {wanted}, or unset it"));
            }
            None => self.add_problem(format!("{name} must be of type {}", default.type_str())),
        }
    }

    fn set(&mut self, section: &str, key: &str, value: Value) {
        if let Some(keys) = self.table.get_mut(section).and_then(Value::as_table_mut) {
            keys.insert(key.to_owned(), value);
        }
    }
}

/// Converts a variable's text to the type of the default.
fn typed(default: &Value, text: &str) -> Option<Value> {
    Some(match default {
        Value::Integer(_) => Value::Integer(text.trim().parse().ok()?),
        Value::Float(_) => Value::Float(text.trim().parse().ok()?),
        Value::Boolean(_) => Value::Boolean(text.trim().parse().ok()?),
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
        }
        _ => Value::String(text.to_owned()),
    })
}

/// Reads a file's table. The error never quotes the file's content.
fn overlay(path: &Path) -> Result<Table, String> {
    let cannot = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("has more than {FILE_BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = line_and_column(error.as_bytes(), error.utf8_error().valid_up_to()).0;
        format!("is not UTF-8 (line {line})")
    })?;
    text.parse().map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start);
        let (line, column) = line_and_column(text.as_bytes(), at);
        // The error's message quotes nothing, unlike its `Display`.
        let reason = error.message().replace('\n', ", ");
        format!("is not valid TOML: line {line}, column {column}: {reason}")
    })
}

/// The line and column of a byte in a text, counted from 1.
fn line_and_column(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    (line, column)
}
