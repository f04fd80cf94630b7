//! The fifos through which the VMM logs and tells its metrics, a line each time.

use std::io;
use std::os::fd::OwnedFd;

use kata_hypervisor::{Console, VmmDir};
use rustix::fs::{CWD, FileType, Mode, OFlags, chmod, mknodat};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// The longest line that is kept whole. A line of metrics has some 15 KiB.
const MAX_LINE: usize = 256 * 1024;

/// Counters of the metrics, as JSON pointers, that say that something is wrong when they are not 0.
const FAULTS: [&str; 5] = [
    "/vmm/panic_count",
    "/vcpu/failures",
    "/seccomp/num_faults",
    "/api_server/sync_response_fails",
    "/vsock/rx_queue_event_fails",
];

/// A fifo that the VMM is about to open. It opens both of its ends.
#[derive(Debug)]
pub(crate) struct Fifo {
    from: pipe::Receiver,
    /// Held until the VMM has it open: without any writer it would be at its end.
    writer: OwnedFd,
}

impl Fifo {
    /// Makes the fifo `name`, for everybody who gets into its directory.
    pub(crate) fn make(directory: &VmmDir, name: &str) -> io::Result<Self> {
        directory.remove(name)?;
        let path = directory.path(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // Once more, without the umask. The directory is for the VMM alone.
        chmod(&path, Mode::from_raw_mode(0o622))?;
        let from = pipe::OpenOptions::new().open_receiver(&path)?;
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let writer = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Self { from, writer })
    }

    /// Spawns the task that reads it until the VMM ends. The VMM must have it open.
    pub(crate) fn listen(self, mut take: impl FnMut(&[u8]) + Send + 'static) {
        let Self { mut from, writer } = self;
        drop(writer);
        tokio::spawn(async move {
            let mut text = Vec::new();
            while let Ok(1..) = from.read_buf(&mut text).await {
                let mut rest = text.as_slice();
                while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                    take(&rest[..end]);
                    rest = &rest[end + 1..];
                }
                let kept = if rest.len() > MAX_LINE { 0 } else { rest.len() };
                let used = text.len() - kept;
                text.drain(..used);
            }
        });
    }
}

/// What to do with lines of the log: they are the VMM's last words one day, and of use to whoever
/// debugs it.
pub(crate) fn log_into(words: Console, sandbox: String) -> impl FnMut(&[u8]) + Send + 'static {
    move |line| {
        words.push(line);
        words.push(b"\n");
        tracing::debug!(sandbox, "{}", String::from_utf8_lossy(line).escape_debug());
    }
}

/// What to do with metrics: what counts faults is told once it has counted one.
pub(crate) fn watch_metrics(sandbox: String) -> impl FnMut(&[u8]) + Send + 'static {
    move |line| {
        for (counter, count) in faults(line) {
            tracing::warn!(sandbox, "Firecracker's metrics: {counter} has counted {count}");
        }
        tracing::trace!(sandbox, "metrics {}", String::from_utf8_lossy(line).escape_debug());
    }
}

/// The counters of faults that are not 0. What is no JSON has none.
fn faults(line: &[u8]) -> Vec<(&'static str, u64)> {
    let Ok(metrics) = serde_json::from_slice::<Value>(line) else { return Vec::new() };
    let count = |counter: &&'static str| metrics.pointer(counter).and_then(Value::as_u64);
    let counted = FAULTS.iter().filter_map(|counter| Some((*counter, count(counter)?)));
    counted.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn counted_faults_are_found() {
        let line = br#"{"vcpu":{"failures":2,"exit_io_in":9},"seccomp":{"num_faults":0}}"#;
        assert_eq!(faults(line), [("/vcpu/failures", 2)]);
        assert!(faults(b"no metrics").is_empty());
        assert!(faults(br#"{"vcpu":[],"vmm":{"panic_count":-1}}"#).is_empty());
    }

    #[tokio::test]
    async fn lines_come_whole_and_the_end_with_the_last_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let fifo = Fifo::make(&VmmDir::make(&path).unwrap(), "log").unwrap();
        let mut vmm =
            std::fs::File::options().read(true).write(true).open(path.join("log")).unwrap();
        let (lines, taken) = mpsc::channel();
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        fifo.listen(move |line| {
            let _open = &ended;
            lines.send(String::from_utf8(line.to_vec()).unwrap()).unwrap();
        });
        vmm.write_all(b"one\ntw").unwrap();
        vmm.write_all(b"o\nhalf").unwrap();
        drop(vmm);
        assert!(end.await.is_err());
        assert_eq!(taken.iter().collect::<Vec<_>>(), ["one", "two"]);
    }
}
