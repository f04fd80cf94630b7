//! The system call filter.

use oci_spec::runtime as spec;
use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompOperator};

use super::{ConvertError, list_from_wire, list_to_wire, name, number, refuse, unless_empty};
use crate::oci;
use crate::oci::linux_syscall::ErrnoRet;

/// What a rule returns unless it says otherwise (`errnoRet` in config-linux.md).
const EPERM: u32 = 1;

pub(super) fn seccomp_to_wire(
    seccomp: &spec::LinuxSeccomp,
) -> Result<oci::LinuxSeccomp, ConvertError> {
    refuse("linux.seccomp.listenerPath", seccomp.listener_path().is_some())?;
    refuse("linux.seccomp.listenerMetadata", seccomp.listener_metadata().is_some())?;
    Ok(oci::LinuxSeccomp {
        DefaultAction: seccomp.default_action().to_string(),
        Architectures: seccomp.architectures().iter().flatten().map(ToString::to_string).collect(),
        Flags: seccomp.flags().iter().flatten().map(ToString::to_string).collect(),
        Syscalls: list_to_wire(seccomp.syscalls(), rule_to_wire)?,
        DefaultErrnoRet: seccomp
            .default_errno_ret()
            .filter(|errno| returns_errno(seccomp.default_action()) && *errno != EPERM),
        ..Default::default()
    })
}

pub(super) fn seccomp_from_wire(
    wire: oci::LinuxSeccomp,
) -> Result<spec::LinuxSeccomp, ConvertError> {
    let mut seccomp = spec::LinuxSeccomp::default();
    seccomp
        .set_default_action(name("linux.seccomp.defaultAction", &wire.DefaultAction)?)
        .set_architectures(list_from_wire(wire.Architectures, |text| {
            name("linux.seccomp.architectures[]", &text)
        })?)
        .set_default_errno_ret(wire.DefaultErrnoRet)
        .set_flags(list_from_wire(wire.Flags, |text| name("linux.seccomp.flags[]", &text))?)
        .set_syscalls(list_from_wire(wire.Syscalls, rule_from_wire)?);
    Ok(seccomp)
}

fn returns_errno(action: LinuxSeccompAction) -> bool {
    matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace)
}

/// Where an error number counts it is always sent, because agents read its absence as 0.
fn rule_to_wire(rule: &spec::LinuxSyscall) -> Result<oci::LinuxSyscall, ConvertError> {
    let counts = returns_errno(rule.action());
    refuse("a linux.seccomp.syscalls[].errnoRet of 0", counts && rule.errno_ret() == Some(0))?;
    let errno = rule.errno_ret().or_else(|| counts.then_some(EPERM));
    Ok(oci::LinuxSyscall {
        Names: rule.names().clone(),
        Action: rule.action().to_string(),
        Args: rule.args().iter().flatten().map(argument_to_wire).collect(),
        ErrnoRet: errno.map(ErrnoRet::Errnoret),
        ..Default::default()
    })
}

/// A zero is an absent error number: some runtimes always send the field.
fn rule_from_wire(wire: oci::LinuxSyscall) -> Result<spec::LinuxSyscall, ConvertError> {
    let errno = match wire.ErrnoRet {
        Some(ErrnoRet::Errnoret(errno)) => unless_empty(errno),
        _ => None,
    };
    let mut rule = spec::LinuxSyscall::default();
    rule.set_names(wire.Names)
        .set_action(name("linux.seccomp.syscalls[].action", &wire.Action)?)
        .set_errno_ret(errno)
        .set_args(list_from_wire(wire.Args, |argument| argument_from_wire(&argument))?);
    Ok(rule)
}

fn argument_to_wire(argument: &spec::LinuxSeccompArg) -> oci::LinuxSeccompArg {
    oci::LinuxSeccompArg {
        Index: argument.index() as u64,
        Value: argument.value(),
        ValueTwo: argument.value_two().unwrap_or_default(),
        Op: argument.op().to_string(),
        ..Default::default()
    }
}

/// The second value is that which a masked comparison wants, so there a zero counts.
fn argument_from_wire(wire: &oci::LinuxSeccompArg) -> Result<spec::LinuxSeccompArg, ConvertError> {
    let operator: LinuxSeccompOperator = name("linux.seccomp.syscalls[].args[].op", &wire.Op)?;
    let mut argument = spec::LinuxSeccompArgBuilder::default()
        .index(number::<_, usize>("linux.seccomp.syscalls[].args[].index", wire.Index)?)
        .value(wire.Value)
        .op(operator);
    if wire.ValueTwo != 0 || operator == LinuxSeccompOperator::ScmpCmpMaskedEq {
        argument = argument.value_two(wire.ValueTwo);
    }
    Ok(argument.build().expect("every field of an argument has a default"))
}
