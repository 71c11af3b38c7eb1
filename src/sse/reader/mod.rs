//! Topics for readers that keep their own place and ask for the events after it, page by page. They get an
//! event only where the history proves that none is missing before it.
//!
//! `page` reads. `watch` admits a reader that waits for the next event, among the streams and their limits.

mod page;
mod watch;

pub use page::TopicReader;
pub use watch::Watch;
