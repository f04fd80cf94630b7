//! One virtual machine: the `libkrun` crate in a jail of our own.
//!
//! Started by the krun driver (`host/krun`), which has decided everything. Ends with its guest, and
//! with its parent.
//!
//! ```text
//!   options ──▶ jail (namespaces, a root of its own, capabilities) ──▶ machine (libkrun) ──▶ landlock, seccomp ──▶ ready ──▶ the guest runs
//! ```

mod jail;
mod landlock;
mod machine;
mod nic;
mod options;
mod seccomp;

use std::process::ExitCode;

use anyhow::Context;

use options::Options;

fn main() -> ExitCode {
    match run(&Options::from_command_line()) {
        // The guest's end does not come back here: libkrun ends the process with it.
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<std::convert::Infallible> {
    jail::die_with_parent()?;
    // Descriptors with numbers are taken before others are opened.
    let nics = options.nics.iter().map(nic::Nic::open).collect::<Result<Vec<_>, _>>()?;
    let (nics, sockets): (Vec<_>, Vec<_>) = nics.into_iter().unzip();
    machine::raise_file_limit().context("cannot raise the limit of open files")?;
    let inside = jail::enter(options).context("cannot shut itself in")?;
    // No thread has been started yet, and all that will be inherit this.
    jail::drop_capabilities()?;
    let machine = machine::Machine::configure(options, &inside, sockets)?;
    landlock::restrict(options, &inside).context("cannot restrict itself to its files")?;
    seccomp::filter(options.seccomp)?;
    for nic in nics {
        nic.carry()?;
    }
    machine.run(options)
}
