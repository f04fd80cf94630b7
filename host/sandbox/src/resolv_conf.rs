//! The resolv.conf(5) that an engine mounts into its containers.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// The largest in bytes that is looked at.
const MAX_SIZE: u64 = 64 * 1024;

/// Docker's name server, which listens there in the network namespace of each container. Other
/// addresses of the loopback interface mean whatever a container of the pod may have there, and
/// that is in the guest.
const DOCKERS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Where one is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf(PathBuf);

impl ResolvConf {
    /// The one at `path`, which need not be there.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its lines, as they are now: engines write it until the first container starts. One that
    /// cannot be read has none, for that is the mount's own matter, and only a file of a sane size
    /// is one.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let is_one = fs::metadata(&self.0)
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_SIZE);
        let text = if is_one { fs::read_to_string(&self.0).ok() } else { None };
        text.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The name server that it names and that only the sandbox's network namespace on the host has;
    /// `None` without one.
    pub(crate) fn server_on_host(&self) -> Option<Ipv4Addr> {
        self.lines().iter().filter_map(|line| name_server(line)).find(|server| *server == DOCKERS)
    }
}

/// The address in a line of that keyword, which begins the line (resolv.conf(5)).
fn name_server(line: &str) -> Option<Ipv4Addr> {
    let value = line.strip_prefix("nameserver")?;
    if !value.starts_with([' ', '\t']) {
        return None;
    }
    value.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(text: &str) -> (tempfile::NamedTempFile, ResolvConf) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let resolv_conf = ResolvConf::at(file.path().to_owned());
        (file, resolv_conf)
    }

    #[test]
    fn only_dockers_server_is_the_hosts() {
        for (text, server) in [
            ("search lan\nnameserver 127.0.0.11\noptions ndots:0\n", Some(DOCKERS)),
            ("nameserver 192.0.2.1\nnameserver\t127.0.0.11 # Docker\n", Some(DOCKERS)),
            ("nameserver 127.0.0.53\nnameserver 127.0.0.1\nnameserver ::1\n", None),
            ("#nameserver 127.0.0.11\nnameservers 127.0.0.11\n nameserver 127.0.0.11\n", None),
            ("nameserver127.0.0.11\nnameserver\n", None),
            ("", None),
        ] {
            let (_file, resolv_conf) = file(text);
            assert_eq!(resolv_conf.server_on_host(), server, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_file_of_a_sane_size_has_no_lines() {
        let (_file, large) = file(&"#\n".repeat(40_000));
        assert_eq!(large.lines(), Vec::<String>::new());
        for path in ["/dev/zero", "/proc", "/nonexistent"] {
            assert_eq!(ResolvConf::at(path.into()).lines(), Vec::<String>::new());
        }
    }

    proptest! {
        #[test]
        fn every_server_is_read_and_no_line_makes_the_reader_panic(ip: u32, line: String) {
            let server = Ipv4Addr::from_bits(ip);
            prop_assert_eq!(name_server(&format!("nameserver {server} ")), Some(server));
            let _ = name_server(&line);
            let _ = name_server(&format!("nameserver {line}"));
        }
    }
}
