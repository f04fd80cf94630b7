//! Signals to this process, which are meant for the process that it stands for.

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that are not forwarded: this process's own faults, and what the kernel tells it about
/// its own children and pipes.
const OWN: [Signal; 8] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGSYS,
    Signal::SIGCHLD,
    Signal::SIGPIPE,
];

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The terminal has another size.
    Resized,
    /// A signal for the process, by number.
    Signal(u32),
}

/// All signals of this process that can be caught.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// From now on signals wait to be heard. To be called before any thread is started.
    pub(crate) fn block() -> anyhow::Result<Self> {
        let mut all = SigSet::all();
        for own in OWN {
            all.remove(own);
        }
        all.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC)
            .context("cannot listen for signals")?;
        Ok(Self(fd))
    }

    /// Waits for the next one.
    pub(crate) fn next(&mut self) -> Heard {
        loop {
            if let Ok(Some(info)) = self.0.read_signal() {
                let resized = info.ssi_signo == Signal::SIGWINCH as u32;
                return if resized { Heard::Resized } else { Heard::Signal(info.ssi_signo) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_heard_and_not_acted_upon() {
        std::thread::spawn(|| {
            let mut signals = Signals::block().unwrap();
            for (signal, heard) in [
                (Signal::SIGTERM, Heard::Signal(15)),
                (Signal::SIGWINCH, Heard::Resized),
                (Signal::SIGUSR1, Heard::Signal(10)),
            ] {
                // To this thread, which is the only one here that does not die of it.
                nix::sys::signal::raise(signal).unwrap();
                assert_eq!(signals.next(), heard);
            }
        })
        .join()
        .unwrap();
    }
}
