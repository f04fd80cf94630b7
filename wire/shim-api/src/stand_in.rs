//! What kata-runtime and kata-shim say to each other.
//!
//! kata-runtime starts kata-shim with the process's own standard streams, a few more descriptors
//! with fixed numbers, and a command line ([`Order`]). Then both talk over the descriptor
//! [`CONTROL`], a line each:
//!
//! ```text
//!   kata-shim                                          kata-runtime
//!     in cgroup, network namespace, session; proxy started
//!     ── ready PROXY-PID | error SENTENCE ──────────▶  hooks, Create (or Exec, Start)
//!     ◀────────────────────── go | go hidden ────────  state, pid file
//!     stands for the process, shows its file system    (end of file instead of `go`: it has come to nothing)
//!     ── standing | error SENTENCE ─────────────────▶
//!     copies, forwards, waits
//! ```
//!
//! When kata-shim is killed before it stands for the process, kata-runtime takes that back.

use std::ffi::OsString;
use std::path::PathBuf;

use protobuf::UnknownValueRef;

use crate::api::{CreateTaskResponse, WaitResponse};

/// The connection to kata-runtime.
pub const CONTROL: i32 = 3;
/// Input goes in here. Absent when the process has none.
pub const STDIN: i32 = 4;
/// Output comes out here.
pub const STDOUT: i32 = 5;
/// The other output. Absent with a terminal.
pub const STDERR: i32 = 6;
/// The proxy's listening socket, when the proxy is to be started.
pub const LISTENER: i32 = 7;

/// What kata-runtime says when the process exists.
pub const GO: &str = "go";

/// The same of a container whose files are not on the host: nothing of it is to be shown.
pub const GO_HIDDEN: &str = "go hidden";

/// What kata-shim says when its end would be the process's end.
pub const STANDING: &str = "standing";

/// The task service's socket in a sandbox's directory.
pub const SOCKET: &str = "proxy.sock";

/// A field of the answer to `Wait` that only a stand-in or a watcher gets: how often it was told
/// that the guest's kernel has killed processes of the container for want of memory.
const OUT_OF_MEMORY: u32 = 20001;

/// A field of the answer to `Create`, 1 where the guest has copies of the container's files, and
/// changes none on the host.
const HIDDEN: u32 = 20001;

/// Has the answer say that the container's files are not on the host.
pub fn set_hidden(answer: &mut CreateTaskResponse) {
    answer.special_fields.mut_unknown_fields().add_varint(HIDDEN, 1);
}

/// Whether the answer says that the container's files are not on the host.
#[must_use]
pub fn is_hidden(answer: &CreateTaskResponse) -> bool {
    let told = answer.special_fields.unknown_fields().get(HIDDEN);
    matches!(told, Some(UnknownValueRef::Varint(1)))
}

/// Has an answer say that memory was wanting, and `times` how often that was told.
pub fn set_out_of_memory(answer: &mut WaitResponse, times: u64) {
    answer.special_fields.mut_unknown_fields().add_varint(OUT_OF_MEMORY, times);
}

/// How often it was told that memory was wanting; 0 of an answer that says nothing of it.
#[must_use]
pub fn times_out_of_memory(answer: &WaitResponse) -> u64 {
    match answer.special_fields.unknown_fields().get(OUT_OF_MEMORY) {
        Some(UnknownValueRef::Varint(times)) => times,
        _ => 0,
    }
}

/// Whether an answer says that memory was wanting.
#[must_use]
pub fn is_out_of_memory(answer: &WaitResponse) -> bool {
    times_out_of_memory(answer) > 0
}

/// Whose terminal the standard streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Terminal {
    /// None.
    #[default]
    None,
    /// One that was made for the process: kata-shim becomes the leader of its session.
    Own,
    /// The user's: kata-shim stays in its session.
    Callers,
}

/// The network namespace that kata-shim is to live in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NetworkNamespace {
    /// The one that it is started in.
    #[default]
    Callers,
    /// A new one.
    New,
    /// The one at this path.
    At(PathBuf),
}

/// A directory or file of the host that whoever enters kata-shim's mount namespace sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Where it is on the host; absolute. `None` of a directory that is the guest's alone: an empty
    /// one is seen, so that nothing is written to where the container would not find it.
    pub source: Option<PathBuf>,
    /// Where it is for the container; absolute.
    pub target: PathBuf,
    /// Whether it cannot be written to there. Nothing can without a source.
    pub readonly: bool,
}

/// kata-shim's command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// The directory in which the sandbox's socket is.
    pub sandbox_dir: PathBuf,
    /// The container's id.
    pub container: String,
    /// The process's id in it; empty for the init.
    pub exec: String,
    /// Whether and whose terminal.
    pub terminal: Terminal,
    /// Where on the network.
    pub network: NetworkNamespace,
    /// The cgroup to live in, as the OCI spec has it; empty for the caller's.
    pub cgroup: String,
    /// What its mount namespace shows once the process exists: first the container's root file
    /// system at `/`, then what is mounted in it. Empty for the caller's namespace.
    pub mounts: Vec<Shown>,
    /// A file to remove at the end.
    pub record: Option<PathBuf>,
    /// The proxy to start, for the first container of a sandbox.
    pub proxy: Option<PathBuf>,
    /// The proxy logs in detail.
    pub debug: bool,
    /// To end when the caller does.
    pub foreground: bool,
}

/// A command line that kata-runtime has not written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("kata-shim is started by kata-runtime, not by hand: {0} is not understood")]
pub struct OrderError(String);

impl Order {
    /// The words of the command line, without the program.
    #[must_use]
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |flag: &str, value: OsString| args.extend([flag.into(), value]);
        add("--sandbox-dir", self.sandbox_dir.clone().into());
        add("--container", self.container.clone().into());
        if !self.exec.is_empty() {
            add("--exec", self.exec.clone().into());
        }
        match self.terminal {
            Terminal::None => {}
            Terminal::Own => add("--terminal", "own".into()),
            Terminal::Callers => add("--terminal", "callers".into()),
        }
        match &self.network {
            NetworkNamespace::Callers => {}
            NetworkNamespace::New => add("--netns", "new".into()),
            NetworkNamespace::At(path) => add("--netns", path.clone().into()),
        }
        if !self.cgroup.is_empty() {
            add("--cgroup", self.cgroup.clone().into());
        }
        for shown in &self.mounts {
            let Some(source) = &shown.source else {
                add("--hide", shown.target.clone().into());
                continue;
            };
            add(if shown.readonly { "--show-readonly" } else { "--show" }, source.clone().into());
            add("--at", shown.target.clone().into());
        }
        if let Some(record) = &self.record {
            add("--record", record.clone().into());
        }
        if let Some(proxy) = &self.proxy {
            add("--proxy", proxy.clone().into());
        }
        let set = [("--debug", self.debug), ("--foreground", self.foreground)];
        args.extend(set.into_iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag.into()));
        args
    }

    /// Reads what [`Order::to_args`] has written.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, OrderError> {
        let mut order = Self::default();
        let mut args = args.into_iter();
        while let Some(flag) = args.next() {
            let shown = || OrderError(flag.to_string_lossy().into_owned());
            match flag.to_str() {
                Some("--debug") => {
                    order.debug = true;
                    continue;
                }
                Some("--foreground") => {
                    order.foreground = true;
                    continue;
                }
                _ => {}
            }
            let value = args.next().ok_or_else(shown)?;
            let text = || value.clone().into_string().map_err(|_| shown());
            match flag.to_str() {
                Some("--sandbox-dir") => order.sandbox_dir = value.into(),
                Some("--container") => order.container = text()?,
                Some("--exec") => order.exec = text()?,
                Some("--terminal") if value == "own" => order.terminal = Terminal::Own,
                Some("--terminal") if value == "callers" => order.terminal = Terminal::Callers,
                Some("--netns") if value == "new" => order.network = NetworkNamespace::New,
                Some("--netns") => order.network = NetworkNamespace::At(value.into()),
                Some("--cgroup") => order.cgroup = text()?,
                Some(show @ ("--show" | "--show-readonly")) => order.mounts.push(Shown {
                    source: Some(value.into()),
                    target: PathBuf::from("/"),
                    readonly: show == "--show-readonly",
                }),
                Some("--hide") => {
                    let target = value.into();
                    order.mounts.push(Shown { source: None, target, readonly: true });
                }
                Some("--at") => order.mounts.last_mut().ok_or_else(shown)?.target = value.into(),
                Some("--record") => order.record = Some(value.into()),
                Some("--proxy") => order.proxy = Some(value.into()),
                _ => return Err(shown()),
            }
        }
        if order.container.is_empty() || order.sandbox_dir.as_os_str().is_empty() {
            return Err(OrderError("a command line without a container".to_owned()));
        }
        Ok(order)
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written() {
        let plain =
            Order { sandbox_dir: "/run/s".into(), container: "c".to_owned(), ..Order::default() };
        let full = Order {
            exec: "x".to_owned(),
            terminal: Terminal::Own,
            network: NetworkNamespace::At("/proc/7/ns/net".into()),
            cgroup: "a.slice:b:c".to_owned(),
            mounts: vec![
                Shown { source: Some("/b/rootfs".into()), target: "/".into(), readonly: true },
                Shown { source: Some("/srv".into()), target: "/data".into(), readonly: false },
                Shown { source: None, target: "/tmp".into(), readonly: true },
            ],
            record: Some("/run/s/x.json".into()),
            proxy: Some("/usr/libexec/p".into()),
            debug: true,
            foreground: true,
            ..plain.clone()
        };
        let new = Order { network: NetworkNamespace::New, ..plain.clone() };
        for order in [plain, full, new] {
            assert_eq!(Order::parse(order.to_args()), Ok(order));
        }
    }

    #[test]
    fn answer_says_beside_the_pid_that_files_are_hidden() {
        let mut answer = CreateTaskResponse { pid: 7, ..Default::default() };
        assert!(!is_hidden(&answer));
        set_hidden(&mut answer);
        let bytes = answer.write_to_bytes().unwrap();
        assert!(is_hidden(&CreateTaskResponse::parse_from_bytes(&bytes).unwrap()));
    }

    #[test]
    fn answer_says_beside_the_status_that_memory_was_wanting() {
        let mut answer = WaitResponse { exit_status: 137, ..Default::default() };
        assert!(!is_out_of_memory(&answer));
        set_out_of_memory(&mut answer, 2);
        let bytes = answer.write_to_bytes().unwrap();
        let answer = WaitResponse::parse_from_bytes(&bytes).unwrap();
        assert_eq!((answer.exit_status, is_out_of_memory(&answer)), (137, true));
        assert_eq!(times_out_of_memory(&answer), 2);
    }

    #[test]
    fn what_nobody_has_written_is_refused() {
        for args in [&["--container"][..], &["--netns", "new"], &["--pets", "7"], &[]] {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            assert!(Order::parse(args).is_err());
        }
    }
}
