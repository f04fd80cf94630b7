//! Looking into a network namespace without entering it with the whole process (network_namespaces(7)).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The names of the network interfaces in the namespace at `path`, loopback excepted. Fails when it is no network namespace, or
/// without CAP_SYS_ADMIN.
pub fn interfaces(path: &Path) -> io::Result<Vec<String>> {
    let namespace = File::open(path)?;
    // setns(2) moves the calling thread, so a thread is spent on it.
    let looker = thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        std::fs::read_to_string("/proc/thread-self/net/dev")
    });
    let table = looker
        .join()
        .map_err(|_| io::Error::other("the thread that looked into the namespace panicked"))??;
    Ok(parse_names(&table))
}

/// The names in a `/proc/net/dev` table (proc_pid_net(5)): two lines of heading, then `name: counters`.
fn parse_names(table: &str) -> Vec<String> {
    let names =
        table.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    names.filter(|name| *name != "lo").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_the_table() {
        let table = "Inter-| Receive\n face |bytes\n    lo: 1 2\n  eth0: 3 4\nveth1:5\n";
        assert_eq!(parse_names(table), ["eth0", "veth1"]);
    }

    #[test]
    fn own_namespace_can_be_looked_into() {
        interfaces(Path::new("/proc/self/ns/net")).unwrap();
    }

    #[test]
    fn file_that_is_no_namespace_is_an_error() {
        interfaces(Path::new("/dev/null")).unwrap_err();
    }
}
