//! A log file that cannot fill the disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::Sink;

/// How long both files together may become.
const CAPACITY: u64 = 1 << 20;

/// The file, and the one with its older lines.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    /// `None` while it cannot be opened.
    open: Option<(File, u64)>,
}

impl LogFile {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None }
    }

    fn try_write(&mut self, line: &str) -> io::Result<()> {
        let (file, length) = match &mut self.open {
            Some(open) => open,
            None => {
                let file =
                    File::options().append(true).create(true).mode(0o600).open(&self.path)?;
                let length = file.metadata()?.len();
                self.open.insert((file, length))
            }
        };
        file.write_all(line.as_bytes())?;
        *length += line.len() as u64;
        if *length > CAPACITY / 2 {
            self.open = None;
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            fs::rename(&self.path, older)?;
        }
        Ok(())
    }
}

impl Sink for LogFile {
    fn write_line(&mut self, line: &str) {
        // A log that cannot be written is no reason to do anything but go on.
        let _ = self.try_write(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_too_long_loses_its_oldest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::new(&path);
        let line = format!("{}\n", "x".repeat(99_999));
        for _ in 0..23 {
            log.write_line(&line);
        }
        log.write_line("last\n");
        let older = fs::metadata(dir.path().join("log.1")).unwrap().len();
        let newer = fs::read_to_string(&path).unwrap();
        assert!(newer.ends_with("\nlast\n"));
        assert!(older + newer.len() as u64 <= CAPACITY + 200_000);
    }
}
