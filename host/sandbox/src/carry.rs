//! Disks of containers. For guests that no directory can be shared with each is packed into an
//! image, and the image given to the VM as a disk; one that was packed for an earlier container of
//! the same content is taken as it is ([`ImageCache`]). A root file system on a block device
//! becomes a disk as it is, and so does a block device that a container uses as such.
//!
//! ```text
//!   host: rootfs ──pack──▶ <images>/<n> ──attach_disk──▶ guest: /dev/vdX ──▶ image   (read-only) ─┐
//!                                                              tmpfs ──▶ scratch             ─┴─overlay──▶ rootfs
//!   host: block device ────────────────────────────────▶ guest: /dev/vdX ──▶ rootfs
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_agent_client::GuestStorage;
use kata_hypervisor::{DiskSpec, GuestDisk, HypervisorError, Vm};
use kata_storage::{BlockRoot, EmptyDir, GUEST_SHARE, ImageCache, ImageKey, ImageOrigin};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::{ContainerPlan, DiskDevice, DiskRoot, ImagePlan, SandboxError};

/// What the agent is told of directories that an overlay needs (the agent protocol's
/// `driver_options`).
const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory=";

/// Where the guest mounts root file systems that are on block devices: not in the shared directory,
/// in which it can make nothing.
const GUEST_DISKS: &str = "/run/kata-containers/sandbox/disks";

/// How long a VMM may take to take a disk, or to give one back. One that a guest has taken over may
/// never answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps the disks that one sandbox's VM gets while it runs, and those who keep copies up to date.
#[derive(Debug)]
pub(crate) struct Carrier {
    /// Where images are; `None` where there are none.
    images: Option<ImagePlan>,
    // Locked for a look or a change, never while something is awaited.
    disks: Mutex<Disks>,
    /// One device comes at a time, so that whoever shares it finds it there.
    devices: tokio::sync::Mutex<()>,
    /// The emptyDirs that the guest has. Locked while one is being made.
    empty_dirs: tokio::sync::Mutex<Vec<EmptyDir>>,
    /// The tasks that serve a container, which end with it.
    tasks: Mutex<HashMap<String, Vec<AbortHandle>>>,
}

#[derive(Debug, Default)]
struct Disks {
    made: u64,
    by_container: HashMap<String, Vec<Disk>>,
}

#[derive(Debug, Clone)]
struct Disk {
    id: String,
    what: What,
}

/// What becomes a disk while the VM runs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// An image that was made for a container, and goes with it.
    Image(PathBuf),
    /// A block device with a container's root file system, or a file that is one's image.
    Root,
    /// A block device that a container uses as such; all that use it in the same way share the
    /// disk.
    Device { path: PathBuf, readonly: bool },
}

impl Carrier {
    /// Images go to the plan's directory, which is there; without a plan the guest gets what it
    /// mounts through the shared directory.
    pub(crate) fn new(images: Option<ImagePlan>) -> Self {
        Self {
            images,
            disks: Mutex::default(),
            devices: tokio::sync::Mutex::default(),
            empty_dirs: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// Where root file systems are packed into images; `None` where directories are shared.
    pub(crate) fn images(&self) -> Option<&ImagePlan> {
        self.images.as_ref()
    }

    /// Gives the VM the disk with the container's root file system, unless it has it, and tells
    /// what the guest is to mount, of which the last is the root file system. Whatever fails,
    /// [`Carrier::forget`] takes away.
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
                let id = self.note(container, |_| What::Root).id;
                let disk = DiskSpec { id, path: source.clone(), readonly: *readonly };
                attach(vm, &disk).await?
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

    /// Gives the VM the disk that is a device of the container's, unless it has it. Whatever fails,
    /// [`Carrier::forget`] takes away.
    pub(crate) async fn bring_device(
        &self,
        vm: &dyn Vm,
        container: &str,
        device: &DiskDevice,
    ) -> Result<GuestDisk, SandboxError> {
        let find = |id: &str| {
            let found = vm.disk(id);
            found.ok_or_else(|| HypervisorError::NoDisk { id: id.to_owned() }.into())
        };
        if let Some(id) = &device.id {
            return find(id);
        }
        let _turn = self.devices.lock().await;
        let what = What::Device { path: device.path.clone(), readonly: device.readonly };
        if let Some(id) = self.share(container, &what) {
            return find(&id);
        }
        let id = self.note(container, |_| what).id;
        let disk = DiskSpec { id, path: device.path.clone(), readonly: device.readonly };
        Ok(attach(vm, &disk).await?)
    }

    /// Gives the VM an image of the container's root file system, and tells what the guest is to
    /// mount. Whatever fails, [`Carrier::forget`] takes away.
    pub(crate) async fn bring_root(
        &self,
        vm: &dyn Vm,
        plan: &ContainerPlan,
        images: &ImagePlan,
    ) -> Result<Vec<GuestStorage>, SandboxError> {
        let mut image = PathBuf::new();
        let disk = self.note(&plan.id, |number| {
            image = images.directory.join(number.to_string());
            What::Image(image.clone())
        });
        make_image(plan, &images.cache, &image).await?;
        let disk = DiskSpec { id: disk.id, path: image, readonly: true };
        let found = attach(vm, &disk).await?;
        Ok(root_storages(&plan.id, found))
    }

    /// The emptyDirs that the guest has, for whoever makes one more. They stay as long as the VM.
    pub(crate) async fn empty_dirs(&self) -> tokio::sync::MutexGuard<'_, Vec<EmptyDir>> {
        self.empty_dirs.lock().await
    }

    /// Has a task end with [`Carrier::end_tasks`] for the container.
    pub(crate) fn keep(&self, container: &str, task: AbortHandle) {
        self.tasks().entry(container.to_owned()).or_default().push(task);
    }

    /// Ends the tasks that serve a container. One without any is fine.
    pub(crate) fn end_tasks(&self, container: &str) {
        for task in self.tasks().remove(container).unwrap_or_default() {
            task.abort();
        }
    }

    /// Takes the container's disks away from the VM, and its image away altogether, and ends the
    /// tasks that serve it. The guest must not use them any more. A container without any is fine.
    pub(crate) async fn forget(&self, vm: &dyn Vm, container: &str) {
        self.end_tasks(container);
        let _turn = self.devices.lock().await;
        for disk in self.take(container) {
            // A VM that is gone has no disks.
            match timeout(PATIENCE, vm.detach_disk(&disk.id)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("while container {container} went: {error}"),
                Err(_) => tracing::warn!(
                    "the hypervisor keeps a disk of container {container}: it does not answer within {PATIENCE:?}"
                ),
            }
            let What::Image(file) = disk.what else { continue };
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!("{} stays: {error}", file.display());
                }
                _ => {}
            }
        }
    }

    /// One more disk of a container's. Its id is one that no disk had before, and `what` is told
    /// its number.
    fn note(&self, container: &str, what: impl FnOnce(u64) -> What) -> Disk {
        let mut disks = self.disks();
        disks.made += 1;
        let number = disks.made;
        let disk = Disk { id: format!("later{number}"), what: what(number) };
        disks.by_container.entry(container.to_owned()).or_default().push(disk.clone());
        disk
    }

    /// The disk that is the same device already, from now on this container's, too.
    fn share(&self, container: &str, what: &What) -> Option<String> {
        let mut disks = self.disks();
        let all = disks.by_container.values().flatten();
        let disk = all.into_iter().find(|disk| disk.what == *what)?.clone();
        let id = disk.id.clone();
        disks.by_container.entry(container.to_owned()).or_default().push(disk);
        Some(id)
    }

    /// Forgets a container. Returns those of its disks that no other one uses.
    fn take(&self, container: &str) -> Vec<Disk> {
        let mut disks = self.disks();
        let mut taken = disks.by_container.remove(container).unwrap_or_default();
        taken
            .retain(|disk| !disks.by_container.values().flatten().any(|other| other.id == disk.id));
        taken
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, Vec<AbortHandle>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disks(&self) -> MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes `image` the image of the container's root file system. If it was packed, and is what any
/// container of the same snapshots would have, it is kept for the next one. Neither the container
/// nor the end of the sandbox waits for that.
async fn make_image(
    plan: &ContainerPlan,
    cache: &ImageCache,
    image: &Path,
) -> Result<(), SandboxError> {
    let key = ImageKey::of(&plan.rootfs_mounts);
    if !plan.rootfs_mounts.is_empty() {
        kata_storage::mount_rootfs(&plan.rootfs_mounts, &plan.rootfs)?;
    }
    kata_storage::check_mount_points(&plan.rootfs, &plan.mounts)?;
    let (of_all, root, file) = (cache.clone(), plan.rootfs.clone(), image.to_owned());
    let known = key.clone();
    // Not on the one thread that everybody else is served by.
    let made = tokio::task::spawn_blocking(move || of_all.make(known.as_ref(), &root, &file)).await;
    if !plan.rootfs_mounts.is_empty() {
        // All of it is in the image now.
        if let Err(error) = kata_linux::mount::unmount_tree(&plan.rootfs) {
            tracing::warn!("{error}");
        }
    }
    let origin = made.expect("packing neither panics nor is cancelled")?;
    tracing::debug!("the root file system of {} is an image: {origin:?}", plan.id);
    // What was changed while it was packed may be in the image by half.
    let key = key.filter(|key| ImageKey::of(&plan.rootfs_mounts).as_ref() == Some(key));
    if let (ImageOrigin::Packed(file), Some(key)) = (origin, key) {
        let of_all = cache.clone();
        tokio::task::spawn_blocking(move || of_all.keep(&key, &file));
    }
    Ok(())
}

/// Gives the VM a disk, if its VMM does that in time.
async fn attach(vm: &dyn Vm, disk: &DiskSpec) -> Result<GuestDisk, HypervisorError> {
    let reason = || format!("it does not answer within {PATIENCE:?}");
    let late = |_| HypervisorError::Control { command: "attach a disk", reason: reason() };
    timeout(PATIENCE, vm.attach_disk(disk)).await.map_err(late)?
}

/// Where the guest has what belongs to a container.
pub(crate) fn guest_place(container: &str, name: &str) -> String {
    format!("{GUEST_SHARE}/{container}/{name}")
}

/// The image, memory to write to, and one on the other. They go in the opposite order, all of them
/// with the container.
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
        let carrier = Carrier::new(None);
        let note = || carrier.note("c1", |number| What::Image(format!("/images/{number}").into()));
        let (one, other) = (note(), note());
        assert!(one.id != other.id && one.what != other.what);
        assert_eq!(carrier.take("c1").len(), 2);
        assert!(carrier.take("c1").is_empty());
    }

    #[test]
    fn device_goes_with_the_last_container_that_uses_it() {
        let carrier = Carrier::new(None);
        let device = |readonly| What::Device { path: "/dev/dm-1".into(), readonly };
        assert_eq!(carrier.share("c1", &device(false)), None);
        let disk = carrier.note("c1", |_| device(false));
        assert_eq!(carrier.share("c2", &device(true)), None);
        assert_eq!(carrier.share("c2", &device(false)), Some(disk.id.clone()));
        assert!(carrier.take("c1").is_empty());
        assert_eq!(carrier.share("c3", &device(false)), Some(disk.id.clone()));
        assert!(carrier.take("c2").is_empty());
        assert_eq!(carrier.take("c3").len(), 1);
    }
}
