//! `delete`: what is done when a container's shim is gone, whether it ended well or was killed.
//!
//! containerd calls it for every container whose connection closed. It must work with nothing but
//! the id, may come again, and has five seconds ([`LONGEST`]).

use std::env;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use kata_host_runtime::ContainerRole;
use kata_linux::identifier;
use kata_shim_api::address::SocketAddress;
use kata_shim_api::protobuf::Message;
use kata_shim_api::{DeleteResponse, timestamp};

use crate::bundle;
use crate::flags::Flags;
use crate::server_process;
use crate::socket;

/// 128 + SIGKILL: how a container ends whose shim died.
const KILLED: u32 = 137;

/// The longest that it waits: 0.75 s each after SIGTERM and after SIGKILL for the server, then
/// 1.5 s for the sandbox's other processes, and 0.5 s for their cgroup. The hooks come after that
/// and have times of their own.
const LONGEST: Duration = server_process::LONGEST_END.saturating_add(kata_task::LONGEST_SWEEP);

// containerd kills it after five seconds, of which a busy machine needs some to execute it.
const _: () = assert!(LONGEST.as_millis() <= 3500);

/// Returns what is to be printed.
pub(crate) fn run(flags: &Flags) -> anyhow::Result<Vec<u8>> {
    identifier::check("container id (-id)", &flags.id)?;
    identifier::check("namespace (-namespace)", &flags.namespace)?;
    let bundle = match flags.bundle.as_str() {
        "" => env::current_dir().context("cannot tell the bundle: give it with -bundle")?,
        bundle => PathBuf::from(bundle),
    };
    let pid = server_process::recorded_pid(&bundle);
    // A config that cannot be read says nothing of a pod; then the pid file does, which only a
    // sandbox's own bundle has.
    let is_member = matches!(bundle::role(&bundle), Ok(ContainerRole::PodMember(sandbox)) if sandbox != flags.id);
    if !is_member {
        if let Some(pid) = pid {
            server_process::end(pid, &flags.namespace, &flags.id)?;
        }
        if let Ok(address) = SocketAddress::read_from(&bundle) {
            socket::remove_stale(&address)?;
        }
        kata_task::cleanup(&flags.id, &bundle)?;
    }
    kata_task::make_up_for_hooks(&flags.id, &bundle);
    let response = DeleteResponse {
        pid: pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs()),
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..DeleteResponse::default()
    };
    response.write_to_bytes().context("cannot write the answer")
}
