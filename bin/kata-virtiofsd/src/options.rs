//! The command line: the part of virtiofsd's that makes sense here, with its `-o` style.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use log::LevelFilter;
use virtiofsd::passthrough::CachePolicy;
use virtiofsd::passthrough::xattrmap::XattrMap;

/// How the server is shut in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sandbox {
    /// Mount, network and IPC namespaces of its own with nothing but the shared directory. Asks to
    /// be started as process 1 of a PID namespace.
    Namespace,
    /// The shared directory as root directory, nothing more.
    Chroot,
    /// Nothing.
    None,
}

/// What happens to the server on a system call that it has no use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Seccomp {
    /// It is killed.
    Kill,
    /// The audit log gets a line.
    Log,
    /// Nothing.
    None,
}

/// Where the VMM connects.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Endpoint<'a> {
    /// An inherited descriptor.
    Inherited(RawFd),
    /// A path that is bound.
    Path(&'a Path),
}

/// Serves a directory to a virtual machine (virtio-fs over vhost-user).
#[derive(Debug, Parser)]
#[command(name = "kata-virtiofsd", version, args_override_self = true)]
pub(crate) struct Options {
    /// The directory to serve
    #[arg(long, value_name = "DIR")]
    pub(crate) shared_dir: PathBuf,

    /// Number of an inherited, listening unix socket
    #[arg(
        long,
        value_name = "N",
        required_unless_present = "socket_path",
        conflicts_with = "socket_path"
    )]
    fd: Option<RawFd>,

    /// Path of the unix socket to listen on
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Mount tag for VMMs that ask the server for it (QEMU does not)
    #[arg(long, value_parser = parse_tag)]
    pub(crate) tag: Option<String>,

    /// What the guest may cache: auto, always, never or metadata
    #[arg(long, default_value = "auto")]
    pub(crate) cache: CachePolicy,

    /// Threads that serve requests; 0 serves them one by one
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_thread_count)]
    pub(crate) thread_pool_size: usize,

    /// How the server shuts itself in
    #[arg(long, value_enum, default_value_t = Sandbox::Namespace)]
    pub(crate) sandbox: Sandbox,

    /// What happens on a system call that the server has no use for
    #[arg(long, value_enum, default_value_t = Seccomp::Kill)]
    pub(crate) seccomp: Seccomp,

    /// off, error, warn, info, debug or trace
    #[arg(long, default_value = "warn")]
    pub(crate) log_level: LevelFilter,

    /// Let the guest change nothing
    #[arg(long)]
    pub(crate) readonly: bool,

    /// Tell the guest which directories are mount points (the default)
    #[arg(long, overrides_with = "no_announce_submounts")]
    announce_submounts: bool,

    /// Show the guest one big file system
    #[arg(long, overrides_with = "announce_submounts")]
    no_announce_submounts: bool,

    /// Let the guest have extended attributes
    #[arg(long)]
    pub(crate) xattr: bool,

    /// Rules that turn the guest's names of extended attributes into the host's, in virtiofsd's
    /// syntax; implies --xattr
    #[arg(long, value_name = "RULES", value_parser = parse_xattrmap)]
    pub(crate) xattrmap: Option<XattrMap>,

    /// Let the guest cache what it writes
    #[arg(long)]
    pub(crate) writeback: bool,

    /// Honour O_DIRECT
    #[arg(long)]
    pub(crate) allow_direct_io: bool,

    /// Do not answer a directory's listing together with its entries' attributes
    #[arg(long)]
    pub(crate) no_readdirplus: bool,
}

impl Options {
    /// Reads the program's command line; prints what is wrong with it and ends the program when it
    /// cannot.
    pub(crate) fn from_command_line() -> Self {
        Self::parse_from(without_short_options(std::env::args_os()))
    }

    /// Where the VMM connects.
    pub(crate) fn endpoint(&self) -> Endpoint<'_> {
        match (self.fd, &self.socket_path) {
            (Some(number), _) => Endpoint::Inherited(number),
            (None, Some(path)) => Endpoint::Path(path),
            (None, None) => unreachable!("the parser asks for one of the two"),
        }
    }

    /// Whether the guest is told about mount points.
    pub(crate) fn announces_submounts(&self) -> bool {
        !self.no_announce_submounts
    }
}

fn parse_xattrmap(text: &str) -> Result<XattrMap, String> {
    XattrMap::try_from(text).map_err(|error| match error.rule {
        Some(number) => format!("rule {number} is not one of virtiofsd's ({})", error.cause),
        None => format!("these are not rules of virtiofsd's ({})", error.cause),
    })
}

/// Virtio 1.2 §5.11.4: the tag has room for 36 bytes.
fn parse_tag(tag: &str) -> Result<String, String> {
    match tag.len() {
        1..=36 => Ok(tag.to_owned()),
        length => Err(format!("a tag has 1 to 36 bytes, not {length}")),
    }
}

fn parse_thread_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 0..=64) => Ok(count),
        _ => Err("give a number from 0 to 64".to_owned()),
    }
}

/// Rewrites `-o a,b=c` as long options. What has no counterpart stays, for the parser to complain
/// about by name.
fn without_short_options(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut rewritten = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let list = match arg.to_str() {
            Some("-o") => args.next(),
            Some(text) if text.starts_with("-o") => Some(OsString::from(&text[2..])),
            _ => None,
        };
        match list.as_deref().map(OsStr::to_string_lossy) {
            Some(list) => {
                rewritten.extend(list.split(',').filter_map(long_option).map(OsString::from));
            }
            None => rewritten.push(arg),
        }
    }
    rewritten
}

/// The long option that does what one of the `-o` list does; `None` for one that changes nothing
/// here.
fn long_option(option: &str) -> Option<String> {
    let (key, value) = match option.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (option, None),
    };
    let (key, value) = match (key, value) {
        (
            "" | "no_posix_lock" | "no_flock" | "no_xattr" | "no_writeback" | "no_killpriv_v2",
            None,
        ) => return None,
        ("source", value) => ("shared-dir", value),
        ("loglevel", Some("err")) => ("log-level", Some("error")),
        ("loglevel", value) => ("log-level", value),
        ("cache", Some("none")) => ("cache", Some("never")),
        other => other,
    };
    let key = key.replace('_', "-");
    Some(value.map_or(format!("--{key}"), |value| format!("--{key}={value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, clap::Error> {
        let args = std::iter::once("kata-virtiofsd").chain(line.split(' ')).map(OsString::from);
        Options::try_parse_from(without_short_options(args))
    }

    #[test]
    fn defaults_shut_the_server_in() {
        let options = parse("--fd=3 --shared-dir /srv").unwrap();
        assert_eq!(options.endpoint(), Endpoint::Inherited(3));
        assert_eq!((options.sandbox, options.seccomp), (Sandbox::Namespace, Seccomp::Kill));
        assert!(options.announces_submounts() && !options.readonly && !options.xattr);
    }

    #[test]
    fn upstream_lines_are_understood() {
        let options = parse(
            "--socket-path=/run/fs.sock --shared-dir=/srv --cache=auto --thread-pool-size=1 -o announce_submounts",
        )
        .unwrap();
        assert_eq!(options.endpoint(), Endpoint::Path(Path::new("/run/fs.sock")));
        assert_eq!(options.thread_pool_size, 1);

        let options =
            parse("--fd 3 -o source=/srv,cache=none,no_posix_lock,xattr -ologlevel=err").unwrap();
        assert_eq!(options.shared_dir, Path::new("/srv"));
        assert!(options.xattr && matches!(options.cache, CachePolicy::Never));
        assert_eq!(options.log_level, LevelFilter::Error);
    }

    #[test]
    fn rules_for_names_of_attributes_are_read() {
        let with = |rules: &str| {
            let map = format!("--xattrmap={rules}");
            Options::try_parse_from(["kata-virtiofsd", "--fd=3", "--shared-dir=/a", &map])
        };
        let rules = with(":map:trusted.:user.virtiofs.:").unwrap();
        assert!(rules.xattrmap.is_some() && !rules.xattr);
        assert!(with(":prefix:nobody:").is_err());
    }

    #[test]
    fn later_option_wins() {
        let options = parse(
            "--fd=3 --shared-dir=/a --cache=never --cache=always --announce-submounts --no-announce-submounts",
        );
        let options = options.unwrap();
        assert!(matches!(options.cache, CachePolicy::Always) && !options.announces_submounts());
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "--fd=3",
            "--shared-dir=/a",
            "--fd=3 --socket-path=/b --shared-dir=/a",
            "--fd=3 --shared-dir=/a --cache=sometimes",
            "--fd=3 --shared-dir=/a --thread-pool-size=1000",
            "--fd=3 --shared-dir=/a -o modcaps=+sys_admin",
            "--fd=3 --shared-dir=/a --tag=0123456789012345678901234567890123456",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
