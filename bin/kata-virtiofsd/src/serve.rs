//! One VMM's connection, served until it ends.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as BackendError, VhostUserDaemon};
use virtiofsd::filesystem::{FileSystem, SerializableFileSystem};
use virtiofsd::passthrough::read_only::PassthroughFsRo;
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::jail::View;
use crate::options::Options;

/// Descriptors that are kept from the guest: one for each region that its memory can have (509 at
/// most in vhost-user-backend), and some for sockets and events.
const RESERVED_FDS: u64 = 509 + 100;

/// Open files that are asked for: the kernel's default for the most that a process may have is a
/// bit more.
const WANTED_FDS: u64 = 1_000_000;

/// How long the guest may go without asking again where it may cache as if nobody else changed the
/// files.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// Raises the limit of open files as far as allowed, and tells how many of them the guest may hold
/// open: every file that it has in its cache is one.
pub(crate) fn raise_file_limit(threads: usize) -> anyhow::Result<u64> {
    let limit = raise_to(WANTED_FDS).context("cannot raise the limit of open files")?;
    // Each thread opens a file before it is counted.
    let reserved = RESERVED_FDS + u64::try_from(threads.max(1)).unwrap_or(u64::MAX);
    limit.checked_sub(reserved).filter(|&rest| rest > 0).with_context(|| {
        format!("only {limit} files can be open, {reserved} are needed without the guest's; raise RLIMIT_NOFILE")
    })
}

/// Returns the limit that holds then: `wanted`, or less where the kernel or a lack of privilege
/// says so.
fn raise_to(wanted: u64) -> rustix::io::Result<u64> {
    let both = |limit: u64| Rlimit { current: Some(limit), maximum: Some(limit) };
    if setrlimit(Resource::Nofile, both(wanted)).is_ok() {
        return Ok(wanted);
    }
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(wanted);
    log::info!("no more than {hard} files can be open");
    setrlimit(Resource::Nofile, both(hard))?;
    Ok(hard)
}

/// Waits for the VMM to connect and serves it. Returns when it has disconnected.
pub(crate) fn serve(
    options: &Options,
    listener: UnixListener,
    view: View,
    guest_fd_limit: u64,
) -> anyhow::Result<()> {
    let config = configure(options, view, guest_fd_limit);
    let listener = Listener::from(listener);
    if options.readonly {
        let file_system =
            PassthroughFsRo::new(config).context("cannot open the shared directory")?;
        serve_file_system(options, listener, file_system)
    } else {
        let file_system = PassthroughFs::new(config).context("cannot open the shared directory")?;
        serve_file_system(options, listener, file_system)
    }
}

fn configure(options: &Options, view: View, guest_fd_limit: u64) -> Config {
    let timeout = match options.cache {
        CachePolicy::Never => Duration::ZERO,
        CachePolicy::Auto => Duration::from_secs(1),
        CachePolicy::Always | CachePolicy::Metadata => LONG,
    };
    Config {
        entry_timeout: timeout,
        attr_timeout: timeout,
        cache_policy: options.cache.clone(),
        root_dir: view.root.display().to_string(),
        proc_sfd_rawfd: Some(view.proc_self_fd),
        announce_submounts: options.announces_submounts(),
        // Attributes that must not be cached are not worth sending along.
        readdirplus: !options.no_readdirplus && !timeout.is_zero(),
        xattr: options.xattr || options.xattrmap.is_some(),
        xattrmap: options.xattrmap.clone(),
        writeback: options.writeback,
        allow_direct_io: options.allow_direct_io,
        guest_fd_limit,
        ..Config::default()
    }
}

fn serve_file_system<F>(
    options: &Options,
    mut listener: Listener,
    file_system: F,
) -> anyhow::Result<()>
where
    F: FileSystem + SerializableFileSystem + Send + Sync + 'static,
{
    let backend = VhostUserFsBackendBuilder::default()
        .set_thread_pool_size(options.thread_pool_size)
        .set_tag(options.tag.clone())
        .build(file_system)
        .context("cannot set the file server up")?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("virtiofs".to_owned(), Arc::new(backend), memory)
        .map_err(|error| anyhow!("cannot set the vhost-user server up: {error}"))?;
    log::info!("waiting for the VMM");
    daemon
        .start(&mut listener)
        .map_err(|error| anyhow!("cannot accept the VMM's connection: {error}"))?;
    // One connection is all there will be; a second one is refused rather than left hanging.
    drop(listener);
    log::info!("the VMM has connected");
    match daemon.wait() {
        Ok(()) | Err(BackendError::HandleRequest(VhostUserError::Disconnected)) => Ok(()),
        Err(error) => Err(anyhow!("the VMM's connection broke: {error}")),
    }
}
