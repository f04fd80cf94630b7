//! Everything that the stand-in is, before there is a process for it to stand for.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::Context;
use kata_linux::cgroup::{HostCgroup, Membership};
use kata_linux::{descriptors, netns};
use kata_shim_api::blocking::TaskSocket;
use kata_shim_api::stand_in::{self, NetworkNamespace, Order, Terminal};
use rustix::process::{Signal, ioctl_tiocsctty, set_parent_process_death_signal, setsid};

use crate::signals::Signals;

/// What the stand-in works with.
pub(crate) struct Prepared {
    pub(crate) socket: TaskSocket,
    pub(crate) signals: Signals,
    pub(crate) streams: Streams,
    /// The process id of the proxy that was started; 0 if none was.
    pub(crate) proxy: u32,
    /// Where this process was before it entered the container's cgroup.
    pub(crate) before: Option<Membership>,
    /// The container's cgroup, if it has one.
    pub(crate) cgroup: Option<HostCgroup>,
}

/// The fifos between the proxy and this process.
pub(crate) struct Streams {
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
}

/// Becomes what `order` says. The proxy is started first, so that it shares neither namespace nor
/// cgroup nor session.
pub(crate) fn prepare(order: &Order) -> anyhow::Result<Prepared> {
    let listener = descriptors::take_inherited(stand_in::LISTENER).ok();
    let stream = |number| descriptors::take_inherited(number).ok().map(File::from);
    let streams = Streams {
        stdin: stream(stand_in::STDIN),
        stdout: stream(stand_in::STDOUT),
        stderr: stream(stand_in::STDERR),
    };
    let socket = TaskSocket::at(&order.sandbox_dir, stand_in::SOCKET)
        .with_context(|| format!("there is no sandbox at {}", order.sandbox_dir.display()))?;
    // Before there are threads: all of them are to leave signals to the one that forwards them.
    let signals = Signals::block()?;
    let proxy = match (&order.proxy, listener) {
        (Some(program), Some(listener)) => start_proxy(order, program, listener)?,
        _ => 0,
    };
    if order.foreground {
        set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow the caller")?;
    }
    match order.terminal {
        Terminal::Callers => {}
        Terminal::Own => {
            setsid().context("cannot start a session")?;
            ioctl_tiocsctty(std::io::stdin().as_fd()).context("cannot take the terminal")?;
        }
        // Signals of the caller's terminal are the caller's business.
        Terminal::None => drop(setsid()),
    }
    let (before, cgroup) = enter_cgroup(order)?.unzip();
    match &order.network {
        NetworkNamespace::Callers => {}
        NetworkNamespace::New => {
            netns::unshare().context("cannot make a network namespace")?;
        }
        NetworkNamespace::At(path) => netns::enter(path)
            .with_context(|| format!("cannot enter the network namespace {}", path.display()))?,
    }
    Ok(Prepared { socket, signals, streams, proxy, before, cgroup })
}

fn start_proxy(order: &Order, program: &std::path::Path, listener: OwnedFd) -> anyhow::Result<u32> {
    let mut command = Command::new(program);
    command
        .args(["--sandbox", &order.container])
        .args(["--parent", &std::process::id().to_string()])
        .arg("--socket")
        .arg(order.sandbox_dir.join(stand_in::SOCKET))
        .arg("--log")
        .arg(order.sandbox_dir.join("proxy.log"))
        .args(order.debug.then_some("--debug"))
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let proxy = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(proxy.id())
}

fn enter_cgroup(order: &Order) -> anyhow::Result<Option<(Membership, HostCgroup)>> {
    if order.cgroup.is_empty() {
        return Ok(None);
    }
    let before = Membership::of_this_process()?;
    let cgroup = if order.exec.is_empty() {
        HostCgroup::create_and_enter(&order.cgroup)?
    } else {
        // The container's stand-in is in it; else there is nothing to add a process to.
        let cgroup = HostCgroup::at(&order.cgroup)?;
        cgroup.enter()?;
        cgroup
    };
    Ok(Some((before, cgroup)))
}
