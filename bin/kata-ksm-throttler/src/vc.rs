//! vc: kicks kata-ksm-throttler for runtimes that don't do so themselves. Kata 1.x and the Go
//! runtime of later ones (virtcontainers) make a directory `<root>/sbs/<id>` for each sandbox,
//! which the kernel tells of (inotify(7)).
//!
//! ```text
//!   watch the deepest directory that exists of <root>/sbs ──▶ it is there: kick ──▶ kick for each that is made in it
//!          ▲                                                                             │ removed
//!          └─────────────────────────────────────────────────────────────────────────────┘
//! ```

mod command_line;

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use command_line::CommandLine;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// Where virtcontainers keeps its state.
const ROOT: &str = "/run/vc";

/// The directory of sandboxes in it.
const SANDBOXES: &str = "sbs";

const USAGE: &str = "\
usage: vc [-root DIR] [-uri SOCKET] [-log LEVEL] [-version]

  -root DIR     where virtcontainers keeps its state (/run/vc)
  -uri SOCKET   where kata-ksm-throttler listens (/var/run/kata-ksm-throttler/ksm.sock)
  -log LEVEL    error, warn, info, debug or trace (warn)";

fn main() -> ExitCode {
    command_line::main("vc", USAGE, &[("uri", kata_ksm_api::SOCKET), ("root", ROOT)], run)
}

fn run(command_line: &CommandLine) -> Result<()> {
    let kicker = Kicker {
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?,
        uri: command_line.path("uri"),
    };
    let sandboxes = std::path::absolute(command_line.path("root").join(SANDBOXES))
        .context("cannot tell what -root means")?;
    let mut was_there = sandboxes.is_dir();
    loop {
        let watch = Watch::deepest_of(&sandboxes)?;
        let is_there = watch.directory == sandboxes;
        if is_there && !was_there {
            kicker.kick();
        }
        watch.follow(|| {
            if is_there {
                kicker.kick();
            }
            // Of another one's entries, any may be one more directory of the path.
            is_there
        })?;
        // One that is there again is a new one.
        was_there = false;
    }
}

struct Kicker {
    runtime: tokio::runtime::Runtime,
    uri: PathBuf,
}

impl Kicker {
    /// One that does not arrive is told of, and the next one tried all the same.
    fn kick(&self) {
        match self.runtime.block_on(kata_ksm_api::kick(&self.uri)) {
            Ok(()) => tracing::info!("kicked"),
            Err(error) => tracing::warn!("cannot kick {}: {error}", self.uri.display()),
        }
    }
}

/// A directory that is watched.
struct Watch {
    inotify: OwnedFd,
    directory: PathBuf,
}

impl Watch {
    /// Watches `path`, or the directory nearest above it that exists.
    fn deepest_of(path: &Path) -> Result<Self> {
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        loop {
            let inotify = inotify::init(CreateFlags::CLOEXEC).context("cannot use inotify")?;
            let exists =
                |directory: &&Path| inotify::add_watch(&inotify, *directory, flags).is_ok();
            let directory = path.ancestors().find(exists);
            let directory = directory
                .with_context(|| format!("no directory of {} can be watched", path.display()))?
                .to_owned();
            // What was made between the failure to watch it and the watch above it has caused no
            // event.
            let missed = path
                .ancestors()
                .take_while(|ancestor| *ancestor != directory)
                .any(|ancestor| ancestor.is_dir());
            if !missed {
                return Ok(Self { inotify, directory });
            }
        }
    }

    /// Calls `made` for each entry that is made in the directory, until it says false or the
    /// directory goes away.
    fn follow(&self, mut made: impl FnMut() -> bool) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match events.next() {
                Err(rustix::io::Errno::INTR) => continue,
                event => event.context("cannot read from inotify")?,
            };
            let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED;
            let goes_on = if event.events().intersects(gone) {
                false
            } else {
                !event.events().intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) || made()
            };
            if !goes_on {
                return Ok(());
            }
        }
    }
}
