//! `start`: brings up the server of a sandbox, or finds it, and answers with its address.
//!
//! Nothing here may print: containerd takes all of standard output and standard error for the
//! answer, and waits until nobody has them open any more. As little as possible is done before the
//! answer; the server gets ready meanwhile, and the kernel holds containerd's connection until it
//! is.

use std::env;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};
use kata_host_runtime::ContainerRole;
use kata_linux::identifier;
use kata_shim_api::address::SocketAddress;
use kata_shim_api::bootstrap::StartInput;
use kata_task::Moment;
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};

use crate::bundle;
use crate::flags::Flags;
use crate::server_process;
use crate::socket::{self, Bound};

/// More than any engine's options need, and less than would hurt.
const LARGEST_INPUT: u64 = 4 << 20;

/// Returns what is to be printed. `asked` is when this program was executed.
pub(crate) fn run(flags: &Flags, asked: Moment) -> anyhow::Result<Vec<u8>> {
    identifier::check("container id (-id)", &flags.id)?;
    identifier::check("namespace (-namespace)", &flags.namespace)?;
    let bundle =
        env::current_dir().context("cannot tell the bundle, which is the current directory")?;
    let input = StartInput::decode(&read_input()?, &flags.id, &flags.namespace)?;
    let role = bundle::role(&bundle)?;
    let sandbox = role.sandbox_of(&flags.id);
    let address =
        SocketAddress::of_sandbox(input.socket_dir(), &flags.address, &flags.namespace, sandbox)?;
    match &role {
        ContainerRole::PodMember(_) if !socket::is_served(&address) => {
            bail!("the sandbox {sandbox} that container {} belongs to is not running", flags.id)
        }
        ContainerRole::PodMember(_) => record(&address, &bundle)?,
        ContainerRole::Single | ContainerRole::PodSandbox => {
            start(flags, &input, &address, &bundle, asked)?;
        }
    }
    Ok(input.answer(&address))
}

/// Starts the server unless there is one.
fn start(
    flags: &Flags,
    input: &StartInput,
    address: &SocketAddress,
    bundle: &Path,
    asked: Moment,
) -> anyhow::Result<()> {
    let Bound::Fresh(listener) = socket::bind(address)? else { return record(address, bundle) };
    let started = (|| {
        share_no_core()?;
        record(address, bundle)?;
        server_process::spawn(flags, (input, asked), address, listener, bundle)
    })();
    if started.is_err() {
        // The error is what matters; a socket that stays is replaced by the next start.
        let _ = std::fs::remove_file(address.path());
    }
    started
}

/// Leaves the address where a restarted containerd finds it.
fn record(address: &SocketAddress, bundle: &Path) -> anyhow::Result<()> {
    address
        .write_to(bundle)
        .with_context(|| format!("cannot write the shim's address to {}", bundle.display()))
}

/// With `SCHED_CORE` set, the sandbox shares no processor core with anybody else at the same time.
/// What is asked for here goes to the server, and from it to the VM.
fn share_no_core() -> anyhow::Result<()> {
    if env::var_os("SCHED_CORE").is_none_or(|value| value.is_empty()) {
        return Ok(());
    }
    create_core_scheduling_cookie(rustix::process::getpid(), CoreSchedulingScope::ThreadGroup)
        .context("SCHED_CORE is set, but the kernel does not isolate cores (it needs CONFIG_SCHED_CORE and SMT)")
}

/// All of standard input; nothing from a terminal, where a human would have to know to end it.
fn read_input() -> anyhow::Result<Vec<u8>> {
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    if !stdin.is_terminal() {
        stdin
            .lock()
            .take(LARGEST_INPUT + 1)
            .read_to_end(&mut bytes)
            .context("cannot read standard input")?;
    }
    if bytes.len() as u64 > LARGEST_INPUT {
        bail!("standard input is larger than {LARGEST_INPUT} bytes");
    }
    Ok(bytes)
}
