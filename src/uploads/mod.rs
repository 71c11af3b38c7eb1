//! The bundled application: photo uploads with live progress.
