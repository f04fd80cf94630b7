//! `create`: from a bundle to a container that waits to be started.

mod podman;

use std::fs::File;
use std::path::Path;
use std::process::Child;

use anyhow::{Context, Result, bail};
use kata_hooks::{HookState, HostHooks};
use kata_linux::cgroup::HostCgroup;
use kata_linux::identity::ProcessIdentity;
use kata_shim_api::api;
use kata_shim_api::options::RuntimeOptions;
use kata_shim_api::protobuf::MessageField;
use kata_shim_api::stand_in::{NetworkNamespace, Order, Terminal};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Host, delete};
use crate::bundle::Bundle;
use crate::cli::CreateArgs;
use crate::launch::{Fifos, StandIn, program};
use crate::registry::{Container, Locked, Stage, write_whole};
use crate::sandbox::{Asked, Sandbox};
use crate::terminal;

pub(super) fn run(host: &Host, args: &CreateArgs) -> Result<()> {
    create(host, args, true).map(drop).context("kata-runtime create failed")
}

/// Makes a container and returns its stand-in, a child of this process. With `detached` the process
/// will live on by itself; else it ends with this one.
pub(super) fn create(host: &Host, args: &CreateArgs, detached: bool) -> Result<Child> {
    let bundle = Bundle::load(&args.bundle)?;
    let terminal = terminal::kind(bundle.terminal(), detached, args.console_socket.is_some())?;
    if args.preserve_fds > 0 {
        bail!(
            "descriptors cannot be passed into a VM; run without --preserve-fds, and without the sockets of a systemd unit (LISTEN_FDS)"
        );
    }
    warn_of_systemd(host, &bundle);
    let cgroup = bundle.cgroup();
    if host.systemd_cgroup && !cgroup.is_empty() && cgroup.split(':').count() != 3 {
        // runc's words.
        bail!(
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {cgroup:?} instead"
        );
    }
    let named = bundle.sandbox(&args.id)?;
    let alone = named != args.id && podman::is_alone(host, &bundle, &named)?;
    let sandbox = if alone { args.id.clone() } else { named };
    let locked = host.registry.reserve(&args.id)?;
    let creation = Creation { host, args, bundle, terminal, detached, alone };
    let made = creation.carry_out(&locked, &sandbox);
    if made.is_err() {
        let made_for_it = sandbox == args.id;
        take_back(host, locked, (&sandbox, made_for_it), &cgroup);
    }
    made
}

/// Who is to tell systemd that a service is ready cannot do so from a VM (sd_notify(3)). systemd
/// would wait, and end the service.
fn warn_of_systemd(host: &Host, bundle: &Bundle) {
    const NAME: &str = "NOTIFY_SOCKET=";
    let env = bundle.spec.process().as_ref().and_then(|process| process.env().as_ref());
    let in_spec = env.is_some_and(|env| env.iter().any(|one| one.starts_with(NAME)));
    if in_spec || std::env::var_os(NAME.trim_end_matches('=')).is_some() {
        host.report.warning(
            "NOTIFY_SOCKET does not reach into a VM: nothing in it can tell systemd that the service is ready",
        );
    }
}

/// Removes what there is of a container that could not be made. The first error is the one to tell.
///
/// The sandbox goes only with one that it was made for, or that was known as its member: whoever
/// has removed the other containers meanwhile has left it to that one.
fn take_back(host: &Host, locked: Locked, (sandbox, made_for_it): (&str, bool), cgroup: &str) {
    let container = locked.load().ok().flatten();
    let left = (made_for_it || container.is_some()).then_some(sandbox);
    let cgroup = if cgroup.is_empty() { None } else { HostCgroup::at(cgroup).ok() };
    // It is known from its first hook on, and what they did is to be undone.
    if let Err(error) = delete::give_back(host, locked, left, cgroup, container.as_ref()) {
        host.report.warning(&format!("after the failure: {error:#}"));
    }
}

struct Creation<'a> {
    host: &'a Host,
    args: &'a CreateArgs,
    bundle: Bundle,
    terminal: Terminal,
    detached: bool,
    /// In a sandbox of its own, although its annotations name another.
    alone: bool,
}

impl Creation<'_> {
    fn carry_out(&self, locked: &Locked, sandbox: &str) -> Result<Child> {
        let Self { host, args, bundle, .. } = self;
        let (sandbox, listener) = if sandbox == args.id {
            podman::end_members(host, bundle, sandbox)?;
            let (sandbox, listener) = Sandbox::make(&host.registry, sandbox)?;
            (sandbox, Some(listener))
        } else {
            let sandbox = Sandbox::join(&host.registry, sandbox, &args.id)?;
            bundle.layers().iter().try_for_each(|layer| sandbox.show(layer))?;
            (sandbox, None)
        };
        let mut fifos = Fifos::make(locked.dir(), "", self.terminal != Terminal::None)?;
        let order = self.order(&sandbox)?;
        let pty = self.terminal_for_it()?;
        if !order.cgroup.is_empty() {
            locked.announce_cgroup(&order.cgroup)?;
        }
        let stand_in = StandIn::start(&order, &mut fifos, pty, listener)?;
        if stand_in.proxy != 0 {
            sandbox.record_proxy(stand_in.proxy)?;
        }
        let hooks = HostHooks::of(&bundle.spec);
        let netns = match order.network {
            NetworkNamespace::New => Some(format!("/proc/{}/ns/net", stand_in.identity.pid)),
            NetworkNamespace::Callers | NetworkNamespace::At(_) => None,
        };
        let asked =
            Asked { request: self.request(&fifos), network_namespace: netns, alone: self.alone };
        if hooks.has_any_before() {
            // What would be refused after them is refused before.
            sandbox.check(&asked)?;
        }
        let mut container = self.container(&sandbox, stand_in.identity, &hooks)?;
        locked.save(&container)?;
        hooks.run_before(&hook_state(&container, "creating", stand_in.identity.pid))?;
        let is_hidden = sandbox.create(&asked)?;
        container.stage = Stage::Created;
        let pid = stand_in.identity.pid;
        let made = locked.save(&container).and_then(|()| self.tell_pid(pid));
        let stands = made.and_then(|()| stand_in.go(is_hidden));
        if stands.is_err() {
            // The stand-in does the same when it is told that it is not wanted, but it may have
            // been killed.
            sandbox.take_back(&args.id, "");
        }
        stands
    }

    fn order(&self, sandbox: &Sandbox) -> Result<Order> {
        let is_first = sandbox.id == self.args.id;
        Ok(Order {
            sandbox_dir: sandbox.dir.clone(),
            container: self.args.id.clone(),
            terminal: self.terminal,
            network: self.bundle.network(),
            cgroup: self.bundle.cgroup(),
            mounts: self.bundle.shown(),
            proxy: if is_first { Some(program("kata-proxy")?) } else { None },
            debug: self.host.debug,
            foreground: !self.detached,
            ..Order::default()
        })
    }

    fn terminal_for_it(&self) -> Result<Option<File>> {
        match (&self.args.console_socket, self.terminal) {
            (Some(socket), Terminal::Own) => terminal::make(socket).map(Some),
            _ => Ok(None),
        }
    }

    fn container(
        &self,
        sandbox: &Sandbox,
        stand_in: ProcessIdentity,
        hooks: &HostHooks,
    ) -> Result<Container> {
        let cgroup = self.bundle.cgroup();
        // The stand-in has made it.
        let cgroups = match cgroup.as_str() {
            "" => Vec::new(),
            path => HostCgroup::create(path)?.dirs().to_vec(),
        };
        Ok(Container {
            id: self.args.id.clone(),
            oci_version: self.bundle.spec.version().clone(),
            bundle: self.bundle.path.clone(),
            rootfs: self.bundle.rootfs(),
            created: kata_log::now(),
            annotations: self.bundle.annotations(),
            sandbox: sandbox.id.clone(),
            stand_in,
            cgroups,
            cgroup,
            stage: Stage::Creating,
            paused: false,
            poststart: hooks.poststart.clone(),
            poststop: hooks.poststop.clone(),
        })
    }

    fn request(&self, fifos: &Fifos) -> api::CreateTaskRequest {
        let config = self.host.config.as_str();
        let options = (!config.is_empty()).then(|| RuntimeOptions::with_config_path(config));
        api::CreateTaskRequest {
            id: self.args.id.clone(),
            bundle: self.bundle.path.display().to_string(),
            terminal: self.terminal != Terminal::None,
            stdin: Fifos::text(&fifos.stdin),
            stdout: Fifos::text(&fifos.stdout),
            stderr: Fifos::text(&fifos.stderr),
            options: options.map_or_else(MessageField::none, MessageField::some),
            ..Default::default()
        }
    }

    fn tell_pid(&self, pid: u32) -> Result<()> {
        tell_pid(pid, self.args.pid_file.as_deref(), self.args.pidfd_socket.as_deref())
    }
}

/// Tells the caller the pid: last of all, since it takes that for the sign that all is done.
/// Callers in Go read the file as nothing but a number, hence no newline.
pub(super) fn tell_pid(pid: u32, file: Option<&Path>, socket: Option<&Path>) -> Result<()> {
    if let Some(socket) = socket {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid is positive")?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).context("kata-shim has gone away")?;
        terminal::send(&pidfd, b"pidfd", socket)
            .with_context(|| format!("cannot send the pidfd to {}", socket.display()))?;
    }
    match file {
        Some(file) => write_whole(file, pid.to_string().as_bytes()),
        None => Ok(()),
    }
}

/// A container's state as its hooks get it.
pub(super) fn hook_state<'a>(container: &'a Container, status: &'a str, pid: u32) -> HookState<'a> {
    HookState {
        oci_version: &container.oci_version,
        id: &container.id,
        status,
        pid,
        bundle: &container.bundle,
        annotations: container
            .annotations
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect(),
    }
}
