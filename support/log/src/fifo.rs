//! A log that is a fifo, as containerd makes one for each shim.
//!
//! containerd may be away, or slow. What cannot be written is counted, and told when writing works
//! again.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use crate::{Sink, line};

/// The writing end of a fifo whose reader comes and goes.
#[derive(Debug)]
pub(crate) struct LogFifo {
    path: PathBuf,
    /// `None` while there was nobody to open it for.
    file: Option<File>,
    /// How many lines were not written since the last one that was.
    lost: u64,
    /// Whether the last line was cut, so that the next must begin on a new one.
    cut: bool,
}

impl LogFifo {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, lost: 0, cut: false }
    }

    /// Writes a line without ever waiting. Up to PIPE_BUF bytes go whole or not at all (pipe(7)).
    fn try_write(&mut self, line: &str) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                // Without a reader this fails (ENXIO), and is tried again with the next line.
                let fifo = open(
                    &self.path,
                    OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                self.file.insert(fifo.into())
            }
        };
        if self.cut {
            file.write_all(b"\n")?;
            self.cut = false;
        }
        let written = file.write(line.as_bytes())?;
        self.cut = written < line.len();
        Ok(())
    }
}

impl Sink for LogFifo {
    fn write_line(&mut self, line: &str) {
        if self.lost > 0 {
            let lost = line::lost(self.lost);
            if self.try_write(&lost).is_err() {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if self.try_write(line).is_err() {
            self.lost += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    fn reader(path: &Path) -> File {
        File::from(open(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap())
    }

    #[test]
    fn lines_are_lost_without_a_reader_and_counted_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFifo::new(&path);
        log.write_line("no fifo\n");
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        log.write_line("no reader\n");
        let mut first = reader(&path);
        log.write_line("read\n");
        let mut text = [0; 4096];
        let length = first.read(&mut text).unwrap();
        let text = std::str::from_utf8(&text[..length]).unwrap();
        assert!(text.contains("2 log lines") && text.ends_with("\nread\n"), "{text}");
        drop(first);
        log.write_line("reader gone\n");
        let mut second = reader(&path);
        log.write_line("again\n");
        drop(log);
        let mut text = String::new();
        second.read_to_string(&mut text).unwrap();
        assert!(text.contains("1 log lines") && text.ends_with("\nagain\n"), "{text}");
    }

    #[test]
    fn a_full_fifo_never_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let mut reader = reader(&path);
        let mut log = LogFifo::new(&path);
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..200 {
            log.write_line(&line);
        }
        assert!(log.lost > 0);
        let mut all = vec![0; 1 << 20];
        assert!(reader.read(&mut all).unwrap() >= 60_000);
        log.write_line("after\n");
        assert_eq!(log.lost, 0);
    }
}
