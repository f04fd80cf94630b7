//! Which signals are blocked: none, for programs that are not ours. A child inherits the mask of
//! the thread that starts it (sigprocmask(2)), and ours has most of them blocked where signals are
//! heard by a descriptor.

use std::process::Command;

use crate::jail;

/// Lets a child that is not ours, a user's program, start with no signal blocked.
pub fn clear_in(command: &mut Command) {
    jail::unblock_signals(command);
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::SigSet;

    use super::*;

    #[test]
    fn child_starts_with_no_signal_blocked() {
        let blocked = |command: &mut Command| {
            let output = command.args(["SigBlk", "/proc/self/status"]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            u64::from_str_radix(text.split_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        std::thread::spawn(move || {
            SigSet::all().thread_block().unwrap();
            assert_ne!(blocked(&mut Command::new("grep")), 0, "a child inherits them");
            let mut command = Command::new("grep");
            clear_in(&mut command);
            assert_eq!(blocked(&mut command), 0);
        })
        .join()
        .unwrap();
    }
}
