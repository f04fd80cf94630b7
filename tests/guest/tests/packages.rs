//! An image with packages of Debian, as somebody makes it who wants to look around in a guest.

use anyhow::{Result, ensure};
use kata_agent_api::agent::GuestDetailsRequest;
use kata_channel::DEBUG_CONSOLE_PORT;
use kata_guest_tests::*;
use tokio::io::AsyncWriteExt as _;

/// Dependencies come along, names of files are where Debian's users expect them, and the root stays
/// read-only.
#[test]
fn debug_shell_has_the_packages_that_were_asked_for() -> Result<()> {
    let packages = ["--suite=stable", "--package=bash", "--package=coreutils", "--package=procps"];
    let (_directory, image) = image_with(&packages)?;
    Setup::image(&image).run(async |guest| {
        let mut shell = guest.machine.dial(DEBUG_CONSOLE_PORT).await?;
        let script = "readlink /proc/$$/exe; echo pid1 $(ps -o comm= -p 1); whoami; touch /here; echo the $(( 6 * 7 )) end\n";
        shell.write_all(script.as_bytes()).await?;
        shell.flush().await?;
        let text = read_until(&mut shell, "the 42 end").await?;
        for expected in ["/usr/bin/bash", "pid1 init", "root", "Read-only file system"] {
            ensure!(text.lines().any(|line| line.contains(expected)), "no {expected:?} in {text}");
        }
        Ok(())
    })
}

/// The bigger image: systemd sets the machine up, starts the agent as a service without a
/// complaint, and the machine ends with it.
#[test]
fn agent_is_a_service_of_systemd() -> Result<()> {
    let (_directory, image) =
        image_with(&["--suite=stable", "--init=systemd", "--package=bash", "--package=coreutils"])?;
    Setup::image(&image).run(async |guest| {
        let details =
            guest.agent.get_guest_details(context(), &GuestDetailsRequest::new()).await?;
        ensure!(!details.agent_details.init_daemon, "it takes itself for the first process");
        let mut shell = guest.machine.dial(DEBUG_CONSOLE_PORT).await?;
        let script = "cat /proc/1/comm; echo $(systemctl is-active kata-agent kata-containers.target); \
                      echo failed: $(systemctl --failed --plain --no-legend) end\n";
        shell.write_all(script.as_bytes()).await?;
        shell.flush().await?;
        let text = read_until(&mut shell, "failed: end").await?;
        for expected in ["systemd", "active active"] {
            ensure!(text.lines().any(|line| line.trim() == expected), "no {expected:?} in {text}");
        }
        Ok(())
    })
}
