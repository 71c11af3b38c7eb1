//! Tests that end by `?`.

use std::error::Error;

/// What a test, and a step of one, returns.
pub(crate) type TestResult<T = ()> = Result<T, TestError>;

/// The error of a test that `?` ends. It is never built: converting an error into it panics at the line of the `?`, with the
/// error and its causes. An error that a test returned would be printed without its line.
///
/// It is no `Error` itself, as the conversion of any error would then overlap with `From<T> for T`.
#[derive(Debug)]
pub(crate) struct TestError(());

impl<'a, E: Into<Box<dyn Error + 'a>>> From<E> for TestError {
    #[track_caller]
    fn from(error: E) -> Self {
        let error = error.into();
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        panic!("{text}");
    }
}
