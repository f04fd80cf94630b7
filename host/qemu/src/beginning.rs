//! Whether a guest boots, or goes on from a template, and what QEMU needs for either.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kata_hypervisor::{HypervisorError, VmSpec};
use kata_linux::process::Spawn;
use kata_log::chain;

use crate::command_line::Guest;
use crate::file;
use crate::launch::Start;
use crate::machine::Machine;
use crate::own_devices::OwnDevices;
use crate::template::{Awakening, Key, Made, MemoryFile, Saved};

/// What a guest begins with.
pub(crate) struct Beginning {
    pub(crate) guest: Guest,
    /// The file of its memory as QEMU sees it; `None` has QEMU make one.
    pub(crate) memory_file: Option<PathBuf>,
    /// What a guest that goes on waits for.
    pub(crate) awakening: Option<Awakening>,
    /// Whether there are places for a sandbox's own devices.
    pub(crate) has_own_places: bool,
}

/// How the guest begins; and what it is made of, if it becomes a template.
pub(crate) fn beginning(
    spawn: &mut Spawn,
    start: Start<'_>,
    made: Made<'_>,
) -> Result<(Beginning, Option<Key>), HypervisorError> {
    match start {
        Start::Usual => {
            let saved = made.spec.template.as_deref().and_then(|place| saved(place, made));
            let beginning = match saved {
                Some(saved) => goes_on(spawn, made.spec, saved)?,
                None => boots(spawn, made, None)?,
            };
            Ok((beginning, None))
        }
        Start::ToBeSaved(memory) => Ok((boots(spawn, made, Some(memory))?, Some(key(made)?))),
    }
}

/// The template in `place`, if it is of this VM; else it is said why a guest boots instead.
fn saved(place: &Path, made: Made<'_>) -> Option<Saved> {
    let spec = made.spec;
    if !spec.disks.is_empty() || !OwnDevices::fit(spec.shares.len(), spec.nics.len()) {
        tracing::info!(
            "the guest boots: a template has no place for its {} disks and {} network devices",
            spec.disks.len(),
            spec.nics.len()
        );
        return None;
    }
    let found = key(made).map_err(|error| chain(&error));
    let found = found.and_then(|key| Saved::find(place, &key));
    let said = |why: &String| {
        tracing::warn!(
            "the guest boots, and does not go on from the template {}: {why}; `kata-runtime factory init` makes one",
            place.display()
        );
    };
    found.inspect_err(said).ok()
}

fn goes_on(spawn: &mut Spawn, spec: &VmSpec, saved: Saved) -> Result<Beginning, HypervisorError> {
    let goes_on = MemoryFile::new(spec.memory_mib).and_then(|memory| {
        let memory_file = Some(pass_file(spawn, memory.descriptor()?));
        let awakening = Some(saved.awaken(memory)?);
        Ok(Beginning { guest: Guest::GoesOn, memory_file, awakening, has_own_places: true })
    });
    goes_on.map_err(|source| {
        let source = HypervisorError::Setup { what: "the template's memory", source };
        HypervisorError::Template { source: Box::new(source) }
    })
}

/// A guest that boots, with the memory that is given, if it is to be saved.
fn boots(
    spawn: &mut Spawn,
    Made { host, spec, append, .. }: Made<'_>,
    memory: Option<&MemoryFile>,
) -> Result<Beginning, HypervisorError> {
    let setup = |what| move |source| HypervisorError::Setup { what, source };
    let kernel = file::readable(spawn, &spec.kernel, host.root);
    let kernel = kernel.map_err(setup("the guest kernel"))?;
    let initrd = spec.root.initrd().map(|file| file::readable(spawn, file, host.root));
    let initrd = initrd.transpose().map_err(setup("the initial ramdisk"))?;
    let descriptor = memory.map(MemoryFile::descriptor).transpose();
    let descriptor = descriptor.map_err(setup("the guest's memory"))?;
    Ok(Beginning {
        guest: Guest::Boots { kernel, initrd, append: append.to_owned() },
        memory_file: descriptor.map(|memory| pass_file(spawn, memory)),
        awakening: None,
        has_own_places: memory.is_some(),
    })
}

/// The key of a VM that may be from a template, or become one.
fn key(made: Made<'_>) -> Result<Key, HypervisorError> {
    if made.machine == Machine::Microvm {
        return Err(HypervisorError::Unsupported {
            driver: "qemu",
            what: "templates of a microvm under KVM; set `machine_type` to \"\" or \"q35\", or `enable_template` to false",
        });
    }
    Key::of(made).map_err(|source| HypervisorError::Setup { what: "a template", source })
}

/// The name that a file without one has for QEMU, which opens it once more.
fn pass_file(spawn: &mut Spawn, file: OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", spawn.pass_fd(file)))
}
