//! A terminal to run a client in.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize,
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
        // ctr leaves the translation of line ends on; what the container's terminal has shown shall come through unchanged.
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

/// Sets a terminal's size in characters.
pub(crate) fn resize(terminal: &File, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).context("cannot resize the terminal")
}
