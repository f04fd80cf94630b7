//! Disks that come and go while the machine runs.
//!
//! The VMM has shut itself in and opens nothing but what it was told of before it booted: of disks
//! that come later a directory, which is empty until then.
//!
//! ```text
//!  free ──file bound into the directory, in the VMM's mount namespace──▶ vm.add-disk ──▶ taken
//!    ▲                                                                                    │
//!    └──── file unbound ◀── the guest lets go, and the VMM closes the file ◀── vm.remove-device
//! ```
//!
//! Letting go takes the guest, which answers ACPI at once. One that does not is waited for for
//! [`PATIENCE`]; then the disk stays where it is until the VM ends, and whoever asked is told.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kata_hypervisor::{DiskSpec, GuestDisk, HypervisorError, VmSpec};
use kata_linux::mount::{self, DetachedMount, MountAttributes, Propagation};
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::api::{Client, DeviceRef};
use crate::machine;

/// The directory in the sandbox's own.
const DIRECTORY: &str = "clh-disks";

/// The longest that a guest has for letting go of a disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time between two looks at whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The places for disks that come later.
#[derive(Debug)]
pub(crate) struct LaterDisks {
    directory: PathBuf,
    most: usize,
    // Locked for a look or a change, never while the VMM is asked.
    taken: Mutex<Vec<String>>,
}

impl LaterDisks {
    /// Those that the spec wants; `None` if it wants none.
    pub(crate) fn of(spec: &VmSpec) -> io::Result<Option<Self>> {
        let most = spec.later_disks.readonly + spec.later_disks.writable;
        if most == 0 {
            return Ok(None);
        }
        let directory = spec.run_dir.join(DIRECTORY);
        fs::create_dir_all(&directory)?;
        Ok(Some(Self { directory, most, taken: Mutex::default() }))
    }

    /// Where their files will be, for the VMM, too.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether a disk has come and not gone.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.taken().iter().any(|one| one == id)
    }

    /// See [`kata_hypervisor::Vm::attach_disk`]; `vmm` is the VMM's process id.
    pub(crate) async fn attach(
        &self,
        client: &Client,
        vmm: u32,
        disk: &DiskSpec,
    ) -> Result<GuestDisk, HypervisorError> {
        self.take(&disk.id)?;
        let attached = async {
            let file = self.bind(vmm, disk).await.map_err(setup)?;
            client.add_disk(&machine::disk(disk, file)).await.map_err(HypervisorError::from)
        };
        match attached.await {
            Ok(()) => Ok(GuestDisk::with_serial(&disk.id)),
            Err(error) => {
                self.unbind(vmm, &disk.id).await;
                self.give_back(&disk.id);
                Err(error)
            }
        }
    }

    /// See [`kata_hypervisor::Vm::detach_disk`].
    pub(crate) async fn detach(
        &self,
        client: &Client,
        vmm: u32,
        id: &str,
    ) -> Result<(), HypervisorError> {
        if !self.has(id) {
            return Ok(());
        }
        let device = machine::disk_device(id);
        client.remove_device(&DeviceRef { id: device.clone() }).await?;
        let deadline = Instant::now() + PATIENCE;
        // Asked while the VMM takes the device away, it answers when that is done.
        while client.info().await?.has_device(&device) {
            if Instant::now() >= deadline {
                let reason = format!("the guest does not let go of the disk {id}");
                tracing::warn!("{reason}: the VMM has it open until it ends");
                return Err(HypervisorError::Control { command: "vm.remove-device", reason });
            }
            sleep(LOOK_AGAIN).await;
        }
        self.unbind(vmm, id).await;
        self.give_back(id);
        Ok(())
    }

    fn take(&self, id: &str) -> Result<(), HypervisorError> {
        let mut taken = self.taken();
        if taken.len() == self.most {
            return Err(HypervisorError::NoDisk { id: id.to_owned() });
        }
        taken.push(id.to_owned());
        Ok(())
    }

    fn give_back(&self, id: &str) {
        self.taken().retain(|one| one != id);
    }

    fn taken(&self) -> MutexGuard<'_, Vec<String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the VMM see the disk's file, and returns where.
    async fn bind(&self, vmm: u32, disk: &DiskSpec) -> io::Result<PathBuf> {
        let place = self.directory.join(&disk.id);
        let source = disk.path.clone();
        let attributes = MountAttributes {
            readonly: disk.readonly,
            nosuid: true,
            // It is a device, most of the time.
            nodev: false,
            noexec: true,
            propagation: Some(Propagation::Private),
        };
        let target = place.clone();
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place)?;
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let source = openat(CWD, &source, path, Mode::empty())?;
        let file = DetachedMount::clone_of(&source, false)?;
        file.set(attributes)?;
        in_namespace_of(vmm, move || {
            let target = openat(CWD, &target, path | OFlags::NOFOLLOW, Mode::empty())?;
            file.attach(target).map(drop)
        })
        .await?;
        Ok(place)
    }

    /// Takes it from the VMM's sight. What is not there is fine.
    async fn unbind(&self, vmm: u32, id: &str) {
        let place = self.directory.join(id);
        let target = place.clone();
        // The namespace goes with the VMM, and the mount with it.
        let unmounted =
            in_namespace_of(vmm, move || mount::unmount_tree(&target).map_err(io::Error::other));
        if let Err(error) = unmounted.await {
            tracing::debug!("the file of disk {id} was not unmounted: {error}");
        }
        if let Err(error) = fs::remove_file(&place) {
            tracing::debug!("the place of disk {id} was not removed: {error}");
        }
    }
}

/// Does `work` among the mounts that a process sees, on a thread that ends there.
async fn in_namespace_of<T: Send + 'static>(
    pid: u32,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
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

    #[test]
    fn there_is_room_for_as_many_as_the_spec_says() {
        let run_dir = tempfile::tempdir().unwrap();
        assert!(LaterDisks::of(&spec(run_dir.path(), 0, 0)).unwrap().is_none());
        let disks = LaterDisks::of(&spec(run_dir.path(), 1, 1)).unwrap().unwrap();
        assert!(disks.directory().is_dir());
        disks.take("one").unwrap();
        disks.take("two").unwrap();
        let full = disks.take("three");
        assert!(matches!(full, Err(HypervisorError::NoDisk { .. })), "{full:?}");
        disks.give_back("one");
        assert!(!disks.has("one") && disks.has("two"));
        disks.take("three").unwrap();
    }
}
