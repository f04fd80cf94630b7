//! Terminals: one made for a process, whose master goes to whoever asked for it, and the user's
//! own.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kata_shim_api::stand_in::Terminal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// What goes along with the master; receivers only want it not to be empty.
const NAME: &[u8] = b"/dev/ptmx";

/// Makes a terminal, sends its master to the socket, and returns its slave.
///
/// It passes on everything unchanged: the guest's terminal does what a terminal does. That is set
/// here, before the receiver has the master and changes other settings. Nobody is waited for: some
/// receivers accept only after this program has ended.
pub(crate) fn make(console_socket: &Path) -> Result<File> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("cannot make a terminal")?;
    grantpt(&master).context("cannot make a terminal")?;
    unlockpt(&master).context("cannot make a terminal")?;
    let name = ptsname(&master, Vec::new()).context("cannot make a terminal")?;
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags_noctty()
        .open(name.to_string_lossy().as_ref())
        .context("cannot open the terminal")?;
    let mut modes = tcgetattr(&slave).context("cannot ask for the terminal's modes")?;
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes).context("cannot set the terminal's modes")?;
    send(&master, NAME, console_socket)
        .with_context(|| format!("cannot send the terminal to {}", console_socket.display()))?;
    Ok(slave)
}

/// Sends one descriptor to a socket, and something to read beside it.
pub(crate) fn send(descriptor: &OwnedFd, beside: &[u8], socket: &Path) -> io::Result<()> {
    let connection = UnixStream::connect(socket)?;
    let descriptors = [descriptor.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(
        connection.as_raw_fd(),
        &[IoSlice::new(beside)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// The user's terminal, which passes on everything unchanged until this is dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal(Termios);

impl RawTerminal {
    /// Standard input, if it is a terminal.
    pub(crate) fn of_stdin() -> Option<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}

/// Opening a terminal must not make it this process's.
trait NoControllingTerminal {
    fn custom_flags_noctty(&mut self) -> &mut Self;
}

impl NoControllingTerminal for OpenOptions {
    fn custom_flags_noctty(&mut self) -> &mut Self {
        use std::os::unix::fs::OpenOptionsExt;
        self.custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed())
    }
}

/// What kind of terminal a process gets that wants one or not; runc's errors for what makes no
/// sense. `has_socket` is whether the caller has given a console socket.
pub(crate) fn kind(wanted: bool, detached: bool, has_socket: bool) -> Result<Terminal> {
    match (wanted, detached, has_socket) {
        (true, true, false) => {
            bail!("cannot allocate tty if kata-runtime will detach without setting console socket")
        }
        (_, false, true) | (false, _, true) => {
            bail!("cannot use console socket if kata-runtime will not detach or allocate tty")
        }
        (true, true, true) => Ok(Terminal::Own),
        (true, false, false) => Ok(Terminal::Callers),
        (false, _, false) => Ok(Terminal::None),
    }
}
