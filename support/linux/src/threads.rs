//! What the threads of a process are at.

use std::fs;
use std::path::Path;

/// Each thread's name, its state, and the kernel's function that it waits in, as `/proc` tells them
/// (proc_pid_status(5), proc_pid_wchan(5)): `qemu: D (disk sleep) in folio_wait_bit, …`. Empty for
/// a process that is gone. The names are those that the process has chosen.
pub(crate) fn told(pid: u32) -> String {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return String::new() };
    let told = threads.flatten().filter_map(|thread| one(&thread.path()));
    told.collect::<Vec<_>>().join(", ")
}

/// `None` for a thread that is gone.
fn one(thread: &Path) -> Option<String> {
    let status = fs::read_to_string(thread.join("status")).ok()?;
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (name, state) = (field("Name:")?, field("State:")?);
    // It is 0 for one that runs, and for who may not know.
    let place = fs::read_to_string(thread.join("wchan")).unwrap_or_default();
    Some(match place.as_str() {
        "" | "0" => format!("{name}: {state}"),
        place => format!("{name}: {state} in {place}"),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn every_thread_is_told_with_its_state() {
        let (runs, ends) = (Barrier::new(2), Barrier::new(2));
        let waits = || {
            runs.wait();
            ends.wait();
        };
        let told = std::thread::scope(|scope| {
            let named = std::thread::Builder::new().name("waits".to_owned());
            named.spawn_scoped(scope, waits).unwrap();
            runs.wait();
            let told = told(std::process::id());
            ends.wait();
            told
        });
        assert!(told.contains("waits: "), "{told}");
        assert!(told.contains(": R (running)"), "{told}");
    }

    #[test]
    fn nothing_is_told_of_nobody() {
        assert_eq!(told(u32::MAX), "");
    }
}
