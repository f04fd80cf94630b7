//! Network namespaces of threads (network_namespaces(7)).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Moves the calling thread into the network namespace at `path`; in a process with one thread that
/// is the process. Needs CAP_SYS_ADMIN.
pub fn enter(path: &Path) -> io::Result<()> {
    let namespace = File::open(path)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Gives the calling thread a network namespace of its own, in which there is only a loopback
/// interface that is down.
pub fn unshare() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_gets_an_empty_namespace_and_another_can_enter_it() {
        thread::spawn(|| {
            unshare().unwrap();
            let own = Path::new("/proc/thread-self/ns/net");
            assert!(
                std::fs::read_link(own).unwrap()
                    != std::fs::read_link("/proc/self/ns/net").unwrap()
            );
            enter(Path::new("/proc/self/ns/net")).unwrap();
            assert_eq!(
                std::fs::read_link(own).unwrap(),
                std::fs::read_link("/proc/self/ns/net").unwrap()
            );
        })
        .join()
        .unwrap();
    }

    #[test]
    fn file_that_is_no_namespace_is_an_error() {
        enter(Path::new("/dev/null")).unwrap_err();
    }
}
