//! What comes out of a pipe or terminal, collected as it comes.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::deadline::Deadline;

/// How much of a stream an error quotes.
const QUOTED: usize = 2000;

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

/// Bytes that no compression and no line discipline leaves unchanged by chance (xorshift64*).
#[must_use]
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    });
    let mut bytes: Vec<u8> = words.take(length.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(length);
    bytes
}

/// A stream that a thread reads to its end, so that its writer never waits for a test.
#[derive(Debug, Clone)]
pub struct Stream {
    // Shared with the reading thread; a condition variable is what lets both sides wait without a
    // loop.
    shared: Arc<(Mutex<Collected>, Condvar)>,
}

impl Stream {
    /// Reads `source` from now on until its end.
    pub fn collect(mut source: impl Read + Send + 'static) -> Self {
        let stream = Self::ended();
        let shared = Arc::clone(&stream.shared);
        set_ended(&shared, false);
        thread::spawn(move || {
            let mut chunk = vec![0; 64 * 1024];
            loop {
                match source.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(length) => {
                        let mut collected = lock(&shared.0);
                        collected.bytes.extend_from_slice(&chunk[..length]);
                        drop(collected);
                        shared.1.notify_all();
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // A terminal's master says EIO when the last slave is closed.
                    Err(_) => break,
                }
            }
            set_ended(&shared, true);
        });
        stream
    }

    /// A stream that has ended with nothing in it.
    #[must_use]
    pub fn ended() -> Self {
        let collected = Collected { ended: true, ..Collected::default() };
        Self { shared: Arc::new((Mutex::new(collected), Condvar::new())) }
    }

    /// Everything so far.
    #[must_use]
    pub fn so_far(&self) -> Vec<u8> {
        lock(&self.shared.0).bytes.clone()
    }

    /// Everything so far as text, without what is not UTF-8.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.shared.0).bytes).into_owned()
    }

    /// Waits until `text` has come.
    pub fn expect(&self, text: &str, deadline: Deadline) -> Result<()> {
        self.expect_times(text, 1, deadline)
    }

    /// Waits until `text` has come `times` times.
    pub fn expect_times(&self, text: &str, times: usize, deadline: Deadline) -> Result<()> {
        let come = |collected: &Collected| count(&collected.bytes, text.as_bytes()) >= times;
        let seen = self.wait(deadline, |collected| collected.ended || come(collected));
        if seen && come(&lock(&self.shared.0)) {
            return Ok(());
        }
        let why = if seen { "the stream has ended" } else { "the deadline has passed" };
        let text_so_far = self.text();
        let tail = tail(&text_so_far);
        bail!(
            "waited for {text:?} ({times} times), but {why} after {:.1?}:\n{tail}",
            deadline.elapsed()
        );
    }

    /// Fails if something comes within `time`. Slow by nature: for what must not happen only.
    pub fn stays_quiet_for(&self, time: Duration) -> Result<()> {
        let before = lock(&self.shared.0).bytes.len();
        let come = self.wait(Deadline::after(time), |collected| collected.bytes.len() > before);
        ensure!(!come, "expected silence for {time:?}, but something came");
        Ok(())
    }

    /// How many times `text` has come so far.
    #[must_use]
    pub fn times(&self, text: &str) -> usize {
        count(&lock(&self.shared.0).bytes, text.as_bytes())
    }

    /// Waits for the end, and gives everything.
    pub fn finish(&self, deadline: Deadline) -> Result<Vec<u8>> {
        if !self.wait(deadline, |collected| collected.ended) {
            bail!("the stream is still open after {:.1?}", deadline.elapsed());
        }
        Ok(std::mem::take(&mut lock(&self.shared.0).bytes))
    }

    /// Whether `condition` became true in time.
    fn wait(&self, deadline: Deadline, condition: impl Fn(&Collected) -> bool) -> bool {
        let guard = lock(&self.shared.0);
        let waited = self
            .shared
            .1
            .wait_timeout_while(guard, deadline.remaining(), |collected| !condition(collected));
        let (_guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }
}

/// The end of a long text, from the beginning of a line.
pub(crate) fn tail(text: &str) -> &str {
    let Some(mut at) = text.len().checked_sub(QUOTED) else { return text };
    while !text.is_char_boundary(at) {
        at += 1;
    }
    let tail = &text[at..];
    tail.split_once('\n').map_or(tail, |(_, rest)| rest)
}

fn count(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).filter(|window| *window == needle).count()
}

fn set_ended(shared: &(Mutex<Collected>, Condvar), ended: bool) {
    lock(&shared.0).ended = ended;
    shared.1.notify_all();
}

fn lock(mutex: &Mutex<Collected>) -> std::sync::MutexGuard<'_, Collected> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_waited_for_and_counted() {
        let stream = Stream::collect(&b"one two two"[..]);
        let deadline = Deadline::after(Duration::from_secs(10));
        stream.expect("two", deadline).unwrap();
        stream.expect_times("two", 2, deadline).unwrap();
        let error = stream.expect("three", deadline).unwrap_err().to_string();
        assert!(error.contains("the stream has ended"), "{error}");
        assert_eq!(stream.finish(deadline).unwrap(), b"one two two");
    }

    #[test]
    fn tail_begins_with_a_whole_line() {
        let text = format!("{}\nlast line", "x".repeat(QUOTED));
        assert_eq!(tail(&text), "last line");
        assert_eq!(tail("short"), "short");
    }
}
