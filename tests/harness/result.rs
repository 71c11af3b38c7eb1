//! Tests that end by `?`.

use std::error::Error;

/// The result of a test, and of a function that a test calls.
pub(crate) type TestResult<T = ()> = Result<T, TestError>;

/// The error type of tests. It is never built: the conversion panics at the line of the `?`, with the error
/// and its causes. The test harness would print a returned error without its line.
///
/// It does not implement `Error`: the conversion of any error would then overlap with `From<T> for T`.
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
