//! `exec`: one more process in a container; without a command, a shell in the guest itself.

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use anyhow::{Context, Result, bail};
use kata_shim_api::protobuf::MessageField;
use kata_shim_api::stand_in::{NetworkNamespace, Order, Terminal};
use kata_shim_api::{Any, api};
use oci_spec::runtime::{Capability, LinuxCapabilities, Process, Spec, User};

use super::create::tell_pid;
use super::{Host, console};
use crate::Failure;
use crate::cli::ExecArgs;
use crate::foreground::Foreground;
use crate::launch::{Fifos, StandIn};
use crate::registry::{Container, Status, exec_record_path, write_whole};
use crate::report::Report;
use crate::sandbox::{Sandbox, plain};
use crate::terminal::{self, RawTerminal};

/// The exit code when there is no process whose status could be one.
const FAILED: u8 = 255;

/// Returns the status of the process, or 0 if it was left to itself.
pub(super) fn run(host: &Host, args: &ExecArgs) -> Result<u8, Failure> {
    let failed = |error| Failure { error, code: FAILED };
    carry_out(host, args).context("exec failed").map_err(failed)
}

fn carry_out(host: &Host, args: &ExecArgs) -> Result<u8> {
    if args.names_only_a_sandbox() {
        return console::run(host, &args.id);
    }
    if !args.has_a_process() {
        bail!(
            "exec needs a command, or a process with --process; only without any option of a process it opens the guest's console"
        );
    }
    let container = host.registry.load(&args.id)?;
    match container.status() {
        Status::Stopped => bail!("cannot exec in a stopped container"),
        // With runc the process exists at once and waits, too.
        Status::Paused if args.ignore_paused => {
            bail!("cannot exec in a paused container: its VM begins no process; resume it first")
        }
        Status::Paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        _ => {}
    }
    if args.preserve_fds > 0 {
        bail!("descriptors cannot be passed into a VM; run without --preserve-fds");
    }
    if args.cgroup.iter().any(|path| path != "/") {
        bail!(
            "a process is in its container's cgroup in the guest, and no other can be named; run without --cgroup"
        );
    }
    let process = process(&host.report, args, &container)?;
    let terminal = terminal::kind(
        process.terminal().unwrap_or_default(),
        args.detach,
        args.console_socket.is_some(),
    )?;
    let mut foreground = if args.detach { None } else { Some(Foreground::begin()?) };
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    let id = random_id()?;
    let execution = Execution { host, args, container, sandbox, process, terminal, id };
    let started = execution.start()?;
    let raw = if terminal == Terminal::Callers { RawTerminal::of_stdin() } else { None };
    let mut stand_in = execution.hand_over(started)?;
    let status = match &mut foreground {
        Some(foreground) => foreground.wait(&mut stand_in),
        None => Ok(0),
    };
    drop(raw);
    status
}

struct Execution<'a> {
    host: &'a Host,
    args: &'a ExecArgs,
    container: Container,
    sandbox: Sandbox,
    process: Process,
    terminal: Terminal,
    id: String,
}

impl Execution<'_> {
    /// Starts the process, and tells its pid.
    fn start(&self) -> Result<StandIn> {
        let dir = self.host.registry.dir(&self.container.id)?;
        let mut fifos =
            Fifos::make(&dir, &format!("{}-", self.id), self.terminal != Terminal::None)?;
        let pty = match (&self.args.console_socket, self.terminal) {
            (Some(socket), Terminal::Own) => Some(terminal::make(socket)?),
            _ => None,
        };
        let stand_in = StandIn::start(&self.order()?, &mut fifos, pty, None)?;
        write_whole(&self.record()?, &serde_json::to_vec(&stand_in.identity)?)?;
        let pid = stand_in.identity.pid;
        let started = self.start_in_guest(&fifos).and_then(|()| {
            tell_pid(pid, self.args.pid_file.as_deref(), self.args.pidfd_socket.as_deref())
        });
        self.or_take_back(started.map(|()| stand_in))
    }

    /// Leaves the process to its stand-in.
    fn hand_over(&self, stand_in: StandIn) -> Result<Child> {
        self.or_take_back(stand_in.go(false))
    }

    /// Takes the process back if this has failed. Its stand-in does that, too, when it is told that
    /// it is not wanted, but it may have been killed.
    fn or_take_back<T>(&self, done: Result<T>) -> Result<T> {
        if done.is_err() {
            self.sandbox.take_back(&self.container.id, &self.id);
            let _ = fs::remove_file(self.record()?);
        }
        done
    }

    /// Where it is written who stands for the process.
    fn record(&self) -> Result<PathBuf> {
        let dir = self.host.registry.dir(&self.container.id)?;
        Ok(exec_record_path(&dir, &self.id))
    }

    fn order(&self) -> Result<Order> {
        Ok(Order {
            sandbox_dir: self.sandbox.dir.clone(),
            container: self.container.id.clone(),
            exec: self.id.clone(),
            terminal: self.terminal,
            network: NetworkNamespace::At(
                format!("/proc/{}/ns/net", self.container.stand_in.pid).into(),
            ),
            cgroup: self.container.cgroup.clone(),
            // Whoever looks into a container looks at its first process.
            mounts: Vec::new(),
            record: Some(self.record()?),
            foreground: !self.args.detach,
            ..Order::default()
        })
    }

    fn start_in_guest(&self, fifos: &Fifos) -> Result<()> {
        let spec = Any { value: serde_json::to_vec(&self.process)?, ..Any::default() };
        let request = api::ExecProcessRequest {
            id: self.container.id.clone(),
            exec_id: self.id.clone(),
            terminal: self.terminal != Terminal::None,
            stdin: Fifos::text(&fifos.stdin),
            stdout: Fifos::text(&fifos.stdout),
            stderr: Fifos::text(&fifos.stderr),
            spec: MessageField::some(spec),
            ..Default::default()
        };
        self.sandbox.call::<api::Empty>("Exec", &request).map_err(plain)?;
        let request = api::StartRequest {
            id: self.container.id.clone(),
            exec_id: self.id.clone(),
            ..Default::default()
        };
        self.sandbox.call::<api::StartResponse>("Start", &request).map_err(plain).map(drop)
    }
}

/// The process that is asked for: a file's, or the container's own with another command.
fn process(report: &Report, args: &ExecArgs, container: &Container) -> Result<Process> {
    if let Some(path) = &args.process {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        return serde_json::from_slice(&text)
            .with_context(|| format!("cannot understand {}", path.display()));
    }
    let spec = Spec::load(container.bundle.join("config.json"))
        .context("cannot read the container's config.json")?;
    let mut process =
        spec.process().clone().context("the container's config.json has no process")?;
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        if !cwd.is_absolute() {
            bail!("Cwd must be an absolute path");
        }
        process.set_cwd(cwd.clone());
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !args.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(args.env.iter().cloned());
        process.set_env(Some(env));
    }
    if args.user.is_some() || !args.additional_gids.is_empty() {
        let user = user(args, process.user().clone())?;
        process.set_user(user);
    }
    if !args.cap.is_empty() {
        let (known, unknown) = capabilities(&args.cap);
        if !unknown.is_empty() {
            // As runc does: who asks for more than there is gets less, and may want to know.
            let names = unknown.join(" ");
            report.warning(&format!("ignoring unknown or unavailable capabilities: [{names}]"));
        }
        let all = with_capabilities(process.capabilities().clone().unwrap_or_default(), &known);
        process.set_capabilities(Some(all));
    }
    Ok(process)
}

/// `uid[:gid]`, and further groups.
fn user(args: &ExecArgs, mut user: User) -> Result<User> {
    if let Some(text) = &args.user {
        let (uid, gid) = text.split_once(':').map_or((text.as_str(), None), |(u, g)| (u, Some(g)));
        let not_a_number =
            || format!("--user {text}: a number, or two with `:` between, is needed");
        user.set_uid(uid.parse().with_context(not_a_number)?);
        if let Some(gid) = gid {
            user.set_gid(gid.parse().with_context(not_a_number)?);
        }
    }
    if !args.additional_gids.is_empty() {
        let mut all = user.additional_gids().clone().unwrap_or_default();
        all.extend(&args.additional_gids);
        user.set_additional_gids(Some(all));
    }
    Ok(user)
}

/// The capabilities of these names, and the names that are none's.
fn capabilities(names: &[String]) -> (Vec<Capability>, Vec<&str>) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for name in names {
        let short = name.trim_start_matches("CAP_");
        match serde_json::from_value(format!("CAP_{short}").into()) {
            Ok(capability) => known.push(capability),
            Err(_) => unknown.push(name.as_str()),
        }
    }
    (known, unknown)
}

/// As runc does: more of what it may and what it has, and with an inheritable set also of what
/// children get.
fn with_capabilities(mut all: LinuxCapabilities, more: &[Capability]) -> LinuxCapabilities {
    for capability in more.iter().copied() {
        let with = |set: &Option<std::collections::HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        let (bounding, effective, permitted) =
            (with(all.bounding()), with(all.effective()), with(all.permitted()));
        all.set_bounding(bounding);
        all.set_effective(effective);
        all.set_permitted(permitted);
    }
    all
}

/// An id that no other process of the container has.
fn random_id() -> Result<String> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("the kernel has no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
