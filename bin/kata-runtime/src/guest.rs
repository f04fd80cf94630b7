//! The guest of a sandbox, reached through the socket in the sandbox's directory
//! ([`kata_channel::guest_socket`]), whoever owns it: a shim of containerd's or a proxy.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kata_channel::guest_socket::{self, GuestRequest, MAX_ANSWER};

use crate::commands::Host;

/// How long the sandbox may take to answer; longer than it waits for its guest.
const PATIENCE: Duration = Duration::from_secs(20);

/// A sandbox's guest.
#[derive(Debug)]
pub(crate) struct Guest {
    directory: PathBuf,
    sandbox: String,
}

impl Guest {
    /// The guest of a sandbox on this host. `id` is the sandbox's, or that of a container which the
    /// command line knows to be in it.
    pub(crate) fn of(host: &Host, id: &str) -> Result<Self> {
        let sandbox = if let Ok(container) = host.registry.load(id) {
            container.sandbox
        } else {
            id.to_owned()
        };
        let directory = kata_host_runtime::run_dir_of(&sandbox)?;
        if !directory.exists() {
            bail!("there is no sandbox {sandbox} on this host: {} is missing", directory.display());
        }
        Ok(Self { directory, sandbox })
    }

    /// A stream that carries what was asked for.
    pub(crate) fn ask(&self, request: GuestRequest) -> Result<UnixStream> {
        let sandbox = &self.sandbox;
        let mut stream = guest_socket::connect(&self.directory).with_context(|| {
            format!("nobody serves the sandbox {sandbox}: it is starting, has ended, or is of an older version")
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.line().as_bytes())?;
        let answer = read_answer(&mut stream)
            .with_context(|| format!("the sandbox {sandbox} does not answer"))?;
        match guest_socket::parse_answer(&answer) {
            Some(Ok(())) => {}
            Some(Err(sentence)) => bail!("{sentence}"),
            None => bail!("the sandbox {sandbox} has given an answer that cannot be understood"),
        }
        stream.set_read_timeout(None)?;
        Ok(stream)
    }
}

/// A byte at a time: what follows the line is the guest's.
fn read_answer(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < MAX_ANSWER {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.extend(byte);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"))
}
