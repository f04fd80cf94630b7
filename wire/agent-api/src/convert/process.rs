//! Processes: the container's own and those executed in it later.

use std::path::PathBuf;

use oci_spec::runtime as spec;
use protobuf::UnknownValueRef;

use super::{
    ConvertError, bad_value, list_from_wire, name, number, or_empty, path_to_wire, refuse,
    unless_empty,
};
use crate::oci;

/// A field of `User` that the protocol does not have and other agents skip: the umask
/// (runtime-spec, `process.user.umask`). Who sends one has to know its agent.
const UMASK: u32 = 20001;

/// A process as the agent reads it, for a container or for an execution in one.
///
/// # Errors
///
/// When the process says what the protocol cannot carry, e.g. a scheduler.
pub fn process_to_wire(process: &spec::Process) -> Result<oci::Process, ConvertError> {
    refuse("process.commandLine", process.command_line().is_some())?;
    refuse("process.ioPriority", process.io_priority().is_some())?;
    refuse("process.scheduler", process.scheduler().is_some())?;
    refuse("process.execCPUAffinity", process.exec_cpu_affinity().is_some())?;
    Ok(oci::Process {
        Terminal: process.terminal().unwrap_or_default(),
        ConsoleSize: process.console_size().map(console_size_to_wire).transpose()?.into(),
        User: Some(user_to_wire(process.user())).into(),
        Args: or_empty(process.args()),
        Env: or_empty(process.env()),
        Cwd: path_to_wire("process.cwd", process.cwd())?,
        Capabilities: process.capabilities().as_ref().map(capabilities_to_wire).into(),
        Rlimits: process.rlimits().iter().flatten().map(rlimit_to_wire).collect(),
        NoNewPrivileges: process.no_new_privileges().unwrap_or_default(),
        ApparmorProfile: or_empty(process.apparmor_profile()),
        OOMScoreAdj: process.oom_score_adj().unwrap_or_default().into(),
        SelinuxLabel: or_empty(process.selinux_label()),
        ..Default::default()
    })
}

/// The process that the runtime sent. `oom_score_adj` is always set, because a container's
/// process must not inherit the agent's own.
///
/// # Errors
///
/// When a name is not one of the specification's or a number does not fit.
pub fn process_from_wire(wire: oci::Process) -> Result<spec::Process, ConvertError> {
    // Every field is set: the type's own default is a shell.
    let mut process = spec::Process::default();
    process
        .set_terminal(unless_empty(wire.Terminal))
        .set_console_size(wire.ConsoleSize.as_ref().map(console_size_from_wire))
        .set_user(user_from_wire(wire.User.unwrap_or_default())?)
        .set_args(unless_empty(wire.Args))
        .set_env(unless_empty(wire.Env))
        .set_cwd(PathBuf::from(wire.Cwd))
        .set_capabilities(wire.Capabilities.into_option().map(capabilities_from_wire).transpose()?)
        .set_rlimits(list_from_wire(wire.Rlimits, |limit| rlimit_from_wire(&limit))?)
        .set_no_new_privileges(unless_empty(wire.NoNewPrivileges))
        .set_apparmor_profile(unless_empty(wire.ApparmorProfile))
        .set_oom_score_adj(Some(number("process.oomScoreAdj", wire.OOMScoreAdj)?))
        .set_selinux_label(unless_empty(wire.SelinuxLabel));
    Ok(process)
}

fn console_size_to_wire(size: spec::Box) -> Result<oci::Box, ConvertError> {
    Ok(oci::Box {
        Height: number("process.consoleSize.height", size.height())?,
        Width: number("process.consoleSize.width", size.width())?,
        ..Default::default()
    })
}

fn console_size_from_wire(wire: &oci::Box) -> spec::Box {
    spec::BoxBuilder::default()
        .height(wire.Height)
        .width(wire.Width)
        .build()
        .expect("every field of a box has a default")
}

fn user_to_wire(user: &spec::User) -> oci::User {
    let mut wire = oci::User {
        UID: user.uid(),
        GID: user.gid(),
        AdditionalGids: or_empty(user.additional_gids()),
        Username: or_empty(user.username()),
        ..Default::default()
    };
    if let Some(mask) = user.umask() {
        wire.special_fields.mut_unknown_fields().add_varint(UMASK, mask.into());
    }
    wire
}

fn user_from_wire(wire: oci::User) -> Result<spec::User, ConvertError> {
    let umask = match wire.special_fields.unknown_fields().get(UMASK) {
        Some(UnknownValueRef::Varint(mask)) => Some(number("process.user.umask", mask)?),
        _ => None,
    };
    let mut user = spec::User::default();
    user.set_uid(wire.UID)
        .set_gid(wire.GID)
        .set_additional_gids(unless_empty(wire.AdditionalGids))
        .set_username(unless_empty(wire.Username))
        .set_umask(umask);
    Ok(user)
}

fn capabilities_to_wire(capabilities: &spec::LinuxCapabilities) -> oci::LinuxCapabilities {
    let names = |set: &Option<spec::Capabilities>| {
        let mut names: Vec<_> =
            set.iter().flatten().map(|capability| format!("CAP_{capability}")).collect();
        names.sort_unstable();
        names
    };
    oci::LinuxCapabilities {
        Bounding: names(capabilities.bounding()),
        Effective: names(capabilities.effective()),
        Inheritable: names(capabilities.inheritable()),
        Permitted: names(capabilities.permitted()),
        Ambient: names(capabilities.ambient()),
        ..Default::default()
    }
}

/// A set without names is an empty set, never an absent one: an absent set would leave the
/// agent's own capabilities in place.
fn capabilities_from_wire(
    wire: oci::LinuxCapabilities,
) -> Result<spec::LinuxCapabilities, ConvertError> {
    let set = |field, names: Vec<String>| {
        let set: Result<spec::Capabilities, _> =
            names.iter().map(|text| capability_from_wire(field, text)).collect();
        set.map(Some)
    };
    let mut capabilities = spec::LinuxCapabilities::default();
    capabilities
        .set_bounding(set("process.capabilities.bounding", wire.Bounding)?)
        .set_effective(set("process.capabilities.effective", wire.Effective)?)
        .set_inheritable(set("process.capabilities.inheritable", wire.Inheritable)?)
        .set_permitted(set("process.capabilities.permitted", wire.Permitted)?)
        .set_ambient(set("process.capabilities.ambient", wire.Ambient)?);
    Ok(capabilities)
}

/// Runtimes write `CAP_KILL`, `KILL` or, some of them, `"CAP_KILL"` with the quotes.
fn capability_from_wire(field: &'static str, text: &str) -> Result<spec::Capability, ConvertError> {
    let bare = text.trim_matches('"');
    bare.strip_prefix("CAP_").unwrap_or(bare).parse().map_err(|_| bad_value(field, text))
}

fn rlimit_to_wire(rlimit: &spec::PosixRlimit) -> oci::POSIXRlimit {
    oci::POSIXRlimit {
        Type: rlimit.typ().to_string(),
        Hard: rlimit.hard(),
        Soft: rlimit.soft(),
        ..Default::default()
    }
}

fn rlimit_from_wire(wire: &oci::POSIXRlimit) -> Result<spec::PosixRlimit, ConvertError> {
    Ok(spec::PosixRlimitBuilder::default()
        .typ(name::<spec::PosixRlimitType>("process.rlimits[].type", &wire.Type)?)
        .hard(wire.Hard)
        .soft(wire.Soft)
        .build()
        .expect("every field of a limit has a default"))
}
