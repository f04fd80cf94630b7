//! The end of what a child wrote to stderr, bounded.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::unix::pipe;

/// Bytes that are kept: some fifty lines.
const CAPACITY: usize = 4096;

/// Read at most this often at a time, so that a child that never stops writing cannot keep its
/// watcher from anything else.
const READS_AT_A_TIME: usize = 64;

/// A handle on the bytes; clones share them.
// A mutex and not a channel: readers want the words at the moment of failure, when the watching
// task may be gone.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastWords(Arc<Mutex<VecDeque<u8>>>);

impl LastWords {
    /// Takes what is in the pipe without waiting. Whether there may be more later.
    pub(crate) fn read_from(&self, pipe: &pipe::Receiver) -> bool {
        let mut chunk = [0; CAPACITY];
        for _ in 0..READS_AT_A_TIME {
            match pipe.try_read(&mut chunk) {
                Ok(0) => return false,
                Ok(length) => self.push(&chunk[..length]),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let overflow = kept.len().saturating_sub(CAPACITY);
        kept.drain(..overflow);
    }

    /// The lines, oldest first, with everything replaced by `?` that is not printable ASCII:
    /// children carry words of those who are not trusted.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.make_contiguous()
            .split(|byte| matches!(byte, b'\n' | b'\r'))
            .filter(|line| !line.is_empty())
            .map(|line| line.iter().map(|&byte| printable(byte)).collect())
            .collect()
    }
}

fn printable(byte: u8) -> char {
    if byte == b' ' || byte.is_ascii_graphic() { char::from(byte) } else { '?' }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_bytes_are_kept_and_all_are_printable() {
        let words = LastWords::default();
        words.push(&[b'x'; 3 * CAPACITY]);
        words.push(b"\n\nqemu: \x1bno\r\n");
        let lines = words.lines();
        assert_eq!(lines.last().unwrap(), "qemu: ?no");
        assert!(lines.iter().map(String::len).sum::<usize>() <= CAPACITY);
    }
}
