//! `factory`: the template of sandboxes, by the words of Kata's own command.

use std::path::Path;

use anyhow::{Context, Result, bail};
use kata_host_runtime::Runtime;

use super::{Host, print};
use crate::cli::FactoryCommand;

/// Makes the template, takes it away, or tells whether there is one.
pub(super) fn run(host: &Host, command: FactoryCommand) -> Result<()> {
    let option = Some(host.config.as_str()).filter(|path| !path.is_empty()).map(Path::new);
    let runtime = Runtime::load(option, None)?;
    match (command, runtime.template()) {
        (FactoryCommand::Destroy, _) => {
            runtime.remove_template()?;
            print("vm factory destroyed\n")
        }
        (FactoryCommand::Init, Some(directory)) => {
            make(&runtime, directory)?;
            print("vm factory initialized\n")
        }
        (FactoryCommand::Init, None) => bail!(
            "there is to be no template; set `enable_template = true` in the section hypervisor.qemu, with `hypervisor_name` \"qemu\" \
             or \"auto\""
        ),
        (FactoryCommand::Status, Some(_)) => {
            let word = if runtime.has_template() { "on" } else { "off" };
            print(&format!("vm factory is {word}\n"))
        }
        (FactoryCommand::Status, None) => print("vm factory is not enabled\n"),
    }
}

fn make(runtime: &Runtime, directory: &Path) -> Result<()> {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let made = tokio.block_on(runtime.make_template(directory));
    made.with_context(|| format!("no template is made in {}", directory.display()))
}
