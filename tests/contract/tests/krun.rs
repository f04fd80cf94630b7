//! The contract with krun, where it can boot the installed guest.

use kata_driver_contract::{Subject, contract};
use kata_e2e::Installation;
use kata_krun::{Krun, KrunSettings};

fn krun() -> Result<Subject, String> {
    match kata_krun::obstacle(&Installation::under_test().kernel()) {
        Some(obstacle) => Err(obstacle),
        None => Ok(Subject::new(Box::new(driver()))),
    }
}

fn driver() -> Krun {
    Krun::new(KrunSettings::new(Installation::under_test().libexec().join("kata-krun")))
}

contract!(krun);

/// On a kernel without landlock(7).
mod without_landlock {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::thread;

    use anyhow::{Context, Result, ensure};
    use kata_driver_contract::{Failure, promises, skipped};
    use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
    use tracing::subscriber::with_default;

    use super::*;

    /// What was logged; clones share it.
    #[derive(Debug, Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// For the calling thread, and for what it starts, the kernel has no landlock from here on.
    fn forget_landlock() -> Result<()> {
        let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
        let call = ScmpSyscall::from_name("landlock_create_ruleset")?;
        filter.add_rule(ScmpAction::Errno(libc::ENOSYS), call)?;
        filter.load().context("cannot filter this thread's system calls")
    }

    #[test]
    fn vmm_runs_behind_its_other_walls_and_says_so_once() -> Result<(), Failure> {
        let on_a_thread_of_its_own = || {
            forget_landlock()?;
            let log = Log::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
            let booted = with_default(subscriber, || {
                let driver = driver();
                if let Some(obstacle) = kata_krun::obstacle(&Installation::under_test().kernel()) {
                    skipped("the boot without landlock", &obstacle);
                    return Ok(());
                }
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(promises::agent_is_reached(Subject::new(Box::new(driver))))
            });
            booted?;
            let log = log.0.lock().unwrap_or_else(PoisonError::into_inner);
            let log = String::from_utf8_lossy(&log).into_owned();
            ensure!(log.matches("this kernel has no landlock").count() == 1, "{log}");
            Ok(())
        };
        thread::spawn(on_a_thread_of_its_own).join().unwrap_or_else(|_| Err(Failure::msg("panic")))
    }
}
