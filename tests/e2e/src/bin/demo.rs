//! `make demo`: a container in a virtual machine under containerd, with proof.

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Containerd, Installation, Runtime, Scenario};

fn main() -> ExitCode {
    match Scenario::new().run(demo) {
        Ok(()) => {
            println!(
                "  Everything is gone again: processes, mounts, cgroups, sockets, directories.\n"
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(containerd: &Containerd) -> Result<()> {
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").context("no host kernel")?;
    let bin = Installation::under_test().bin();
    println!("\n  A private containerd runs, with {} first in its PATH.\n", bin.display());
    let address = containerd.address();
    println!(
        "  $ ctr --address {} run --rm --runtime {} busybox demo uname -a",
        address.display(),
        Runtime::Kata.name()
    );
    let start = Instant::now();
    let uname = containerd.run(["uname", "-a"]).under(Runtime::Kata).output()?.success()?;
    let whole = start.elapsed();
    println!("  {}\n", uname.trim());
    let release = |uname: &str| uname.split_whitespace().nth(2).unwrap_or_default().to_owned();
    let guest = release(&uname);

    let start = Instant::now();
    let same = containerd.run(["uname", "-a"]).under(Runtime::Runc).output()?.success()?;
    let under_runc = start.elapsed();
    let guest_version = containerd.run(["cat", "/proc/version"]).under(Runtime::Kata);
    let guest_version = guest_version.output()?.success()?;
    let host_version = fs::read_to_string("/proc/version").context("no host kernel")?;
    ensure!(
        guest_version != host_version,
        "the container runs on the host's kernel: {guest_version}"
    );

    println!("  kernel of this host           {}", host.trim());
    println!("  kernel in a runc container    {}", release(&same));
    println!("  kernel in a kata container    {guest}");
    println!("  time from ctr to its end      {whole:.2?} (runc: {under_runc:.2?})\n");
    Ok(())
}
