//! The guest's console, kept on the host as a bounded ring.
//!
//! Nobody reads a console until something went wrong; then its last lines are the guest's last
//! words. The ring keeps the newest [`CONSOLE_CAPACITY`] bytes and drops the rest, so that a guest
//! that floods its console costs nothing but its own time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Bytes of console output that are kept.
pub const CONSOLE_CAPACITY: usize = 64 * 1024;

/// What the agent's first line on the console begins with. Seeing it means that the kernel has come
/// up and handed over.
const AGENT_GREETING: &[u8] = b"kata-agent ";

/// A handle on the ring; clones share it. The driver pushes, everybody else reads.
#[derive(Debug, Clone)]
pub struct Console {
    // A mutex and not a channel: the reader wants the bytes at the moment of failure, when the
    // writer's task may be gone.
    ring: Arc<Mutex<VecDeque<u8>>>,
    /// How many bytes the guest has written in all; changed only with the ring locked.
    written: Arc<watch::Sender<u64>>,
    /// `None` where no kernel writes.
    kernel_up: Option<Arc<watch::Sender<bool>>>,
}

impl Default for Console {
    fn default() -> Self {
        Self {
            ring: Arc::default(),
            written: Arc::new(watch::Sender::new(0)),
            kernel_up: Some(Arc::new(watch::Sender::new(false))),
        }
    }
}

impl Console {
    /// An empty console.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty ring for the VMM's own words, in which nothing tells of a kernel.
    #[must_use]
    pub fn of_vmm() -> Self {
        Self { kernel_up: None, ..Self::default() }
    }

    /// Appends what the guest has written, dropping the oldest bytes beyond the capacity.
    pub fn push(&self, bytes: &[u8]) {
        let newest = &bytes[bytes.len().saturating_sub(CONSOLE_CAPACITY)..];
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let overflow = (ring.len() + newest.len()).saturating_sub(CONSOLE_CAPACITY);
        ring.drain(..overflow);
        ring.extend(newest);
        self.written.send_modify(|written| *written += bytes.len() as u64);
        if let Some(up) = self.kernel_up.as_ref().filter(|up| !*up.borrow()) {
            // The greeting's beginning may have come before.
            let unseen = newest.len() + AGENT_GREETING.len() - 1;
            let from = ring.len().saturating_sub(unseen);
            if contains_greeting(&ring.make_contiguous()[from..]) {
                up.send_replace(true);
            }
        }
    }

    /// Takes the agent's first line as seen, for a guest that wrote it before this console was.
    pub fn set_kernel_up(&self) {
        if let Some(up) = &self.kernel_up {
            up.send_replace(true);
        }
    }

    /// Whether the agent's first line has been seen.
    #[must_use]
    pub fn kernel_is_up(&self) -> bool {
        self.kernel_up.as_ref().is_some_and(|up| *up.borrow())
    }

    /// Resolves once the agent's first line has been seen; at once if it was. Never resolves when
    /// the guest never gets there.
    pub async fn kernel_up(&self) {
        if let Some(up) = &self.kernel_up
            && up.subscribe().wait_for(|up| *up).await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }

    /// What the guest has written from its byte number `from` on, as far as that is still
    /// remembered, and the number of the byte that comes next. The bytes are as the guest wrote
    /// them.
    #[must_use]
    pub fn since(&self, from: u64) -> (Vec<u8>, u64) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let written = *self.written.borrow();
        let oldest = written - ring.len() as u64;
        // What is skipped is at most the ring's length.
        let skipped = from.clamp(oldest, written) - oldest;
        (
            ring.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX)).copied().collect(),
            written,
        )
    }

    /// Resolves when the guest has written more than `bytes` bytes in all; at once if it has. Never
    /// resolves when it never does.
    pub async fn written_beyond(&self, bytes: u64) {
        let mut written = self.written.subscribe();
        // The sender lives as long as this value.
        let _ = written.wait_for(|written| *written > bytes).await;
    }

    /// The last `count` non-empty lines, oldest first, with everything that is not printable ASCII
    /// replaced by `?`: the guest is not trusted, and its words end in logs and on terminals.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines: Vec<String> = ring
            .make_contiguous()
            .rsplit(|byte| matches!(byte, b'\n' | b'\r'))
            .filter(|line| !line.is_empty())
            .take(count)
            .map(|line| line.iter().map(|&byte| printable(byte)).collect())
            .collect();
        lines.reverse();
        lines
    }
}

fn contains_greeting(bytes: &[u8]) -> bool {
    bytes.windows(AGENT_GREETING.len()).any(|window| window == AGENT_GREETING)
}

fn printable(byte: u8) -> char {
    if byte == b' ' || byte.is_ascii_graphic() { char::from(byte) } else { '?' }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_the_newest_and_printable() {
        let console = Console::new();
        console.push(b"one\r\ntwo\x1b[2J\n\nthree");
        assert_eq!(console.last_lines(2), ["two?[2J", "three"]);
    }

    #[test]
    fn ring_never_holds_more_than_its_capacity() {
        let console = Console::new();
        console.push(&vec![b'x'; 3 * CONSOLE_CAPACITY]);
        console.push(b"\nlast");
        assert_eq!(console.last_lines(1), ["last"]);
        assert!(console.ring.lock().unwrap().len() <= CONSOLE_CAPACITY);
    }

    #[test]
    fn reader_goes_on_where_it_was_and_skips_what_is_forgotten() {
        let console = Console::new();
        console.push(b"one ");
        let (text, next) = console.since(0);
        assert_eq!((text.as_slice(), next), (b"one ".as_slice(), 4));
        console.push(b"two");
        assert_eq!(console.since(next), (b"two".to_vec(), 7));
        assert_eq!(console.since(7), (Vec::new(), 7));
        console.push(&vec![b'x'; 2 * CONSOLE_CAPACITY]);
        let (text, next) = console.since(7);
        assert_eq!((text.len(), next), (CONSOLE_CAPACITY, 7 + 2 * CONSOLE_CAPACITY as u64));
        assert_eq!(console.since(u64::MAX).0, b"");
    }

    #[tokio::test]
    async fn writing_wakes_who_waits_for_it() {
        let console = Console::new();
        let waiting = {
            let console = console.clone();
            tokio::spawn(async move { console.written_beyond(2).await })
        };
        console.push(b"ab");
        console.push(b"c");
        waiting.await.unwrap();
    }

    #[test]
    fn greeting_split_over_two_pushes_is_seen() {
        let console = Console::new();
        console.push(b"[ 0.1] noise\nkata-a");
        assert!(!console.kernel_is_up());
        console.push(b"gent 0.1.0 started\n");
        assert!(console.kernel_is_up());
    }

    #[test]
    fn greeting_is_seen_in_a_full_ring_byte_by_byte_and_at_the_end_of_a_flood() {
        let full = || {
            let console = Console::new();
            console.push(&vec![b'x'; CONSOLE_CAPACITY]);
            console
        };
        let console = full();
        for byte in AGENT_GREETING {
            assert!(!console.kernel_is_up());
            console.push(&[*byte]);
        }
        assert!(console.kernel_is_up());
        let console = full();
        console.push(&[vec![b'x'; 2 * CONSOLE_CAPACITY], AGENT_GREETING.to_vec()].concat());
        assert!(console.kernel_is_up());
    }

    #[test]
    fn words_of_a_vmm_tell_of_no_kernel() {
        let console = Console::of_vmm();
        console.push(AGENT_GREETING);
        assert!(!console.kernel_is_up());
        assert_eq!(console.last_lines(1), ["kata-agent "]);
    }
}
