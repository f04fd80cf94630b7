//! The agent's parameters on the kernel command line.
//!
//! The runtime writes `agent.*` words there; everything else belongs to the kernel or to somebody
//! else and is skipped. Parsing is pure and never fails: a word that cannot be understood becomes
//! a warning, since a guest that refuses to boot over a typo cannot say why.

use std::path::PathBuf;
use std::time::Duration;

use crate::power::PowerOff;
use crate::vsock_peers::VsockPeers;

/// The largest pipe buffer that the agent will ask for: what an unprivileged process may have by
/// default is 1 MiB (`/proc/sys/fs/pipe-max-size`), and more only costs guest memory.
pub const MAX_PIPE_SIZE: u32 = 16 << 20;

/// How much the agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what makes an operation fail.
    Error,
    /// What is suspicious, too.
    Warn,
    /// What happens in the life of a container, too. The default.
    Info,
    /// Every step.
    Debug,
    /// Every step of the libraries, too.
    Trace,
}

/// Where the agent waits for the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ServerAddress {
    /// The virtio-serial port or vsock, whichever appears first.
    #[default]
    Any,
    /// Only vsock, on this port.
    Vsock(u32),
    /// A unix socket, for an agent that is run by hand.
    Unix(PathBuf),
}

/// What the command line says. [`Options::default`] is what an empty one says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `agent.log`: the most talkative level that is kept.
    pub log: LogLevel,
    /// `agent.log_vport`: port on which the host may read the log; `None` when it may not.
    pub log_port: Option<u32>,
    /// `agent.debug_console`: whether a shell is offered.
    pub debug_console: bool,
    /// `agent.debug_console_vport`: port of that shell; `None` means on the guest's console.
    pub debug_console_port: Option<u32>,
    /// `agent.server_addr`.
    pub server: ServerAddress,
    /// `agent.container_pipe_size` in bytes; `None` leaves the kernel's default.
    pub container_pipe_size: Option<u32>,
    /// `agent.hotplug_timeout`: how long a device may take to appear.
    pub hotplug_timeout: Duration,
    /// `agent.power`: how the machine ends; our own parameter, see [`PowerOff`].
    pub power: PowerOff,
    /// `agent.vsock_peers`: who may connect over vsock; our own parameter, set by the driver that
    /// dials accordingly.
    pub vsock_peers: VsockPeers,
    /// What was not understood, one sentence each, for the log once there is one.
    pub warnings: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log: LogLevel::Info,
            log_port: None,
            debug_console: false,
            debug_console_port: None,
            server: ServerAddress::Any,
            container_pipe_size: None,
            hotplug_timeout: Duration::from_secs(3),
            power: PowerOff::Off,
            vsock_peers: VsockPeers::Any,
            warnings: Vec::new(),
        }
    }
}

impl Options {
    /// Reads the words of `cmdline`; a later word wins over an earlier one.
    #[must_use]
    pub fn parse(cmdline: &str) -> Self {
        let mut options = Self::default();
        for word in cmdline.split_ascii_whitespace() {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, Some(value.trim_matches('"'))),
                None => (word, None),
            };
            let Some(name) = key.strip_prefix("agent.") else { continue };
            if let Err(expected) = options.set(name, value) {
                options.warnings.push(format!("kernel parameter {word:?} is ignored: {expected}"));
            }
        }
        options
    }

    /// Applies one parameter; the error says what would have been understood.
    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), &'static str> {
        match name {
            "log" => self.log = log_level(value)?,
            "log_vport" => self.log_port = port(value)?,
            "debug_console" => self.debug_console = flag(value)?,
            "debug_console_vport" => self.debug_console_port = port(value)?,
            "server_addr" => self.server = server_address(value)?,
            "container_pipe_size" => self.container_pipe_size = pipe_size(value)?,
            "hotplug_timeout" => self.hotplug_timeout = seconds(value)?,
            "power" => self.power = power(value)?,
            "vsock_peers" => self.vsock_peers = vsock_peers(value)?,
            // Understood by upstream's agent; they switch on what this one does not have.
            "devmode" | "trace" | "passfd_listener_port" | "unified_cgroup_hierarchy" => {
                return Err("this agent does not have what it switches on");
            }
            _ => return Err("this agent knows no such parameter"),
        }
        Ok(())
    }
}

/// The address in `agent.server_addr`, also used for `KATA_AGENT_SERVER_ADDR`.
///
/// # Errors
///
/// Says which forms are understood.
pub fn server_address(value: Option<&str>) -> Result<ServerAddress, &'static str> {
    let expected = "expected vsock://-1:<port> or unix://<absolute path>";
    let value = value.ok_or(expected)?;
    if let Some(path) = value.strip_prefix("unix://") {
        return if path.starts_with('/') {
            Ok(ServerAddress::Unix(PathBuf::from(path)))
        } else {
            Err(expected)
        };
    }
    let address = value.strip_prefix("vsock://").ok_or(expected)?;
    let (_cid, port) = address.rsplit_once(':').ok_or(expected)?;
    port.parse().map(ServerAddress::Vsock).map_err(|_| expected)
}

fn log_level(value: Option<&str>) -> Result<LogLevel, &'static str> {
    match value {
        Some("critical" | "fatal" | "panic" | "error") => Ok(LogLevel::Error),
        Some("warn" | "warning") => Ok(LogLevel::Warn),
        Some("info") => Ok(LogLevel::Info),
        Some("debug") => Ok(LogLevel::Debug),
        Some("trace") => Ok(LogLevel::Trace),
        _ => Err("expected critical, error, warn, info, debug or trace"),
    }
}

/// A bare word means yes, as it does for the kernel's own flags.
fn flag(value: Option<&str>) -> Result<bool, &'static str> {
    match value {
        None | Some("1" | "true" | "yes" | "on") => Ok(true),
        Some("0" | "false" | "no" | "off") => Ok(false),
        Some(_) => Err("expected true or false"),
    }
}

/// 0 is upstream's way to say "none".
fn port(value: Option<&str>) -> Result<Option<u32>, &'static str> {
    match value.and_then(|value| value.parse::<u32>().ok()) {
        Some(0) => Ok(None),
        Some(port) => Ok(Some(port)),
        None => Err("expected a port number"),
    }
}

fn pipe_size(value: Option<&str>) -> Result<Option<u32>, &'static str> {
    match value.and_then(|value| value.parse::<u32>().ok()) {
        Some(0) => Ok(None),
        Some(size) if size <= MAX_PIPE_SIZE => Ok(Some(size)),
        _ => Err("expected a size in bytes of at most 16 MiB"),
    }
}

fn power(value: Option<&str>) -> Result<PowerOff, &'static str> {
    match value {
        Some("off") => Ok(PowerOff::Off),
        Some("reset") => Ok(PowerOff::Reset),
        _ => Err("expected off or reset"),
    }
}

fn vsock_peers(value: Option<&str>) -> Result<VsockPeers, &'static str> {
    match value {
        Some("any") => Ok(VsockPeers::Any),
        Some("privileged") => Ok(VsockPeers::Privileged),
        _ => Err("expected any or privileged"),
    }
}

fn seconds(value: Option<&str>) -> Result<Duration, &'static str> {
    value
        .and_then(|value| value.strip_suffix('s').unwrap_or(value).parse::<u32>().ok())
        .map(|seconds| Duration::from_secs(seconds.into()))
        .ok_or("expected a number of seconds")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parse_typical_line_takes_only_agent_words() {
        let options = Options::parse(
            "console=ttyS0 quiet agent.log=debug agent.log_vport=1025 agent.debug_console \
             agent.debug_console_vport=1026 agent.container_pipe_size=65536 \
             agent.hotplug_timeout=10 panic=1\n",
        );
        assert_eq!(options.log, LogLevel::Debug);
        assert_eq!(options.log_port, Some(1025));
        assert!(options.debug_console);
        assert_eq!(options.debug_console_port, Some(1026));
        assert_eq!(options.container_pipe_size, Some(65536));
        assert_eq!(options.hotplug_timeout, Duration::from_secs(10));
        assert!(options.warnings.is_empty(), "{:?}", options.warnings);
    }

    #[test]
    fn page_for_users_has_every_parameter() {
        let code = include_str!("cmdline.rs");
        let arms = code.lines().filter_map(|line| {
            let (name, action) = line.trim().strip_prefix('"')?.split_once("\" => ")?;
            action.starts_with("self.").then_some(name)
        });
        let page = include_str!("../../../docs/agent.md");
        let names: Vec<_> = arms.collect();
        assert_eq!(names.len(), 9, "{names:?}");
        for name in names {
            assert!(page.contains(&format!("| `agent.{name}` |")), "{name}");
        }
    }

    #[test]
    fn parse_server_addr_understands_both_schemes() {
        let server = |line: &str| Options::parse(line).server;
        assert_eq!(server("agent.server_addr=vsock://-1:1024"), ServerAddress::Vsock(1024));
        assert_eq!(
            server("agent.server_addr=unix:///tmp/a.sock"),
            ServerAddress::Unix("/tmp/a.sock".into())
        );
        assert_eq!(server("agent.server_addr=unix://relative"), ServerAddress::Any);
    }

    #[test]
    fn parse_vsock_peers_are_any_unless_said() {
        let peers = |line: &str| Options::parse(line).vsock_peers;
        assert_eq!(peers("quiet"), VsockPeers::Any);
        assert_eq!(peers("agent.vsock_peers=privileged"), VsockPeers::Privileged);
        assert_eq!(peers("agent.vsock_peers=privileged agent.vsock_peers=any"), VsockPeers::Any);
    }

    #[test]
    fn parse_unknown_or_bad_words_warns_and_keeps_defaults() {
        let options = Options::parse("agent.frobnicate=1 agent.log=loud agent.log_vport=x");
        assert_eq!(options.warnings.len(), 3);
        assert_eq!(Options { warnings: Vec::new(), ..options }, Options::default());
    }

    proptest! {
        #[test]
        fn parse_any_text_never_panics_and_bounds_hold(line in ".{0,200}") {
            let options = Options::parse(&line);
            prop_assert!(options.container_pipe_size.is_none_or(|size| size <= MAX_PIPE_SIZE));
            prop_assert_ne!(options.log_port, Some(0));
        }

        #[test]
        fn parse_later_word_wins(first in 1u32..65536, second in 1u32..65536) {
            let line = format!("agent.log_vport={first} x agent.log_vport={second}");
            prop_assert_eq!(Options::parse(&line).log_port, Some(second));
        }
    }
}
