//! Making a template.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kata_channel::AGENT_PORT;
use kata_hypervisor::{HypervisorError, Vm, VmSpec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::launch::{Start, launch};
use crate::qmp::Command;
use crate::template::{CAPABILITIES, MOST_STATE, MemoryFile, STATE_FD, store};
use crate::vm::QemuVm;
use crate::{Host, QemuSettings};

/// Lines of the console that an error quotes.
const QUOTED_LINES: usize = 5;

/// Boots a guest by `spec` and saves it in `directory` when its agent waits for the host. There is
/// `patience` for both. The VM is gone afterwards, whatever comes of it.
pub(crate) async fn make(
    settings: &QemuSettings,
    host: &Host,
    spec: &VmSpec,
    directory: &Path,
    patience: Duration,
) -> Result<(), HypervisorError> {
    let memory = MemoryFile::new(spec.memory_mib).map_err(setup)?;
    let vm = launch(settings, host, spec, Start::ToBeSaved(&memory)).await?;
    let saved = tokio::select! {
        biased;
        exit = vm.exited() => Err(failed(&vm, &format!("the guest's VM {exit}"))),
        saved = save(&vm) => saved,
        () = tokio::time::sleep(patience) => {
            Err(failed(&vm, &format!("the guest was not there within {} s", patience.as_secs())))
        }
    };
    vm.vmm.stop().await;
    let state = saved?;
    let key = vm.key.as_ref().ok_or_else(|| setup(io::Error::other("it has no key")))?;
    store(directory, key, &memory, &state).map_err(setup)
}

fn setup(source: io::Error) -> HypervisorError {
    HypervisorError::Setup { what: "a template", source }
}

/// What went wrong, with what the guest and QEMU said last.
fn failed(vm: &QemuVm, what: &str) -> HypervisorError {
    let lines = [vm.vmm.console().last_lines(QUOTED_LINES), vm.vmm.stderr()].concat();
    let said = if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") };
    setup(io::Error::other(format!("{what}; {said}")))
}

/// Waits for the agent, and has the devices saved, after which the guest stands still.
async fn save(vm: &QemuVm) -> Result<Vec<u8>, HypervisorError> {
    agent_listens(vm).await;
    let (reader, writer) = io::pipe().map_err(setup)?;
    let mut reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(setup)?.take(MOST_STATE);
    vm.qmp.execute(Command::MigrateSetCapabilities(CAPABILITIES)).await?;
    vm.qmp.pass_fd(STATE_FD, &Arc::new(writer.into())).await?;
    vm.qmp.execute(Command::Migrate { fd: STATE_FD }).await?;
    let mut state = Vec::new();
    reader.read_to_end(&mut state).await.map_err(setup)?;
    if state.len() as u64 == MOST_STATE {
        let what = format!("the guest's devices have more than {MOST_STATE} bytes to say");
        return Err(setup(io::Error::other(what)));
    }
    let told = vm.qmp.ask(Command::QueryMigrate).await?;
    match told.get("status").and_then(|status| status.as_str()) {
        Some("completed") => Ok(state),
        status => {
            let why = told.get("error-desc").and_then(|why| why.as_str()).unwrap_or("no reason");
            let status = status.unwrap_or("unknown");
            Err(HypervisorError::Control {
                command: Command::Migrate { fd: STATE_FD }.name(),
                reason: format!("saving the guest is {status}: {why}"),
            })
        }
    }
}

/// Resolves when the agent waits for a host: by then it has opened its serial port, or listens for
/// vsock.
async fn agent_listens(vm: &QemuVm) {
    if vm.channel.is_vsock() {
        // A stream that ends at once is one that the agent has seen and forgotten.
        if vm.channel.dial(AGENT_PORT).await.is_err() {
            std::future::pending::<()>().await;
        }
    } else {
        vm.qmp.port_opened().await;
    }
}
