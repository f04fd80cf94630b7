//! The service's life: from the listener to the last request.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kata_linux::mount;
use kata_sandbox::{Moment, Recorder, Stage};
use kata_shim_api::task_services;
use tokio::signal::unix::{SignalKind, signal};

use crate::events::{Publisher, TaskEvents};
use crate::hooks::{self, EnginesView};
use crate::owner::Owner;
use crate::service::TaskService;

/// How long the last events may take to reach the engine before the shim ends without.
const LAST_EVENTS: Duration = Duration::from_secs(3);

/// What the shim's server is started with.
#[derive(Debug)]
pub struct ServeOptions {
    /// Where requests come in; already bound.
    pub listener: UnixListener,
    /// The engine's namespace for containers.
    pub namespace: String,
    /// The id of the sandbox, which is its first container's.
    pub id: String,
    /// Where the engine takes events; `None` when it wants none.
    pub ttrpc_address: Option<String>,
    /// The listener's path, removed at the end.
    pub socket: PathBuf,
    /// When the engine asked for the sandbox's start; `None` if nobody could tell.
    pub asked: Option<Moment>,
}

/// Serves one sandbox until the engine shuts it down, or forgets to, or SIGTERM comes. To be called
/// on a current-thread runtime, in a process with one thread: it takes a mount namespace of its
/// own, and its thread is the parent of VMM and file server.
pub async fn serve(options: ServeOptions) -> anyhow::Result<()> {
    kata_linux::memory::keep_one_heap();
    let view = EnginesView::take().context("cannot keep the engine's mount namespace")?;
    mount::unshare_mount_namespace().context("cannot take a mount namespace of its own")?;
    let publisher = Publisher::start(options.namespace.clone(), options.ttrpc_address.as_deref());
    let events = Arc::new(TaskEvents::new(publisher));
    let times = Recorder::new();
    if let Some(asked) = options.asked {
        times.stamp_at(Stage::ShimAsked, asked);
    }
    let owner = Arc::new(Owner::new(options.namespace, Arc::clone(&events), times.clone(), view));
    let service = Arc::new(TaskService { owner: Arc::clone(&owner) });

    options.listener.set_nonblocking(true).context("cannot prepare the shim's socket")?;
    let listener = tokio::net::UnixListener::from_std(options.listener)
        .context("cannot use the shim's socket")?;
    let mut server = ttrpc::asynchronous::Server::new()
        .add_listener(kata_shim_api::listener(listener))
        .register_service(task_services(&service));
    server.start().await.context("cannot serve the task API")?;
    times.stamp(Stage::ServerUp);

    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        () = owner.ended.notified() => {}
        () = owner.forgotten() => {
            tracing::warn!("the engine has left the sandbox {} and its shim behind", options.id);
        }
        _ = terminate.recv() => {
            tracing::warn!("SIGTERM: ending the sandbox {}", options.id);
            owner.stop("its shim was told to terminate").await;
        }
    }
    events.flush(LAST_EVENTS).await;
    let _ = fs::remove_file(&options.socket);
    server.shutdown().await.context("cannot end the task API")
}

/// Removes everything that a shim left behind that was killed: processes, cgroup, directory,
/// mounts. Nothing there is fine; it may be repeated. Not for a member of a pod, whose sandbox may
/// live: what it had is that sandbox's, and goes with it.
pub fn cleanup(id: &str, bundle: &Path) -> anyhow::Result<()> {
    let dir = kata_host_runtime::run_dir_of(id)?;
    kata_sandbox::sweep(&dir)
        .with_context(|| format!("cannot remove what is left of sandbox {id}"))?;
    mount::unmount_tree(&bundle.join("rootfs"))
        .context("cannot unmount the bundle's root file system")
}

/// Runs the poststop hooks of a container whose shim was killed before it could, a member of a pod
/// or not. Those that fail change nothing; it may be repeated.
pub fn make_up_for_hooks(id: &str, bundle: &Path) {
    hooks::make_up_for(id, bundle);
}
