//! The guest's console, kept on the host as a bounded ring.
//!
//! Nobody reads a console until something went wrong; then its last lines are the guest's last words. The
//! ring keeps the newest [`CONSOLE_CAPACITY`] bytes and drops the rest, so that a guest that floods its console
//! costs nothing but its own time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Bytes of console output that are kept.
pub const CONSOLE_CAPACITY: usize = 64 * 1024;

/// What the agent's first line on the console begins with. Seeing it means that the kernel has come up and handed over.
const AGENT_GREETING: &[u8] = b"kata-agent ";

/// A handle on the ring; clones share it. The driver pushes, everybody else reads.
#[derive(Debug, Clone)]
pub struct Console {
    // A mutex and not a channel: the reader wants the bytes at the moment of failure, when the writer's task may be gone.
    ring: Arc<Mutex<VecDeque<u8>>>,
    kernel_up: Arc<watch::Sender<bool>>,
}

impl Default for Console {
    fn default() -> Self {
        Self { ring: Arc::default(), kernel_up: Arc::new(watch::Sender::new(false)) }
    }
}

impl Console {
    /// An empty console.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends what the guest has written, dropping the oldest bytes beyond the capacity.
    pub fn push(&self, bytes: &[u8]) {
        let newest = &bytes[bytes.len().saturating_sub(CONSOLE_CAPACITY)..];
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let overflow = (ring.len() + newest.len()).saturating_sub(CONSOLE_CAPACITY);
        ring.drain(..overflow);
        ring.extend(newest);
        if !*self.kernel_up.borrow() {
            let seen = ring.make_contiguous();
            if seen.windows(AGENT_GREETING.len()).any(|window| window == AGENT_GREETING) {
                self.kernel_up.send_replace(true);
            }
        }
    }

    /// Whether the agent's first line has been seen.
    #[must_use]
    pub fn kernel_is_up(&self) -> bool {
        *self.kernel_up.borrow()
    }

    /// Resolves once the agent's first line has been seen; at once if it was. Never resolves when the guest never gets there.
    pub async fn kernel_up(&self) {
        let mut up = self.kernel_up.subscribe();
        if up.wait_for(|up| *up).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The last `count` non-empty lines, oldest first, with everything that is not printable ASCII replaced by `?`: the
    /// guest is not trusted, and its words end in logs and on terminals.
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
    fn greeting_split_over_two_pushes_is_seen() {
        let console = Console::new();
        console.push(b"[ 0.1] noise\nkata-a");
        assert!(!console.kernel_is_up());
        console.push(b"gent 0.1.0 started\n");
        assert!(console.kernel_is_up());
    }
}
