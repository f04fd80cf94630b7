//! Disks that come and go while the VM runs.
//!
//! ```text
//!   attach   add-fd ─▶ blockdev-add ─▶ device_add on a free place
//!   detach   blockdev-reopen on nothing ─▶ blockdev-del ─▶ remove-fd     the host has its device back
//!            device_del ─▶ … ─▶ DEVICE_DELETED ─▶ blockdev-del           the guest lets go, sooner or later
//! ```
//!
//! What is taken away is first exchanged for nothing, a disk of one sector that reads as zeros: so
//! the host's device is free whatever the guest does. A guest on native ports takes six seconds to
//! let go, and one that was taken over never does; such a disk keeps its place.

use std::fs::{File, metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_hypervisor::{DiskSpec, GuestDisk, HypervisorError, VmSpec};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::device::Transport;
use crate::hot_plug::HotPlug;
use crate::qmp::{Command, Qmp};
use crate::settings::DiskIo;

/// The number of the first set of descriptors: more than any descriptor has that QEMU was started
/// with, whose numbers its other sets have.
const FIRST_SET: u64 = 1 << 20;

/// In how many steps the host gets its device back.
const RELEASE: usize = 4;

/// How long a disk waits for the place of one that the guest is letting go of.
const PATIENCE: Duration = Duration::from_secs(10);

/// The later disks of a VM.
#[derive(Debug)]
pub(crate) struct LaterDisks {
    /// At a time.
    most: usize,
    places: Arc<HotPlug>,
    io: DiskIo,
    // Locked for a look or a change, never while QEMU is asked.
    disks: Mutex<Disks>,
    /// Changes when the guest has let go of a disk.
    let_go: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Disks {
    made: u64,
    there: Vec<Disk>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    /// The disk's serial number, and a part of all its names.
    id: String,
    /// Tells its descriptors apart.
    set: u64,
    readonly: bool,
    /// The place that it has taken; `None` while it waits for one.
    bus: Option<String>,
    /// How many steps of [`Disk::release`] are done. With all of them it was taken away.
    released: usize,
    /// The guest was asked to let go of it.
    asked: bool,
    /// The guest has let go of it, asked or not.
    gone: bool,
}

impl LaterDisks {
    /// Room for those that the spec wants.
    pub(crate) fn of(spec: &VmSpec, places: Arc<HotPlug>, io: DiskIo) -> Self {
        let most = spec.later_disks.count();
        Self { most, places, io, disks: Mutex::default(), let_go: watch::Sender::new(()) }
    }

    /// Whether there is a disk of this id.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.disks().there.iter().any(|disk| disk.id == id && !disk.leaving())
    }

    /// Gives the VM a disk. On error it has none.
    pub(crate) async fn attach(
        &self,
        qmp: &Qmp,
        disk: &DiskSpec,
    ) -> Result<GuestDisk, HypervisorError> {
        if self.most > 0 && !self.places.has_any() {
            let what = "disks that come after the boot on a microvm with KVM; set `machine_type` to \"\" or \"q35\"";
            return Err(HypervisorError::Unsupported { driver: "qemu", what });
        }
        let added = self.add(disk)?;
        let attached = async {
            let bus = self.place(qmp, &added.id).await?;
            let (file, is_device) =
                open(disk).map_err(|source| HypervisorError::Setup { what: "a disk", source })?;
            qmp.add_fd(added.set, &Arc::new(file)).await?;
            qmp.execute(Command::BlockdevAdd(added.file(is_device, self.io))).await?;
            qmp.execute(Command::BlockdevAdd(added.format(&added.file_name()))).await?;
            qmp.execute(Command::DeviceAdd(added.device(&bus))).await
        };
        match attached.await {
            Ok(()) => Ok(GuestDisk::with_serial(&added.id)),
            Err(error) => {
                // As far as it came.
                for node in [added.format_name(), added.file_name()] {
                    let _ = qmp.execute(Command::BlockdevDel(node)).await;
                }
                let _ = qmp.execute(Command::RemoveFd(added.set)).await;
                self.remove(added.set);
                Err(error)
            }
        }
    }

    /// Takes a disk away. An id that is not there is fine. On error it is still there, and the next
    /// time goes on where this one has failed.
    pub(crate) async fn detach(&self, qmp: &Qmp, id: &str) -> Result<(), HypervisorError> {
        let Some(disk) = self.all(|disk| disk.id == id && !disk.leaving()).pop() else {
            return Ok(());
        };
        for step in disk.release().into_iter().skip(disk.released) {
            qmp.execute(step).await?;
            self.change(id, |disk| disk.released += 1);
        }
        self.clean_up(qmp).await;
        Ok(())
    }

    /// To be called when a device of this name has been let go of.
    pub(crate) fn deleted(&self, device: &str) {
        let mut disks = self.disks();
        let disk = disks.there.iter_mut().find(|disk| disk.device_name() == device);
        if let Some(disk) = disk {
            disk.gone = true;
            self.let_go.send_replace(());
        }
    }

    /// A place for a disk, for which one may have to be let go of.
    async fn place(&self, qmp: &Qmp, id: &str) -> Result<String, HypervisorError> {
        let mut let_go = self.let_go.subscribe();
        let found = async {
            loop {
                self.clean_up(qmp).await;
                if let Some(bus) = self.take_place(id) {
                    return Some(bus);
                }
                if !self.disks().there.iter().any(Disk::leaving) {
                    return None;
                }
                // The sender lives as long as `self`.
                let _ = let_go.changed().await;
            }
        };
        let found = timeout(PATIENCE, found).await.ok().flatten();
        found.ok_or_else(|| HypervisorError::NoDisk { id: id.to_owned() })
    }

    fn take_place(&self, id: &str) -> Option<String> {
        let bus = self.places.take()?;
        self.change(id, |disk| disk.bus = Some(bus.clone()));
        Some(bus)
    }

    /// Asks the guest to let go of what was taken away, and takes away what is left of what it has
    /// let go of.
    async fn clean_up(&self, qmp: &Qmp) {
        for disk in self.all(|disk| disk.leaving() && !disk.gone && !disk.asked) {
            // QEMU refuses while the guest is still busy with finding it, and is asked once more
            // the next time.
            match qmp.execute(Command::DeviceDel(disk.device_name())).await {
                Ok(()) => self.change(&disk.id, |disk| disk.asked = true),
                Err(error) => tracing::debug!("the disk {}: {error}", disk.id),
            }
        }
        for disk in self.all(|disk| disk.leaving() && disk.gone) {
            for node in [disk.format_name(), disk.nothing_name()] {
                if let Err(error) = qmp.execute(Command::BlockdevDel(node)).await {
                    tracing::debug!("the disk {}: {error}", disk.id);
                }
            }
            self.remove(disk.set);
        }
    }

    fn add(&self, disk: &DiskSpec) -> Result<Disk, HypervisorError> {
        let mut disks = self.disks();
        let is_known = disks.there.iter().any(|there| there.id == disk.id);
        if is_known || disks.there.iter().filter(|disk| !disk.leaving()).count() >= self.most {
            return Err(HypervisorError::NoDisk { id: disk.id.clone() });
        }
        let set = FIRST_SET + disks.made;
        disks.made += 1;
        let disk = Disk {
            id: disk.id.clone(),
            set,
            readonly: disk.readonly,
            bus: None,
            released: 0,
            asked: false,
            gone: false,
        };
        disks.there.push(disk.clone());
        Ok(disk)
    }

    fn all(&self, which: impl Fn(&Disk) -> bool) -> Vec<Disk> {
        self.disks().there.iter().filter(|disk| which(disk)).cloned().collect()
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Disk)) {
        if let Some(disk) = self.disks().there.iter_mut().find(|disk| disk.id == id) {
            change(disk);
        }
    }

    /// Forgets a disk, and gives its place back. More than one may come to that.
    fn remove(&self, set: u64) {
        let mut disks = self.disks();
        let Some(at) = disks.there.iter().position(|disk| disk.set == set) else { return };
        if let Some(bus) = disks.there.swap_remove(at).bus {
            self.places.give_back(bus);
        }
    }

    fn disks(&self) -> MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What QEMU is told of a disk. Its format is told, not looked for: a disk must not be able to say
/// that it is something else.
impl Disk {
    /// The host has its device back, and the guest a disk of nothing, of which it is to let go.
    fn leaving(&self) -> bool {
        self.released == RELEASE
    }

    /// What gives the host its device back.
    fn release(&self) -> [Command; RELEASE] {
        [
            Command::BlockdevAdd(self.nothing()),
            Command::BlockdevReopen(self.format(&self.nothing_name())),
            Command::BlockdevDel(self.file_name()),
            Command::RemoveFd(self.set),
        ]
    }

    fn file(&self, is_device: bool, io: DiskIo) -> Value {
        let driver = if is_device { "host_device" } else { "file" };
        let filename = format!("/dev/fdset/{}", self.set);
        let cache = json!({ "direct": io.direct, "no-flush": io.no_flush });
        json!({ "driver": driver, "node-name": self.file_name(), "filename": filename, "read-only": self.readonly, "aio": io.aio.name(),
                "cache": cache })
    }

    fn nothing(&self) -> Value {
        json!({ "driver": "null-co", "node-name": self.nothing_name(), "size": 512, "read-zeroes": true, "read-only": self.readonly })
    }

    fn format(&self, below: &str) -> Value {
        json!({ "driver": "raw", "node-name": self.format_name(), "file": below, "read-only": self.readonly })
    }

    fn device(&self, bus: &str) -> Value {
        let driver = Transport::Pci.driver("virtio-blk");
        json!({ "driver": driver, "id": self.device_name(), "bus": bus, "drive": self.format_name(), "serial": self.id })
    }

    fn file_name(&self) -> String {
        format!("file-{}", self.id)
    }

    fn format_name(&self) -> String {
        format!("raw-{}", self.id)
    }

    fn nothing_name(&self) -> String {
        format!("nothing-{}", self.id)
    }

    fn device_name(&self) -> String {
        format!("disk-{}", self.id)
    }
}

/// Opens the disk's file, and tells whether it is a device.
fn open(disk: &DiskSpec) -> io::Result<(OwnedFd, bool)> {
    let open = || {
        let is_device = metadata(&disk.path)?.file_type().is_block_device();
        let file = File::options().read(true).write(!disk.readonly).open(&disk.path)?;
        Ok((file.into(), is_device))
    };
    open().map_err(|error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", disk.path.display()))
    })
}

#[cfg(test)]
mod tests;
