//! The root of the configuration, mounts and hooks.

use std::path::PathBuf;

use oci_spec::runtime as spec;

use super::linux::{linux_from_wire, linux_to_wire};
use super::process::{process_from_wire, process_to_wire};
use super::{
    ConvertError, list_from_wire, list_to_wire, optional_path_to_wire, or_empty, path_from_wire,
    path_to_wire, refuse, unless_empty,
};
use crate::oci;

/// The container configuration as the agent reads it.
///
/// # Errors
///
/// When the configuration says what the protocol cannot carry. The runtime must have removed what
/// is meant for the host alone, such as the `vm` section.
pub fn spec_to_wire(spec: &spec::Spec) -> Result<oci::Spec, ConvertError> {
    refuse("domainname", spec.domainname().as_ref().is_some_and(|name| !name.is_empty()))?;
    refuse("solaris", spec.solaris().is_some())?;
    refuse("windows", spec.windows().is_some())?;
    refuse("vm", spec.vm().is_some())?;
    refuse("zos", spec.zos().is_some())?;
    refuse("uidMappings", spec.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()))?;
    refuse("gidMappings", spec.gid_mappings().as_ref().is_some_and(|m| !m.is_empty()))?;
    Ok(oci::Spec {
        Version: spec.version().clone(),
        Process: spec.process().as_ref().map(process_to_wire).transpose()?.into(),
        Root: spec.root().as_ref().map(root_to_wire).transpose()?.into(),
        Hostname: or_empty(spec.hostname()),
        Mounts: list_to_wire(spec.mounts(), mount_to_wire)?,
        Hooks: spec.hooks().as_ref().map(hooks_to_wire).transpose()?.into(),
        Annotations: or_empty(spec.annotations()),
        Linux: spec.linux().as_ref().map(linux_to_wire).transpose()?.into(),
        ..Default::default()
    })
}

/// The container configuration that the runtime sent.
///
/// # Errors
///
/// When a name is not one of the specification's or a number does not fit.
pub fn spec_from_wire(wire: oci::Spec) -> Result<spec::Spec, ConvertError> {
    refuse("solaris", wire.Solaris.is_some())?;
    refuse("windows", wire.Windows.is_some())?;
    // Every field is set: the type's own default is a whole container.
    let mut spec = spec::Spec::default();
    spec.set_version(wire.Version)
        .set_process(wire.Process.into_option().map(process_from_wire).transpose()?)
        .set_root(wire.Root.into_option().map(root_from_wire))
        .set_hostname(unless_empty(wire.Hostname))
        .set_mounts(list_from_wire(wire.Mounts, |mount| Ok(mount_from_wire(mount)))?)
        .set_hooks(wire.Hooks.into_option().map(hooks_from_wire).transpose()?)
        .set_annotations(unless_empty(wire.Annotations))
        .set_linux(wire.Linux.into_option().map(linux_from_wire).transpose()?);
    Ok(spec)
}

fn root_to_wire(root: &spec::Root) -> Result<oci::Root, ConvertError> {
    Ok(oci::Root {
        Path: path_to_wire("root.path", root.path())?,
        Readonly: root.readonly().unwrap_or_default(),
        ..Default::default()
    })
}

fn root_from_wire(wire: oci::Root) -> spec::Root {
    let mut root = spec::Root::default();
    root.set_path(PathBuf::from(wire.Path)).set_readonly(unless_empty(wire.Readonly));
    root
}

fn mount_to_wire(mount: &spec::Mount) -> Result<oci::Mount, ConvertError> {
    let mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|m| !m.is_empty());
    refuse("mounts[].uidMappings", mapped(mount.uid_mappings()))?;
    refuse("mounts[].gidMappings", mapped(mount.gid_mappings()))?;
    Ok(oci::Mount {
        destination: path_to_wire("mounts[].destination", mount.destination())?,
        source: optional_path_to_wire("mounts[].source", mount.source().as_ref())?,
        type_: or_empty(mount.typ()),
        options: or_empty(mount.options()),
        ..Default::default()
    })
}

fn mount_from_wire(wire: oci::Mount) -> spec::Mount {
    let mut mount = spec::Mount::default();
    mount
        .set_destination(PathBuf::from(wire.destination))
        .set_source(path_from_wire(wire.source))
        .set_typ(unless_empty(wire.type_))
        .set_options(unless_empty(wire.options));
    mount
}

fn hooks_to_wire(hooks: &spec::Hooks) -> Result<oci::Hooks, ConvertError> {
    Ok(oci::Hooks {
        Prestart: list_to_wire(hooks.prestart(), hook_to_wire)?,
        Poststart: list_to_wire(hooks.poststart(), hook_to_wire)?,
        Poststop: list_to_wire(hooks.poststop(), hook_to_wire)?,
        CreateRuntime: list_to_wire(hooks.create_runtime(), hook_to_wire)?,
        CreateContainer: list_to_wire(hooks.create_container(), hook_to_wire)?,
        StartContainer: list_to_wire(hooks.start_container(), hook_to_wire)?,
        ..Default::default()
    })
}

fn hooks_from_wire(wire: oci::Hooks) -> Result<spec::Hooks, ConvertError> {
    let list = |hooks| list_from_wire(hooks, |hook| Ok(hook_from_wire(hook)));
    let mut hooks = spec::Hooks::default();
    hooks
        .set_prestart(list(wire.Prestart)?)
        .set_poststart(list(wire.Poststart)?)
        .set_poststop(list(wire.Poststop)?)
        .set_create_runtime(list(wire.CreateRuntime)?)
        .set_create_container(list(wire.CreateContainer)?)
        .set_start_container(list(wire.StartContainer)?);
    Ok(hooks)
}

fn hook_to_wire(hook: &spec::Hook) -> Result<oci::Hook, ConvertError> {
    Ok(oci::Hook {
        Path: path_to_wire("hooks[].path", hook.path())?,
        Args: or_empty(hook.args()),
        Env: or_empty(hook.env()),
        Timeout: hook.timeout().unwrap_or_default(),
        ..Default::default()
    })
}

fn hook_from_wire(wire: oci::Hook) -> spec::Hook {
    let mut hook = spec::Hook::default();
    hook.set_path(PathBuf::from(wire.Path))
        .set_args(unless_empty(wire.Args))
        .set_env(unless_empty(wire.Env))
        .set_timeout(unless_empty(wire.Timeout));
    hook
}
