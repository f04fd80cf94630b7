//! Real fifos, files and programs on one side, a guest made of channels on the other.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use super::*;

const MANY: usize = 64 << 20;

/// A process in a guest: what is sent comes out of it, what goes in is kept.
struct Guest {
    stdout: AsyncMutex<mpsc::Receiver<Vec<u8>>>,
    stderr: AsyncMutex<mpsc::Receiver<Vec<u8>>>,
    stdin: Mutex<(Sha256, usize)>,
    /// As much as one write takes.
    takes: usize,
    closed: Mutex<Option<oneshot::Sender<()>>>,
}

/// The test's hold on the process.
struct Process {
    guest: Arc<Guest>,
    stdout: mpsc::Sender<Vec<u8>>,
    stderr: mpsc::Sender<Vec<u8>>,
    stdin_closed: oneshot::Receiver<()>,
}

fn process(takes: usize) -> Process {
    let (stdout, stdout_out) = mpsc::channel(1);
    let (stderr, stderr_out) = mpsc::channel(1);
    let (closed, stdin_closed) = oneshot::channel();
    let guest = Guest {
        stdout: stdout_out.into(),
        stderr: stderr_out.into(),
        stdin: Mutex::default(),
        takes,
        closed: Mutex::new(Some(closed)),
    };
    Process { guest: Arc::new(guest), stdout, stderr, stdin_closed }
}

#[async_trait]
impl GuestStreams for Guest {
    async fn read_stdout(&self, _: u32) -> Result<Vec<u8>, StreamError> {
        Ok(self.stdout.lock().await.recv().await.unwrap_or_default())
    }
    async fn read_stderr(&self, _: u32) -> Result<Vec<u8>, StreamError> {
        Ok(self.stderr.lock().await.recv().await.unwrap_or_default())
    }
    async fn write_stdin(&self, bytes: Vec<u8>) -> Result<usize, StreamError> {
        let taken = bytes.len().min(self.takes);
        let mut stdin = self.stdin.lock().unwrap();
        stdin.0.update(&bytes[..taken]);
        stdin.1 += taken;
        Ok(taken)
    }
    async fn close_stdin(&self) -> Result<(), StreamError> {
        if let Some(closed) = self.closed.lock().unwrap().take() {
            let _ = closed.send(());
        }
        Ok(())
    }
}

impl Guest {
    fn stdin_length(&self) -> usize {
        self.stdin.lock().unwrap().1
    }
    fn stdin_digest(&self) -> Vec<u8> {
        self.stdin.lock().unwrap().0.clone().finalize().to_vec()
    }
}

/// A directory with fifos named after the streams.
fn fifos() -> (TempDir, StdioSpec) {
    let dir = tempfile::tempdir().unwrap();
    let fifo = |name: &str| {
        let path = dir.path().join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let spec = StdioSpec {
        stdin: fifo("stdin"),
        stdout: fifo("stdout"),
        stderr: fifo("stderr"),
        terminal: false,
    };
    (dir, spec)
}

fn ids() -> StdioIds {
    StdioIds { id: "c1".into(), namespace: "ns".into() }
}

async fn open(spec: &StdioSpec) -> ProcessStdio {
    ProcessStdio::open(spec, &ids()).await.unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Reads a fifo to its end, as a client does, in a thread of its own.
fn reader(path: &str) -> oneshot::Receiver<Vec<u8>> {
    let (done, content) = oneshot::channel();
    let path = path.to_owned();
    thread::spawn(move || done.send(fs::read(path).unwrap()));
    content
}

async fn within<T>(seconds: u64, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), what).await.expect("in time")
}

#[tokio::test]
async fn sixty_four_mebibytes_come_out_unchanged_on_both_streams() {
    let (_dir, spec) = fifos();
    let (stdout, stderr) = (reader(&spec.stdout), reader(&spec.stderr));
    let process = process(0);
    let attached = open(&spec).await.attach(process.guest);
    let bytes = noise(MANY);
    let expected = Sha256::digest(&bytes);
    for chunk in bytes.chunks(700_001) {
        process.stdout.send(chunk.to_vec()).await.unwrap();
        process.stderr.send(chunk[..10].to_vec()).await.unwrap();
    }
    drop((process.stdout, process.stderr));
    within(60, attached.drained()).await;
    assert_eq!(Sha256::digest(stdout.await.unwrap()), expected);
    assert_eq!(stderr.await.unwrap().len(), bytes.chunks(700_001).count() * 10);
}

#[tokio::test]
async fn sixty_four_mebibytes_go_in_unchanged_although_the_process_takes_them_in_bites() {
    let (_dir, spec) = fifos();
    let process = process(50_000);
    let attached = open(&spec).await.attach(process.guest.clone());
    let bytes = noise(MANY);
    let expected = Sha256::digest(&bytes).to_vec();
    let mut client = File::options().write(true).open(&spec.stdin).unwrap();
    thread::spawn(move || client.write_all(&bytes).unwrap());
    // The engine may close stdin while most of it is still with the client.
    attached.close_stdin();
    within(60, process.stdin_closed).await.unwrap();
    assert_eq!((process.guest.stdin_length(), process.guest.stdin_digest()), (MANY, expected));
}

#[tokio::test]
async fn stdin_stays_open_over_clients_until_it_is_closed_and_output_goes_on_after() {
    let (_dir, spec) = fifos();
    let stdout = reader(&spec.stdout);
    let mut process = process(usize::MAX);
    let attached = open(&spec).await.attach(process.guest.clone());
    for client in ["one", "two"] {
        File::options()
            .write(true)
            .open(&spec.stdin)
            .unwrap()
            .write_all(client.as_bytes())
            .unwrap();
    }
    tokio::time::timeout(Duration::from_millis(200), &mut process.stdin_closed)
        .await
        .expect_err("still open");
    attached.close_stdin();
    attached.close_stdin();
    within(10, process.stdin_closed).await.unwrap();
    assert_eq!(process.guest.stdin_length(), 6);
    process.stdout.send(b"after".to_vec()).await.unwrap();
    drop((process.stdout, process.stderr));
    within(10, attached.drained()).await;
    assert_eq!(stdout.await.unwrap(), b"after");
}

#[tokio::test]
async fn stdin_that_is_closed_as_soon_as_the_process_is_there_is_read_to_its_end() {
    let (_dir, spec) = fifos();
    let stdio = open(&spec).await;
    File::options().write(true).open(&spec.stdin).unwrap().write_all(b"early").unwrap();
    let process = process(usize::MAX);
    let attached = stdio.attach(process.guest.clone());
    attached.close_stdin();
    within(10, process.stdin_closed).await.unwrap();
    assert_eq!(process.guest.stdin_length(), 5);
}

#[tokio::test]
async fn a_process_without_stdin_reads_its_end_at_once_but_not_with_a_terminal() {
    let without = process(0);
    let _attached = open(&StdioSpec::default()).await.attach(without.guest.clone());
    within(10, without.stdin_closed).await.unwrap();

    let mut terminal = process(0);
    let spec = StdioSpec { terminal: true, ..StdioSpec::default() };
    let _attached = open(&spec).await.attach(terminal.guest.clone());
    tokio::time::timeout(Duration::from_millis(50), &mut terminal.stdin_closed)
        .await
        .expect_err("open");
}

#[tokio::test]
async fn a_process_that_has_ended_stops_reading_stdin_and_clients_learn_it() {
    let (_dir, spec) = fifos();
    let process = process(usize::MAX);
    let attached = open(&spec).await.attach(process.guest);
    let mut client = File::options().write(true).open(&spec.stdin).unwrap();
    drop((process.stdout, process.stderr));
    within(10, attached.drained()).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.write_all(b"x").is_ok() && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.write_all(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_client_that_opens_after_the_end_of_a_short_process_hears_it() {
    let (_dir, spec) = fifos();
    let process = process(0);
    let attached = open(&spec).await.attach(process.guest);
    process.stdout.send(b"last words".to_vec()).await.unwrap();
    drop((process.stdout, process.stderr));
    let mut drained = std::pin::pin!(attached.drained());
    let early = tokio::time::timeout(Duration::from_millis(200), &mut drained).await;
    early.expect_err("nobody has opened it yet");
    let heard = reader(&spec.stdout);
    within(1, drained).await;
    assert_eq!(heard.await.unwrap(), b"last words");
}

#[tokio::test]
async fn a_client_that_never_comes_is_waited_for_no_longer_than_two_seconds_after_the_start() {
    let (_dir, spec) = fifos();
    let process = process(0);
    let began = Instant::now();
    let attached = open(&spec).await.attach(process.guest);
    process.stdout.send(b"to nobody".to_vec()).await.unwrap();
    drop((process.stdout, process.stderr));
    within(10, attached.drained()).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_reader_that_is_gone_does_not_hold_up_the_end() {
    let (_dir, spec) = fifos();
    let process = process(0);
    let attached = open(&spec).await.attach(process.guest);
    // A client that opens both, reads a little, and goes.
    for path in [&spec.stdout, &spec.stderr] {
        drop(
            File::options()
                .read(true)
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(path)
                .unwrap(),
        );
    }
    let stdout = process.stdout;
    let feeding = tokio::spawn(async move {
        for _ in 0..100 {
            stdout.send(noise(1 << 20)).await.unwrap();
        }
    });
    drop(process.stderr);
    within(10, attached.drained()).await;
    within(1, feeding).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_is_slow_gets_everything_even_after_the_process_has_ended() {
    let (_dir, spec) = fifos();
    let process = process(0);
    let attached = open(&spec).await.attach(process.guest);
    let stdout = spec.stdout.clone();
    let (done, content) = oneshot::channel();
    thread::spawn(move || {
        let mut file = File::open(stdout).unwrap();
        let mut bytes = Vec::new();
        thread::sleep(Duration::from_millis(3500));
        file.read_to_end(&mut bytes).unwrap();
        done.send(bytes)
    });
    process.stdout.send(noise(3 << 20)).await.unwrap();
    drop((process.stdout, process.stderr));
    within(20, attached.drained()).await;
    assert_eq!(content.await.unwrap(), noise(3 << 20));
}

#[tokio::test]
async fn a_reader_who_takes_nothing_holds_up_no_exit_and_gets_everything_later() {
    let (_dir, spec) = fifos();
    let process = process(0);
    let attached = open(&spec).await.attach(process.guest);
    let mut file = File::open(&spec.stdout).unwrap();
    process.stdout.send(noise(1 << 20)).await.unwrap();
    drop((process.stdout, process.stderr));
    assert_eq!(within(20, attached.drained()).await, Delivery::Stalled);
    let content = thread::spawn(move || {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    });
    within(10, attached.delivered()).await;
    assert_eq!(attached.drained().await, Delivery::Whole);
    assert_eq!(content.join().unwrap(), noise(1 << 20));
}

#[tokio::test]
async fn both_streams_can_go_to_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("a/b/log");
    let there = dir.path().join("there");
    fs::write(&there, "old ").unwrap();
    let there_text = there.to_str().unwrap().to_owned();
    let specs = [
        (
            StdioSpec { stdout: format!("file://{}", made.display()), ..StdioSpec::default() },
            &made,
            "12",
        ),
        (
            StdioSpec { stdout: there_text.clone(), stderr: there_text, ..StdioSpec::default() },
            &there,
            "old 12",
        ),
    ];
    for (spec, path, expected) in specs {
        let process = process(0);
        let attached = open(&spec).await.attach(process.guest);
        process.stdout.send(b"1".to_vec()).await.unwrap();
        drop(process.stdout);
        tokio::time::sleep(Duration::from_millis(20)).await;
        process.stderr.send(b"2".to_vec()).await.unwrap();
        drop(process.stderr);
        within(10, attached.drained()).await;
        assert_eq!(fs::read_to_string(path).unwrap(), expected);
    }
}

/// To open one waits for a reader as a rule, and all requests of a sandbox with it.
#[tokio::test]
async fn a_fifo_in_the_place_of_a_file_is_not_waited_for_and_gets_both_streams() {
    let (_dir, fifos) = fifos();
    let spec = StdioSpec { stdout: format!("file://{}", fifos.stdout), ..StdioSpec::default() };
    let (opened, is_open) = std::sync::mpsc::channel();
    let path = fifos.stdout.clone();
    thread::spawn(move || {
        if is_open.recv_timeout(Duration::from_secs(10)).is_err() {
            // Whoever waits for a reader gets one now, so that the test ends.
            drop(File::open(path));
        }
    });
    let stdio = open(&spec).await;
    opened.send(()).expect("opened without a reader");
    let process = process(0);
    let attached = stdio.attach(process.guest);
    process.stdout.send(b"1".to_vec()).await.unwrap();
    process.stderr.send(b"2".to_vec()).await.unwrap();
    drop((process.stdout, process.stderr));
    let content = reader(&fifos.stdout);
    within(10, attached.drained()).await;
    let mut content = within(10, content).await.unwrap();
    content.sort_unstable();
    assert_eq!(content, b"12");
}

/// A `binary://` location that runs a shell script.
fn script(text: &str) -> StdioSpec {
    let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
    StdioSpec { stdout: format!("binary:///bin/sh?-c={escaped}"), ..StdioSpec::default() }
}

async fn read_when_there(path: &Path) -> String {
    loop {
        if let Ok(text) = fs::read_to_string(path) {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_log_program_gets_both_streams_and_is_told_whose_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (unfinished, log) = (dir.path().join("unfinished"), dir.path().join("log"));
    let spec = script(&format!(
        "exec >{0}; echo $CONTAINER_ID $CONTAINER_NAMESPACE ${{HOME-none}}; exec 5>&-; /bin/cat <&3; /bin/cat <&4; /bin/mv {0} {1}",
        unfinished.display(),
        log.display(),
    ));
    let stdio = open(&spec).await;
    assert_eq!(
        fs::read_to_string(&unfinished).unwrap(),
        "c1 ns none\n",
        "ready means that it has begun"
    );
    let process = process(0);
    let attached = stdio.attach(process.guest);
    process.stdout.send(b"out ".to_vec()).await.unwrap();
    process.stderr.send(b"err".to_vec()).await.unwrap();
    drop((process.stdout, process.stderr));
    within(10, attached.drained()).await;
    assert_eq!(within(10, read_when_there(&log)).await, "c1 ns none\nout err");
}

#[tokio::test]
async fn a_log_program_that_dies_does_not_hold_up_the_process() {
    let process = process(0);
    let attached = open(&script("exit 0")).await.attach(process.guest);
    for _ in 0..10 {
        process.stdout.send(noise(1 << 20)).await.unwrap();
    }
    drop((process.stdout, process.stderr));
    within(10, attached.drained()).await;
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let cases = [
        (
            StdioSpec { stdout: "/nonexistent/out".into(), ..StdioSpec::default() },
            "cannot open /nonexistent/out for stdout",
        ),
        (
            StdioSpec { stdin: "/nonexistent/in".into(), ..StdioSpec::default() },
            "cannot open /nonexistent/in for stdin",
        ),
        (
            StdioSpec { stdout: "binary:///nonexistent/log".into(), ..StdioSpec::default() },
            "cannot start the log program /nonexistent/log",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(ProcessStdio::open(&spec, &ids()).await.unwrap_err().to_string(), expected);
    }
}
