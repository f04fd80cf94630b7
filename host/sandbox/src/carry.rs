//! Root file systems on disks. For guests that no directory can be shared with each is packed into an image, and the image given to the VM as
//! a disk; what is on a block device becomes a disk as it is.
//!
//! ```text
//!   host: rootfs ──pack──▶ <images>/<n> ──attach_disk──▶ guest: /dev/vdX ──▶ image   (read-only) ─┐
//!                                                              tmpfs ──▶ scratch             ─┴─overlay──▶ rootfs
//!   host: block device ────────────────────────────────▶ guest: /dev/vdX ──▶ rootfs
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kata_agent_client::GuestStorage;
use kata_hypervisor::{DiskSpec, GuestDisk, HypervisorError, Vm};
use kata_storage::{BlockRoot, GUEST_SHARE};

use crate::{ContainerPlan, DiskRoot, SandboxError};

/// What the agent is told of directories that an overlay needs (the agent protocol's `driver_options`).
const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory=";

/// Where the guest mounts root file systems that are on block devices: not in the shared directory, in which it can make nothing.
const GUEST_DISKS: &str = "/run/kata-containers/sandbox/disks";

/// Keeps the disks that one sandbox's VM gets while it runs.
#[derive(Debug)]
pub(crate) struct Carrier {
    /// Where images go; `None` where there are none.
    directory: Option<PathBuf>,
    // Locked for a look or a change, never while something is awaited.
    images: Mutex<Images>,
}

#[derive(Debug, Default)]
struct Images {
    made: u64,
    by_container: HashMap<String, Image>,
}

#[derive(Debug, Clone)]
struct Image {
    disk: String,
    /// What goes with it.
    file: Option<PathBuf>,
}

impl Carrier {
    /// Images go to `directory`, which is there; without one the guest gets what it mounts through the shared directory.
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, images: Mutex::default() }
    }

    /// Where root file systems are packed into images; `None` where directories are shared.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Gives the VM the disk with the container's root file system, unless it has it, and tells what the guest is to mount, of which the
    /// last is the root file system. Whatever fails, [`Carrier::forget`] takes away.
    pub(crate) async fn bring_disk(
        &self,
        vm: &dyn Vm,
        container: &str,
        disk: &DiskRoot,
    ) -> Result<Vec<GuestStorage>, SandboxError> {
        let BlockRoot { source, fstype, options, readonly } = &disk.root;
        let found = match &disk.id {
            Some(id) => vm.disk(id).ok_or_else(|| HypervisorError::NoDisk { id: id.clone() })?,
            None => {
                let id = self.place(container, None).disk;
                let disk = DiskSpec { id, path: source.clone(), readonly: *readonly };
                vm.attach_disk(&disk).await?
            }
        };
        Ok(vec![GuestStorage {
            driver: found.driver.to_owned(),
            source: found.address,
            fstype: fstype.clone(),
            options: options.clone(),
            mount_point: format!("{GUEST_DISKS}/{container}"),
            ..GuestStorage::default()
        }])
    }

    /// Packs the container's root file system, gives it to the VM, and tells what the guest is to mount. Whatever fails,
    /// [`Carrier::forget`] takes away.
    pub(crate) async fn bring_root(
        &self,
        vm: &dyn Vm,
        plan: &ContainerPlan,
        directory: &Path,
    ) -> Result<Vec<GuestStorage>, SandboxError> {
        let place = self.place(&plan.id, Some(directory));
        let image = place.file.expect("it was asked for");
        if !plan.rootfs_mounts.is_empty() {
            kata_storage::mount_rootfs(&plan.rootfs_mounts, &plan.rootfs)?;
        }
        kata_storage::check_mount_points(&plan.rootfs, &plan.mounts)?;
        let (root, file) = (plan.rootfs.clone(), image.clone());
        // Not on the one thread that everybody else is served by.
        let packed = tokio::task::spawn_blocking(move || kata_storage::pack(&root, &file)).await;
        if !plan.rootfs_mounts.is_empty() {
            // All of it is in the image now.
            if let Err(error) = kata_linux::mount::unmount_tree(&plan.rootfs) {
                tracing::warn!("{error}");
            }
        }
        let size = packed.expect("packing neither panics nor is cancelled")?;
        tracing::debug!("the root file system of {} is an image of {size} bytes", plan.id);
        let disk = DiskSpec { id: place.disk, path: image, readonly: true };
        let found = vm.attach_disk(&disk).await?;
        Ok(root_storages(&plan.id, found))
    }

    /// Takes the container's image away from the VM, and then away altogether. The guest must not use it any more. A container without one
    /// is fine.
    pub(crate) async fn forget(&self, vm: &dyn Vm, container: &str) {
        let Some(image) = self.images().by_container.remove(container) else { return };
        // A VM that is gone has no disks.
        if let Err(error) = vm.detach_disk(&image.disk).await {
            tracing::debug!("while container {container} went: {error}");
        }
        let Some(file) = image.file else { return };
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("{} stays: {error}", file.display());
            }
            _ => {}
        }
    }

    /// A place that no image had before.
    fn place(&self, container: &str, directory: Option<&Path>) -> Image {
        let mut images = self.images();
        images.made += 1;
        let number = images.made;
        let file = directory.map(|directory| directory.join(number.to_string()));
        let image = Image { disk: format!("later{number}"), file };
        images.by_container.insert(container.to_owned(), image.clone());
        image
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the guest has what belongs to a container.
pub(crate) fn guest_place(container: &str, name: &str) -> String {
    format!("{GUEST_SHARE}/{container}/{name}")
}

/// The image, memory to write to, and one on the other. They go in the opposite order, all of them with the container.
fn root_storages(container: &str, disk: GuestDisk) -> Vec<GuestStorage> {
    let place = |name| guest_place(container, name);
    let (image, scratch) = (place("image"), place("scratch"));
    let (upper, work) = (format!("{scratch}/upper"), format!("{scratch}/work"));
    vec![
        GuestStorage {
            driver: disk.driver.to_owned(),
            source: disk.address,
            fstype: kata_storage::IMAGE_TYPE.to_owned(),
            options: vec!["ro".to_owned()],
            mount_point: image.clone(),
            ..GuestStorage::default()
        },
        GuestStorage {
            driver: "ephemeral".to_owned(),
            source: "tmpfs".to_owned(),
            fstype: "tmpfs".to_owned(),
            options: vec!["mode=0700".to_owned()],
            mount_point: scratch,
            ..GuestStorage::default()
        },
        GuestStorage {
            driver: "overlayfs".to_owned(),
            driver_options: [&upper, &work].map(|path| format!("{CREATE_DIRECTORY}{path}")).into(),
            source: "overlay".to_owned(),
            fstype: "overlay".to_owned(),
            options: vec![
                format!("lowerdir={image}"),
                format!("upperdir={upper}"),
                format!("workdir={work}"),
            ],
            mount_point: place("rootfs"),
            ..GuestStorage::default()
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_is_made_of_the_two_before_it() {
        let disk = GuestDisk { driver: "mmioblk", address: "/dev/vdb".into() };
        let [image, scratch, root] = &root_storages("c1", disk)[..] else { panic!() };
        assert_eq!((image.driver.as_str(), image.source.as_str()), ("mmioblk", "/dev/vdb"));
        assert_eq!(root.mount_point, "/run/kata-containers/shared/containers/c1/rootfs");
        assert_eq!(root.options[0], format!("lowerdir={}", image.mount_point));
        assert_eq!(root.options[1], format!("upperdir={}/upper", scratch.mount_point));
        assert!(root.driver_options.iter().all(|option| option.contains(&scratch.mount_point)));
    }

    #[test]
    fn no_two_images_have_one_place() {
        let carrier = Carrier::new(Some("/images".into()));
        let place = || carrier.place("c1", carrier.directory.as_deref());
        let (one, other) = (place(), place());
        assert!(one.disk != other.disk && one.file != other.file);
    }
}
