//! The debug console: a shell in the guest itself, for the administrator who has switched it on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use kata_channel::ChannelStream;
use kata_guest_container::fork;
use kata_guest_container::stdio::{Output, Stdio};
use kata_guest_setup::reaper::Reaper;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::pty::OpenptFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long the last output of a shell that has ended may take to reach the host.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The size of consoles in rows and columns; `None` as long as nobody has told it.
pub(crate) type Size = Option<(u16, u16)>;

/// The shells that a guest image may have, in order of preference.
const SHELLS: [&str; 3] = ["/bin/bash", "/usr/bin/bash", "/bin/sh"];

/// Whether this guest has a shell.
pub(crate) fn exists() -> bool {
    shell().is_some()
}

fn shell() -> Option<&'static str> {
    SHELLS.into_iter().find(|path| Path::new(path).exists())
}

/// Runs a shell on a terminal of its own and carries its bytes, until either side ends. The
/// terminal has the size that `size` tells.
pub(crate) async fn serve(
    stream: ChannelStream,
    reaper: Reaper,
    mut size: watch::Receiver<Size>,
) -> io::Result<()> {
    let (master, slave) = terminal()?;
    let stdio = Stdio::terminal(master, 0)?;
    let hold = reaper.hold();
    let child = spawn(&slave)?;
    let ended = reaper.claim(child).map(drop).shared();
    // Held on, it would keep the statuses of all that nobody claims, as long as the shell lives.
    drop(hold);
    drop(slave);
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let output = async {
        loop {
            let data = stdio.read(Output::Stdout, 32 << 10, ended.clone()).await?;
            if data.is_empty() {
                return io::Result::Ok(());
            }
            to_host.write_all(&data).await?;
            to_host.flush().await?;
        }
    };
    let input = async {
        let mut buffer = vec![0; 4096];
        loop {
            let length = from_host.read(&mut buffer).await?;
            if length == 0 {
                return io::Result::Ok(());
            }
            if stdio.write(&buffer[..length]).await.is_err() {
                // The shell has let go of its terminal: what comes from it ends, too, and is not to
                // be cut.
                return std::future::pending::<io::Result<()>>().await;
            }
        }
    };
    let resizing = async {
        loop {
            if let Some((rows, columns)) = *size.borrow_and_update() {
                stdio.resize(rows, columns)?;
            }
            if size.changed().await.is_err() {
                return std::future::pending::<io::Result<()>>().await;
            }
        }
    };
    tokio::pin!(output);
    // Dropping the master afterwards hangs the shell up.
    tokio::select! {
        result = &mut output => result,
        result = input => result,
        result = resizing => result,
        // What it has said last is still on its way. Whoever else holds the terminal open is not
        // waited for.
        () = ended.clone() => timeout(LAST_WORDS, output).await.unwrap_or(Ok(())),
    }
}

/// Runs a shell on the guest's console.
pub(crate) fn on_console() -> io::Result<()> {
    let console =
        rustix::fs::openat(CWD, "/dev/console", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    spawn(&console).map(drop)
}

fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}

/// Makes a session on `terminal` with a shell in it, and yields its pid.
fn spawn(terminal: &OwnedFd) -> io::Result<i32> {
    let child = fork::fork(&[terminal.as_fd()], |_| {
        // Whatever fails, the terminal's end is all that there is to tell.
        let _ = run_shell(terminal);
    });
    child.map(|child| child.pid).map_err(io::Error::other)
}

fn run_shell(terminal: &OwnedFd) -> io::Result<()> {
    use std::os::unix::process::CommandExt;

    rustix::process::setsid()?;
    rustix::process::ioctl_tiocsctty(terminal)?;
    let shell = shell().ok_or(io::ErrorKind::NotFound)?;
    Err(std::process::Command::new(shell)
        .current_dir("/")
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/")
        .env("TERM", "linux")
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal.try_clone()?)
        .exec())
}
