//! A bounded queue of lines in front of stderr or stdout, with its own thread that writes them.
//!
//! Pushing a line never waits for its reader, never fails and never panics. A line is dropped and counted if
//! it cannot be written (a full disk, a closed pipe) or if the queue is full (a pipe that nobody reads).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The largest number of bytes that wait to be written.
const QUEUED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The time until the next attempt if the file accepts no bytes now (`O_NONBLOCK`).
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Formats the line that reports dropped lines.
type Notice = fn(dropped: u64) -> Vec<u8>;

/// A queue of lines for one file. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct LineQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Lines dropped since the process started.
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether the thread is writing a line now.
    is_writing: bool,
    /// Lines dropped since the last notice.
    dropped_lines: u64,
    /// Whether a flush timed out and no line has been written since.
    is_stuck: bool,
}

impl LineQueue {
    /// Creates a queue in front of this file. `notice` formats the line that reports dropped ones.
    pub(super) fn to(file: impl AsFd, notice: Notice) -> Self {
        let queue = Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            dropped: AtomicU64::new(0),
        }));
        let Ok(file) = file.as_fd().try_clone_to_owned() else { return queue };
        let shared = queue.0.clone();
        let thread = std::thread::Builder::new().name("lines".to_owned());
        // If no thread can be started here, none can be started elsewhere, and that error is reported there.
        drop(thread.spawn(move || shared.write_all(File::from(file), notice)));
        queue
    }

    /// Appends lines, each with its line end. Drops them if the queue is full.
    pub(crate) fn push(&self, text: &[u8]) {
        let mut state = self.0.lock();
        if state.bytes + text.len() > QUEUED_BYTES_MAX {
            state.dropped_lines += 1;
            drop(state);
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.push(text);
        self.0.changed.notify_all();
    }

    /// Appends the last line of a process, even if the queue is full.
    pub(super) fn push_last(&self, text: &[u8]) {
        self.0.lock().push(text);
        self.0.changed.notify_all();
    }

    /// Waits until all lines are written, up to this time limit. Does not wait at all if an earlier flush
    /// timed out and no line has been written since.
    pub(crate) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.0.lock();
        while !state.is_stuck && (state.is_writing || !state.lines.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.is_stuck = true;
                break;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lines dropped since the process started.
    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl State {
    fn push(&mut self, text: &[u8]) {
        self.bytes += text.len();
        self.lines.push_back(text.to_vec());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's loop: writes lines as they arrive. Never returns.
    fn write_all(&self, mut file: File, notice: Notice) {
        let mut is_torn = false;
        loop {
            let line = self.next();
            let written = write_line(&mut file, &line, is_torn);
            let mut state = self.lock();
            state.is_writing = false;
            state.bytes -= line.len();
            match written {
                Ok(()) => {
                    is_torn = false;
                    state.is_stuck = false;
                    let dropped_lines = std::mem::take(&mut state.dropped_lines);
                    if dropped_lines > 0 {
                        state.push(&notice(dropped_lines));
                    }
                }
                Err(torn) => {
                    is_torn |= torn;
                    state.dropped_lines += 1;
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.is_writing = true;
                return line;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes one line by one call if possible, so that lines of several processes do not mix. `is_torn` means
/// that a part of an earlier line precedes it. The error says whether a part of this line was written.
fn write_line(file: &mut impl Write, line: &[u8], is_torn: bool) -> Result<(), bool> {
    let mended;
    let line = if is_torn {
        mended = [b"\n", line].concat();
        &mended
    } else {
        line
    };
    let mut rest = line;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(rest.len() < line.len()),
            Ok(n) => rest = &rest[n..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_AFTER),
            Err(_) => return Err(rest.len() < line.len()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::time::{Duration, Instant};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    fn notice(dropped: u64) -> Vec<u8> {
        format!("{dropped} dropped\n").into_bytes()
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let queue = LineQueue::to(&writer, notice);
        for n in 0..1000 {
            queue.push(format!("{n}\n").as_bytes());
        }
        queue.flush(LONG);
        let mut text = vec![0; (0..1000).map(|n: u32| n.to_string().len() + 1).sum()];
        reader.read_exact(&mut text).expect("lines");
        let expected: String = (0..1000).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8_lossy(&text), expected);
        assert_eq!(queue.dropped(), 0);
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up_and_what_was_dropped_is_told_once_it_is_read() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let queue = LineQueue::to(&writer, notice);
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let pushed = 2 * QUEUED_BYTES_MAX / line.len();
        for _ in 0..pushed {
            queue.push(&line);
        }
        let dropped = queue.dropped();
        assert!(dropped as usize > pushed / 3, "{dropped} of {pushed}");
        queue.flush(SHORT);
        let began = Instant::now();
        queue.flush(LONG);
        assert!(began.elapsed() < LONG / 2, "a flush after one that was given up waits");
        let lines = BufReader::new(reader).lines();
        let told = lines.map_while(Result::ok).find(|line| line.ends_with("dropped"));
        assert_eq!(told, Some(format!("{dropped} dropped")));
    }

    #[test]
    fn a_file_that_takes_nothing_and_a_pipe_without_a_reader_cost_lines_and_nothing_else() {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        for queue in [LineQueue::to(&full, notice), LineQueue::to(&writer, notice)] {
            queue.push(b"one\n");
            queue.push(b"two\n");
            queue.flush(LONG);
            assert_eq!(queue.dropped(), 2);
        }
    }

    /// Accepts this many bytes, and then fails one call.
    struct Short(Vec<u8>, usize);

    impl Write for Short {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = bytes.len().min(self.1);
            if taken == 0 {
                self.1 = usize::MAX;
                return Err(ErrorKind::StorageFull.into());
            }
            self.1 -= taken;
            self.0.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_torn_does_not_spoil_the_next_one() {
        let mut file = Short(Vec::new(), 2);
        assert_eq!(write_line(&mut file, b"first\n", false), Err(true));
        assert_eq!(write_line(&mut file, b"second\n", true), Ok(()));
        assert_eq!(file.0, b"fi\nsecond\n");
    }
}
