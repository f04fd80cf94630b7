//! Starting a stand-in: the fifos between it and the proxy, its descriptors, and the talk with it.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt, FdMapping};
use kata_linux::identity::ProcessIdentity;
use kata_shim_api::stand_in::{self, Order};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};

/// What of our environment the sandbox's programs need.
const PASSED_ON: [&str; 2] = ["KATA_CONF_FILE", "PATH"];

/// A program of this software that only other programs of it start.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    let path = kata_config::companion(&kata_config::prefix_of(&own), name);
    if !path.exists() {
        bail!("{} is missing; install it with `make install`", path.display());
    }
    Ok(path)
}

/// A process's fifos. Dropped, their names are removed; who has them open keeps them.
#[derive(Debug)]
pub(crate) struct Fifos {
    pub(crate) stdin: PathBuf,
    pub(crate) stdout: PathBuf,
    /// Empty with a terminal.
    pub(crate) stderr: PathBuf,
    ends: Vec<(OwnedFd, i32)>,
}

impl Fifos {
    /// Makes them in `dir`, which only this user can enter, and opens the stand-in's ends.
    pub(crate) fn make(dir: &Path, prefix: &str, terminal: bool) -> Result<Self> {
        let name = |stream: &str| dir.join(format!("{prefix}{stream}"));
        let stderr = if terminal { PathBuf::new() } else { name("stderr") };
        let mut fifos =
            Self { stdin: name("stdin"), stdout: name("stdout"), stderr, ends: Vec::new() };
        // Input is opened for both, so that nobody has to be there to read it yet.
        let streams = [
            (fifos.stdin.clone(), OFlags::RDWR, stand_in::STDIN),
            (fifos.stdout.clone(), OFlags::RDONLY, stand_in::STDOUT),
            (fifos.stderr.clone(), OFlags::RDONLY, stand_in::STDERR),
        ];
        for (path, mode, number) in streams {
            if path.as_os_str().is_empty() {
                continue;
            }
            let failed = || format!("cannot make the fifo {}", path.display());
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).with_context(failed)?;
            let end = open(&path, mode | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
                .with_context(failed)?;
            fifos.ends.push((end, number));
        }
        Ok(fifos)
    }

    /// A path as the task service takes it.
    pub(crate) fn text(path: &Path) -> String {
        path.display().to_string()
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        for path in [&self.stdin, &self.stdout, &self.stderr] {
            // What was not made cannot be removed.
            let _ = fs::remove_file(path);
        }
    }
}

/// A stand-in that is ready, and waits to be told that its process exists. Dropped, it gives up,
/// and is waited for.
#[derive(Debug)]
pub(crate) struct StandIn {
    /// `None` once it was told.
    control: Option<UnixStream>,
    /// `None` once it was handed out.
    child: Option<Child>,
    pub(crate) identity: ProcessIdentity,
    /// The pid of the proxy that it has started; 0 for none.
    pub(crate) proxy: u32,
}

impl StandIn {
    /// Starts it. Its standard streams are this program's, or `terminal`.
    pub(crate) fn start(
        order: &Order,
        fifos: &mut Fifos,
        terminal: Option<File>,
        listener: Option<UnixListener>,
    ) -> Result<Self> {
        let program = program("kata-shim")?;
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        let mut mappings: Vec<FdMapping> = fifos
            .ends
            .drain(..)
            .map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd })
            .collect();
        mappings.push(FdMapping { parent_fd: theirs.into(), child_fd: stand_in::CONTROL });
        mappings.extend(listener.map(|listener| FdMapping {
            parent_fd: listener.into(),
            child_fd: stand_in::LISTENER,
        }));
        let mut command = Command::new(&program);
        command.args(order.to_args()).env_clear();
        for name in PASSED_ON {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(terminal) = terminal {
            let other = || terminal.try_clone().map(Stdio::from);
            command.stdin(other()?).stdout(other()?).stderr(Stdio::from(terminal));
        }
        command.fd_mappings(mappings).context("cannot pass descriptors on")?;
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        // It holds our copies of what it was given.
        drop(command);
        let proxy = match read_ready(&ours) {
            Ok(proxy) => proxy,
            Err(error) => {
                drop(ours);
                let _ = child.wait();
                return Err(error);
            }
        };
        let identity = ProcessIdentity::of(child.id()).context("kata-shim has ended at once")?;
        Ok(Self { control: Some(ours), child: Some(child), identity, proxy })
    }

    /// Tells it that its process exists, and waits until it stands for that and shows the
    /// container's file system, or nothing where that is hidden. It lives on by itself from now on,
    /// and is to be waited for by whoever wants its status.
    ///
    /// # Errors
    ///
    /// Fails when it has been killed meanwhile: the process is nobody's then.
    pub(crate) fn go(mut self, is_hidden: bool) -> Result<Child> {
        if let Some(mut control) = self.control.take() {
            let word = if is_hidden { stand_in::GO_HIDDEN } else { stand_in::GO };
            writeln!(control, "{word}").context("kata-shim has gone away")?;
            let mut answer = String::new();
            control.read_to_string(&mut answer).context("kata-shim has gone away")?;
            match answer.trim_end() {
                stand_in::STANDING => {}
                other => match other.strip_prefix("error ") {
                    Some(sentence) => bail!("{sentence}"),
                    None => bail!("kata-shim was killed"),
                },
            }
        }
        self.child.take().context("kata-shim was not started")
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.control.take());
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

fn read_ready(control: &UnixStream) -> Result<u32> {
    let mut line = String::new();
    BufReader::new(control).read_line(&mut line).context("kata-shim has gone away")?;
    match line.trim_end().split_once(' ') {
        Some(("ready", pid)) => pid.parse().context("kata-shim has told no pid"),
        Some(("error", sentence)) => bail!("{sentence}"),
        _ => bail!("kata-shim has ended at once"),
    }
}
