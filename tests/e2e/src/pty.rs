//! A terminal to run a client in.

use std::fs::{File, OpenOptions};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, Winsize, isatty, tcgetattr, tcsetattr, tcsetwinsize,
};

/// Both ends of a new pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Pty {
    /// The end of the test.
    pub(crate) master: File,
    /// The end of the client.
    pub(crate) slave: File,
}

impl Pty {
    /// Opens one with 24 rows and 80 columns.
    pub(crate) fn open() -> Result<Self> {
        let master: OwnedFd =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
                .context("cannot open a terminal")?;
        grantpt(&master).context("cannot grant the terminal")?;
        unlockpt(&master).context("cannot unlock the terminal")?;
        let name = ptsname(&master, Vec::new()).context("cannot name the terminal")?;
        let path = name.to_str().context("the terminal's name is not UTF-8")?.to_owned();
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {path}"))?;
        // ctr leaves the translation of line ends on; what the container's terminal has shown shall
        // come through unchanged.
        let mut modes = tcgetattr(&slave).context("cannot ask for the terminal's modes")?;
        modes.output_modes.remove(OutputModes::OPOST | OutputModes::ONLCR);
        tcsetattr(&slave, OptionalActions::Now, &modes).context("cannot set the modes")?;
        let pty = Self { master: File::from(master), slave };
        resize(&pty.master, 24, 80)?;
        Ok(pty)
    }
}

/// Whether a terminal passes on every key as it comes.
pub(crate) fn is_raw(terminal: &File) -> Result<bool> {
    let modes = tcgetattr(terminal).context("cannot ask for the terminal's modes")?;
    Ok(!modes.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO))
}

/// Receives a terminal as engines do: one message with something to read, exactly one descriptor,
/// and room for no other.
pub(crate) fn receive(connection: &UnixStream) -> Result<File> {
    let terminal = receive_descriptor(connection)?;
    ensure!(isatty(&terminal), "what was sent is no terminal");
    Ok(terminal)
}

/// The same with whatever is sent.
pub(crate) fn receive_descriptor(connection: &UnixStream) -> Result<File> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let mut name = [0; 4096];
    let mut buffers = [IoSliceMut::new(&mut name)];
    let received = recvmsg(connection, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .context("cannot receive a descriptor")?;
    ensure!(received.bytes > 0, "nothing is beside the descriptor");
    ensure!(!received.flags.contains(ReturnFlags::CTRUNC), "more than one descriptor was sent");
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(File::from(descriptors.flatten().next().context("no descriptor was sent")?))
}

/// Sets a terminal's size in characters.
pub fn resize(terminal: &File, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).context("cannot resize the terminal")
}
