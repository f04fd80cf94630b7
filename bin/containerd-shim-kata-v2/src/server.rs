//! The server of one sandbox: what the process needs before the task service takes over.

use std::env;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use anyhow::Context;
use kata_linux::{descriptors, open_files};
use kata_task::{Moment, ServeOptions};

use crate::flags::Flags;
use crate::server_process::{ASKED, TTRPC_ADDRESS};

/// Runs until the sandbox has ended. What goes wrong is logged, since nobody reads what a server
/// prints.
pub(crate) fn run(flags: Flags) -> anyhow::Result<()> {
    let listener = take_listener("`start`")?;
    // Fails only for the leader of a process group, which a server that was started by hand may be.
    let _ = rustix::process::setsid();
    let bundle =
        env::current_dir().context("cannot tell the bundle, which is the current directory")?;
    kata_log::to_fifo(&bundle.join("log"), &flags.id, flags.debug);
    // The bundle is not ours to keep busy.
    env::set_current_dir("/").context("cannot leave the bundle")?;
    if let Err(error) = be_killed_before_containerd() {
        tracing::warn!("cannot raise oom_score_adj: {error}");
    }
    if let Err(error) = open_files::raise_limit() {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
    let socket = PathBuf::from(&flags.socket);
    let served = serve(ServeOptions {
        listener,
        namespace: flags.namespace,
        id: flags.id,
        ttrpc_address: env::var(TTRPC_ADDRESS).ok().filter(|address| !address.is_empty()),
        socket: socket.clone(),
        asked: env::var(ASKED).ok().and_then(|asked| asked.parse().ok()).map(Moment::from_nanos),
    });
    if let Err(error) = &served {
        tracing::error!("the shim's server has failed: {error:#}");
    }
    // The service removes it when all is well; a second time does no harm.
    let _ = fs::remove_file(socket);
    served
}

/// Serves a sandbox until it has ended.
///
/// # Errors
///
/// Fails when the service cannot be begun or has failed.
pub(crate) fn serve(options: ServeOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(kata_task::serve(options));
    // `delete` waits for this process, and not long. Whatever may still block a thread can be cut
    // anywhere, as by SIGKILL: an image is kept whole or not at all, and the next sweep goes on
    // with what one has left.
    runtime.shutdown_background();
    served
}

/// The socket, which arrives as standard input from `starter`.
///
/// # Errors
///
/// Fails when standard input is no socket.
pub(crate) fn take_listener(starter: &str) -> anyhow::Result<UnixListener> {
    let socket = descriptors::take_stdin().context("cannot take the socket from standard input")?;
    let listener = UnixListener::from(socket);
    listener.local_addr().with_context(|| {
        format!("standard input is no socket: this is started by {starter}, not by hand")
    })?;
    Ok(listener)
}

/// Makes the kernel prefer this process, and the VM after it, to containerd when memory runs out:
/// containerd's own score, which is inherited, and one more.
fn be_killed_before_containerd() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let text = fs::read_to_string(FILE)?;
    let score: i32 = text.trim().parse().map_err(io::Error::other)?;
    // 1000 is the most there is (proc_pid_oom_score_adj(5)).
    fs::write(FILE, score.saturating_add(1).min(1000).to_string())
}
