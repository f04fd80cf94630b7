//! Disks that come and go while the machine runs.
//!
//! The VMM has shut itself in and opens nothing but what it was told of before it booted: of disks
//! that come later two directories, which are empty until then. What is in one of them it may only
//! read.
//!
//! ```text
//!  free ──file bound into a directory, in the VMM's mount namespace──▶ vm.add-disk ──▶ taken
//!    ▲                                                                                  │
//!    └── file unbound ◀── the VMM has the device no more ◀── the guest lets go ◀── vm.remove-device
//! ```
//!
//! Letting go takes the guest, which answers ACPI at once. One that does not is waited for for
//! [`PATIENCE`]; then whoever asked is told, and the place is looked after when there is no other.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kata_hypervisor::{DiskSpec, GuestDisk, HypervisorError, VmSpec};
use kata_linux::mount::{self, DetachedMount, MountAttributes, Propagation};
use kata_linux::process::Child;
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::sync::oneshot;

use crate::api::{Client, DeviceRef};
use crate::events::Removals;
use crate::machine;

/// The directories in the sandbox's own: for disks that are read, and for those that are written
/// to, too. A device cannot be kept from being written to by its mount.
const READ: &str = "clh-disks-ro";
const WRITTEN: &str = "clh-disks";

/// The longest that a guest has for letting go of a disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest time between two looks at whether it has, if no event tells.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The places for disks that come later.
#[derive(Debug)]
pub(crate) struct LaterDisks {
    run_dir: PathBuf,
    most: usize,
    // Locked for a look or a change, never while the VMM is asked.
    taken: Mutex<Vec<Taken>>,
    /// One comes or goes at a time.
    turn: tokio::sync::Mutex<()>,
}

/// A place that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    id: String,
    /// The disk's file for the VMM.
    file: PathBuf,
}

impl LaterDisks {
    /// Those that the spec wants; `None` if it wants none.
    pub(crate) fn of(spec: &VmSpec) -> io::Result<Option<Self>> {
        let most = spec.later_disks.readonly + spec.later_disks.writable;
        if most == 0 {
            return Ok(None);
        }
        let run_dir = spec.run_dir.clone();
        let this =
            Self { run_dir, most, taken: Mutex::default(), turn: tokio::sync::Mutex::default() };
        for (directory, _) in this.directories() {
            fs::create_dir_all(directory)?;
        }
        Ok(Some(this))
    }

    /// Where their files will be, for the VMM, too, and what it may do there (`LandlockConfig`).
    pub(crate) fn directories(&self) -> [(PathBuf, &'static str); 2] {
        [(self.run_dir.join(READ), "r"), (self.run_dir.join(WRITTEN), "rw")]
    }

    /// Whether a disk has come and not gone.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.taken().iter().any(|one| one.id == id)
    }

    /// See [`kata_hypervisor::Vm::attach_disk`].
    pub(crate) async fn attach(
        &self,
        client: &Client,
        vmm: &Child,
        disk: &DiskSpec,
    ) -> Result<GuestDisk, HypervisorError> {
        let _turn = self.turn.lock().await;
        if self.taken().len() == self.most {
            self.look_after(client, vmm).await?;
        }
        let place = self.take(disk)?;
        let attached = async {
            bind(vmm, disk, &place.file).await.map_err(setup)?;
            let config = machine::disk(disk, place.file.clone());
            client.add_disk(&config).await.map_err(HypervisorError::from)
        };
        match attached.await {
            Ok(()) => Ok(GuestDisk::with_serial(&disk.id)),
            Err(error) => {
                self.give_back(vmm, &place).await;
                Err(error)
            }
        }
    }

    /// See [`kata_hypervisor::Vm::detach_disk`].
    pub(crate) async fn detach(
        &self,
        client: &Client,
        vmm: &Child,
        removals: &Removals,
        id: &str,
    ) -> Result<(), HypervisorError> {
        let _turn = self.turn.lock().await;
        let Some(place) = self.taken().iter().find(|one| one.id == id).cloned() else {
            return Ok(());
        };
        let device = machine::disk_device(id);
        let mut removals = removals.later();
        if let Err(error) = client.remove_device(&DeviceRef { id: device.clone() }).await {
            // It was asked for before, and may be on its way, or gone.
            tracing::debug!("{error}");
        }
        let deadline = Instant::now() + PATIENCE;
        // The event comes while the VMM takes the device away; asked then, it answers when that is
        // done.
        while client.info().await?.has_device(&device) {
            if Instant::now() >= deadline {
                let reason = format!("the guest does not let go of the disk {id}");
                tracing::warn!("{reason}: the VMM has it open until it does, or ends");
                return Err(HypervisorError::Control { command: "vm.remove-device", reason });
            }
            removals.within(LOOK_AGAIN).await;
        }
        self.give_back(vmm, &place).await;
        Ok(())
    }

    /// Gives back the places of disks that have gone by themselves: their guest let go of them
    /// late, or without being asked.
    async fn look_after(&self, client: &Client, vmm: &Child) -> Result<(), HypervisorError> {
        let info = client.info().await?;
        let is_gone = |one: &Taken| !info.has_device(&machine::disk_device(&one.id));
        let gone: Vec<_> = self.taken().iter().filter(|one| is_gone(one)).cloned().collect();
        for place in gone {
            self.give_back(vmm, &place).await;
        }
        Ok(())
    }

    fn take(&self, disk: &DiskSpec) -> Result<Taken, HypervisorError> {
        let mut taken = self.taken();
        if taken.len() == self.most {
            return Err(HypervisorError::NoDisk { id: disk.id.clone() });
        }
        let directory = self.run_dir.join(if disk.readonly { READ } else { WRITTEN });
        let place = Taken { id: disk.id.clone(), file: directory.join(&disk.id) };
        taken.push(place.clone());
        Ok(place)
    }

    /// Takes the file from the VMM's sight; what is not there is fine.
    async fn give_back(&self, vmm: &Child, place: &Taken) {
        unbind(vmm, &place.file).await;
        self.taken().retain(|one| one != place);
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the VMM see the disk's file as `place`.
async fn bind(vmm: &Child, disk: &DiskSpec, place: &Path) -> io::Result<()> {
    let attributes = MountAttributes {
        readonly: disk.readonly,
        nosuid: true,
        // It is a device, most of the time.
        nodev: false,
        noexec: true,
        propagation: Some(Propagation::Private),
    };
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)?;
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let source = openat(CWD, &disk.path, path, Mode::empty())?;
    let file = DetachedMount::clone_of(&source, false)?;
    file.set(attributes)?;
    let target = place.to_owned();
    in_namespace_of(vmm, move || {
        let target = openat(CWD, &target, path | OFlags::NOFOLLOW, Mode::empty())?;
        file.attach(target).map(drop)
    })
    .await
}

/// The opposite of [`bind`].
async fn unbind(vmm: &Child, place: &Path) {
    let target = place.to_owned();
    // The namespace goes with the VMM, and the mount with it.
    let unmounted =
        in_namespace_of(vmm, move || mount::unmount_tree(&target).map_err(io::Error::other));
    if let Err(error) = unmounted.await {
        tracing::debug!("{} was not unmounted: {error}", place.display());
    }
    if let Err(error) = fs::remove_file(place) {
        tracing::debug!("{} was not removed: {error}", place.display());
    }
}

/// Does `work` among the mounts that the VMM sees, on a thread that ends there.
async fn in_namespace_of<T: Send + 'static>(
    vmm: &Child,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{}/ns/mnt", vmm.pid()))?;
    if vmm.exit().is_some() {
        // Its number may have been somebody else's already.
        return Err(io::Error::other("the VMM has ended"));
    }
    let (done, result) = oneshot::channel();
    thread::Builder::new().name("disks".to_owned()).spawn(move || {
        let entered = mount::enter_mount_namespace(&namespace).map_err(io::Error::other);
        // Whoever asked may have gone.
        let _ = done.send(entered.and_then(|()| work()));
    })?;
    result.await.unwrap_or_else(|_| Err(io::Error::other("the disks' thread panicked")))
}

fn setup(source: io::Error) -> HypervisorError {
    HypervisorError::Setup { what: "a disk", source }
}

#[cfg(test)]
mod tests {
    use kata_hypervisor::GuestRoot;

    use super::*;

    fn spec(run_dir: &Path, readonly: usize, writable: usize) -> VmSpec {
        VmSpec {
            later_disks: kata_hypervisor::LaterDisks { readonly, writable },
            ..VmSpec::bare("x", "/kernel", GuestRoot::Initrd("/initrd".into()), run_dir)
        }
    }

    fn disk(id: &str, readonly: bool) -> DiskSpec {
        DiskSpec { id: id.into(), path: "/disk".into(), readonly }
    }

    #[test]
    fn there_is_room_for_as_many_as_the_spec_says() {
        let run_dir = tempfile::tempdir().unwrap();
        assert!(LaterDisks::of(&spec(run_dir.path(), 0, 0)).unwrap().is_none());
        let disks = LaterDisks::of(&spec(run_dir.path(), 1, 1)).unwrap().unwrap();
        assert!(disks.directories().iter().all(|(directory, _)| directory.is_dir()));
        let one = disks.take(&disk("one", true)).unwrap();
        let two = disks.take(&disk("two", false)).unwrap();
        assert_eq!(one.file, run_dir.path().join("clh-disks-ro/one"));
        assert_eq!(two.file, run_dir.path().join("clh-disks/two"));
        let full = disks.take(&disk("three", false));
        assert!(matches!(full, Err(HypervisorError::NoDisk { .. })), "{full:?}");
        assert!(disks.has("one") && disks.has("two") && !disks.has("three"));
    }
}
