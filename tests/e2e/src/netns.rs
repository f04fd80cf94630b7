//! A network namespace that stands for an engine's host, so that its bridges, addresses and packet
//! filters touch nothing else.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::client;
use crate::mark::Mark;

/// How their names begin; the mark comes after it.
const PREFIX: &str = "host-of-";

/// For a shell: shows all of the network that it is in, but for counters and clocks.
pub(crate) const PICTURE: &str = r"
    ip -d link | sed 's/_timer *[0-9.]*//g'
    ip address | grep -v valid_lft
    ip rule
    ip -6 rule
    ip -4 route show table all
    ip -6 route show table all | sed 's/ expires [0-9]*sec//'
    ip neighbour show nud permanent
    tc qdisc
    for link in $(ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/\1/'); do
        for side in root ingress egress; do
            # One that is not there is no error.
            tc filter show dev $link $side 2> /dev/null
        done
    done
    true
";

/// One network namespace with a name. It goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    /// Makes it, with loopback up.
    pub(crate) fn new(mark: &Mark) -> Result<Self> {
        let netns = Self { name: format!("{PREFIX}{mark}") };
        ip(&["netns", "add", &netns.name])?;
        ip(&["-n", &netns.name, "link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// A program in it. Unlike with ip-netns(8), it shares the mounts of the host, where engines
    /// keep their containers' namespaces.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        named(&self.name)
    }

    /// Its name, for ip-netns(8).
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the path is that of such a namespace of any fixture.
    pub(crate) fn is_one(path: &Path) -> bool {
        path.parent() == Some(Path::new("/run/netns"))
            && path.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
    }
}

/// All that there is to see of the network that the tests themselves are in, but for counters and
/// clocks.
pub fn picture_of_this_machine() -> Result<String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", PICTURE]);
    client::run(shell)?.success()
}

/// Connects in the network namespace at a path to a TCP server there.
pub fn dial_in(namespace: &Path, address: SocketAddr) -> Result<TcpStream> {
    let dialled = inside_path(namespace, move || TcpStream::connect(address))?;
    dialled.with_context(|| format!("cannot connect to {address} in {}", namespace.display()))
}

/// Does something on a thread in the network namespace of this name, which ends with that. A socket
/// that is made there stays in it.
pub(crate) fn inside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    inside_path(&named(name), work)
}

fn named(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn inside_path<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let shown = path.display().to_string();
    let namespace = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let thread = thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map(|()| work())
    });
    let done = thread.join().map_err(|_| anyhow!("a thread in {shown} panicked"))?;
    done.with_context(|| format!("cannot enter {shown}"))
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A failure here is seen by whoever lists namespaces; the test's own result counts more.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(args);
    client::run(command)?.success().map(drop).with_context(|| format!("ip {}", args.join(" ")))
}
