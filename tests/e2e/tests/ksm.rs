//! The KSM throttler beside a runtime, which finds it by itself.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use kata_e2e::{Deadline, Installation, await_path, only_a_vm, scenario};
use rustix::process::{Pid, Signal, kill_process};

const SOCKET: &str = "/var/run/kata-ksm-throttler/ksm.sock";

/// The installed daemon where runtimes look for it. It sets plain files in a directory, so that
/// this host's kernel is left alone.
struct Throttler(Child);

impl Throttler {
    fn start(settings: &Path) -> Result<Self> {
        for (name, value) in [("run", "0"), ("pages_to_scan", "100"), ("sleep_millisecs", "20")] {
            fs::write(settings.join(name), value)?;
        }
        let program = "libexec/kata-ksm-throttler/kata-ksm-throttler";
        let child = Command::new(Installation::under_test().prefix().join(program))
            .arg("-sysfs")
            .arg(settings)
            .spawn()
            .context("cannot start the throttler")?;
        let throttler = Self(child);
        let listens = await_path(Path::new(SOCKET), Deadline::for_command())?;
        ensure!(listens, "the throttler does not listen");
        Ok(throttler)
    }

    fn terminate(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        ensure!(self.0.wait()?.success(), "the throttler did not end well");
        Ok(())
    }
}

impl Drop for Throttler {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_vm_that_starts_kicks_the_throttler() -> Result<()> {
    if !only_a_vm("a VM that starts") {
        return Ok(());
    }
    let settings = tempfile::tempdir()?;
    let value = |name: &str| fs::read_to_string(settings.path().join(name));
    let throttler = Throttler::start(settings.path())?;
    ensure!(value("run")? == "0", "something was set before any VM has started");
    scenario(|containerd| {
        let output = containerd.shell("echo up").output()?.success()?;
        ensure!(output == "up\n", "{output:?}");
        ensure!(value("run")? == "1" && value("sleep_millisecs")? == "1", "nobody has kicked");
        Ok(())
    })?;
    throttler.terminate()?;
    ensure!(value("run")? == "0" && value("pages_to_scan")? == "100", "nothing was restored");
    ensure!(!Path::new(SOCKET).exists(), "the socket is left");
    Ok(())
}
