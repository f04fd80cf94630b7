//! A container's files: its root file system, and what it mounts of the host's.
//!
//! | | with a shared directory | without |
//! |---|---|---|
//! | root file system in a directory | in it | packed into an image, for a disk |
//! | root file system on a block device | a disk | a disk |
//! | mounts of the host's files | in it | copies |
//! | what Kubernetes updates | copies that follow | copies that follow |
//! | emptyDirs of Kubernetes | in it | directories of the guest's, one for the whole pod |

use std::path::PathBuf;
use std::sync::Arc;

use kata_agent_client::{AgentError, FileContent, GuestDevice, GuestFile, GuestStorage};
use kata_storage::{
    Copied, CopiedContent, CopiedFile, CopyBudget, EmptyDir, Followed, GUEST_COPIES, HostBind,
    Share, StorageError, point,
};
use oci_spec::runtime::Mount;

use super::Shared;
use super::updates::{self, Mirror};
use crate::carry::guest_place;
use crate::{ContainerPlan, DiskDevice, SandboxError};

/// The mode of directories that are made on the way to a copy.
const DIRECTORY_MODE: u32 = 0o755;

/// How often what is updated is read until it is of one version.
const TRIES: usize = 3;

/// A mount's copies.
struct Copies<'a> {
    bind: &'a HostBind,
    /// Where the containers of a pod have them together; `None` if each has its own.
    empty_dir: Option<EmptyDir>,
    files: Vec<CopiedFile>,
    /// Of what is updated.
    followed: Option<Followed>,
}

impl Shared {
    /// Brings the container's files to where the guest finds them, writes those places into its
    /// spec, and tells what the guest is to mount.
    pub(super) async fn bring_files(
        self: &Arc<Self>,
        plan: &mut ContainerPlan,
    ) -> Result<Vec<GuestStorage>, SandboxError> {
        let (vm, images) = (self.vm.as_ref(), self.carrier.images());
        // What is too large for a copy is refused before anything was done.
        let copies = images.map(|_| copies(&plan.mounts.host_binds)).transpose()?;
        let storages = match (&plan.disk, images) {
            (Some(disk), _) => self.carrier.bring_disk(vm, &plan.id, disk).await?,
            (None, Some(images)) => self.carrier.bring_root(vm, plan, images).await?,
            (None, None) => Vec::new(),
        };
        let root = match storages.last() {
            Some(root) => PathBuf::from(&root.mount_point),
            None => self.with_share(|share| share_root(share, plan))?,
        };
        let mounts = match copies {
            Some(copies) => self.copy_mounts(plan, copies).await?,
            None => self.share_mounts(plan).await?,
        };
        let in_spec = plan.spec.root_mut().as_mut().ok_or(SandboxError::Incomplete("root"))?;
        in_spec.set_path(root);
        plan.spec.set_mounts(Some(mounts));
        Ok(storages)
    }

    /// Gives the VM the disks that a container uses as devices, unless it has them, and tells where
    /// the guest finds them.
    pub(super) async fn bring_devices(
        &self,
        container: &str,
        devices: &[DiskDevice],
    ) -> Result<Vec<GuestDevice>, SandboxError> {
        let mut found = Vec::new();
        for device in devices {
            let disk = self.carrier.bring_device(self.vm.as_ref(), container, device).await?;
            found.push(GuestDevice {
                driver: disk.driver.to_owned(),
                address: disk.address,
                container_path: device.container_path.display().to_string(),
            });
        }
        Ok(found)
    }

    /// Shares what is mounted, and returns the mounts as the guest is to make them. What is updated
    /// is copied: only of changes of its own files does the guest's kernel tell who waits for them
    /// (inotify(7)).
    async fn share_mounts(
        self: &Arc<Self>,
        plan: &ContainerPlan,
    ) -> Result<Vec<Mount>, SandboxError> {
        let mut mounts = plan.mounts.clone();
        let mut budget = CopyBudget::default();
        let mut copied = Vec::new();
        // Another agent has no place for copies.
        let has_place = self.agent.has_additions();
        let is_updated = |bind: &&HostBind| {
            has_place && bind.readonly && kata_storage::is_kubelets(&bind.source)
        };
        for bind in plan.mounts.host_binds.iter().filter(is_updated) {
            let Some((files, followed)) = read_updated(bind, &mut budget) else { continue };
            let place = self.place_of_copy(&plan.id, bind);
            match self.copy_all(&place, &files).await {
                Ok(()) => {}
                // One that does not answer will not do so by and by.
                Err(error @ SandboxError::Agent(AgentError::Deadline { .. })) => return Err(error),
                // An older agent, or too little memory: sharing does.
                Err(SandboxError::Agent(error)) => {
                    tracing::warn!("{} is shared, and not copied: {error}", bind.source.display());
                    // What it has of it goes with the container in any case.
                    let _ = self.remove_copy(&place, "").await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.keep_updated(&plan.id, bind, &place, &files, followed);
            copied.push((bind.index, place));
        }
        let is_copied = |bind: &HostBind| copied.iter().any(|(index, _)| *index == bind.index);
        mounts.host_binds.retain(|bind| !is_copied(bind));
        let mut mounts = self.with_share(|share| Ok(share.add_mounts(&plan.id, mounts)?))?;
        for (index, place) in copied {
            point(&mut mounts, index, place.into());
        }
        Ok(mounts)
    }

    /// Where a container's mount is copied to.
    fn place_of_copy(&self, container: &str, bind: &HostBind) -> String {
        if self.agent.has_additions() {
            format!("{GUEST_COPIES}/{container}/{}", bind.index)
        } else {
            guest_place(container, &format!("mounts/{}", bind.index))
        }
    }

    /// Copies what is mounted, and returns the mounts as the guest is to make them.
    async fn copy_mounts(
        self: &Arc<Self>,
        plan: &ContainerPlan,
        copies: Vec<Copies<'_>>,
    ) -> Result<Vec<Mount>, SandboxError> {
        let mut mounts = plan.mounts.spec_mounts.clone();
        for Copies { bind, empty_dir, files, followed } in copies {
            let place = match empty_dir {
                Some(empty_dir) => self.make_empty_dir(bind, empty_dir, &files).await?,
                None => {
                    let place = self.place_of_copy(&plan.id, bind);
                    self.copy_all(&place, &files).await?;
                    place
                }
            };
            if let Some(followed) = followed {
                self.keep_updated(&plan.id, bind, &place, &files, followed);
            }
            point(&mut mounts, bind.index, place.into());
        }
        Ok(mounts)
    }

    /// Has a copy follow its source until the container has ended.
    fn keep_updated(
        self: &Arc<Self>,
        container: &str,
        bind: &HostBind,
        place: &str,
        files: &[CopiedFile],
        followed: Followed,
    ) {
        let copied = Copied::of(files);
        let mirror = Mirror { bind: bind.clone(), place: place.to_owned(), copied };
        let task = tokio::spawn(updates::follow(Arc::clone(self), followed, mirror));
        self.carrier.keep(container, task.abort_handle());
    }

    /// Removes what was copied for a container that was not made. One that was made takes its
    /// copies with it.
    pub(super) async fn remove_copies(&self, container: &str) {
        if !self.agent.has_additions() {
            return;
        }
        let place = format!("{GUEST_COPIES}/{container}");
        if let Err(error) = self.remove_copy(&place, "").await {
            tracing::debug!("sandbox {}: copies stay in the guest: {error}", self.id);
        }
    }

    /// Makes an emptyDir in the guest, with what the host's has in it, unless it is there. Returns
    /// its place.
    async fn make_empty_dir(
        &self,
        bind: &HostBind,
        empty_dir: EmptyDir,
        files: &[CopiedFile],
    ) -> Result<String, SandboxError> {
        let place = empty_dir.guest_path.clone();
        let mut there = self.carrier.empty_dirs().await;
        // What is there is the containers'.
        if !there.contains(&empty_dir) {
            empty_dir.check_beside(&there, bind)?;
            self.copy_all(&place, files).await?;
            there.push(empty_dir);
        }
        Ok(place)
    }

    async fn copy_all(&self, place: &str, files: &[CopiedFile]) -> Result<(), SandboxError> {
        for file in files {
            self.copy(place, file).await?;
        }
        Ok(())
    }

    /// Copies one file of a mount's to below `place`.
    pub(super) async fn copy(&self, place: &str, file: &CopiedFile) -> Result<(), SandboxError> {
        let content = match &file.content {
            CopiedContent::Directory => FileContent::Directory,
            CopiedContent::Regular(bytes) => FileContent::Regular(bytes),
            CopiedContent::Symlink(target) => FileContent::Symlink(target),
        };
        let copy = GuestFile {
            path: &below(place, &file.path),
            mode: file.mode,
            dir_mode: DIRECTORY_MODE,
            uid: file.uid,
            gid: file.gid,
            content,
        };
        self.unless_gone(self.agent.copy_file(copy)).await
    }

    /// Removes the copy that has this path below `place`, with all below it.
    pub(super) async fn remove_copy(&self, place: &str, path: &str) -> Result<(), SandboxError> {
        let nothing = GuestFile {
            path: &below(place, path),
            mode: 0,
            dir_mode: DIRECTORY_MODE,
            uid: 0,
            gid: 0,
            content: FileContent::Nothing,
        };
        self.unless_gone(self.agent.copy_file(nothing)).await
    }
}

fn below(place: &str, path: &str) -> String {
    if path.is_empty() { place.to_owned() } else { format!("{place}/{path}") }
}

/// Reads what the kubelet updates, all of one version; `None` where that does not succeed, or is
/// beyond the budget.
fn read_updated(bind: &HostBind, budget: &mut CopyBudget) -> Option<(Vec<CopiedFile>, Followed)> {
    let read = || -> Result<_, StorageError> {
        // It is followed before it is read, so that nothing that comes in between is missed.
        let Some(followed) = follow(bind)? else { return Ok(None) };
        let mut left = *budget;
        let files = left.read(bind)?;
        let is_whole = Copied::of(&files).update(&files).is_some();
        Ok(is_whole.then_some((files, followed, left)))
    };
    for _ in 0..TRIES {
        match read() {
            Ok(Some((files, followed, left))) => {
                *budget = left;
                return Some((files, followed));
            }
            Ok(None) => {}
            Err(error) => tracing::debug!("{error}"),
        }
    }
    tracing::warn!("{} is shared, and who waits for its changes not told", bind.source.display());
    None
}

fn follow(bind: &HostBind) -> Result<Option<Followed>, StorageError> {
    Followed::begin(bind).map_err(|source| StorageError::Io {
        action: "follow the changes of",
        path: bind.source.clone(),
        source,
    })
}

fn copies(binds: &[HostBind]) -> Result<Vec<Copies<'_>>, SandboxError> {
    let mut budget = CopyBudget::default();
    let read = |bind| {
        // It is followed before it is read, so that nothing that comes in between is missed.
        let followed = follow(bind)?;
        let empty_dir = EmptyDir::of(bind)?;
        Ok(Copies { bind, empty_dir, files: budget.read(bind)?, followed })
    };
    binds.iter().map(read).collect()
}

/// Puts the container's root file system where the guest finds it, and tells where.
fn share_root(share: &mut Share, plan: &ContainerPlan) -> Result<PathBuf, SandboxError> {
    if !plan.rootfs_mounts.is_empty() {
        kata_storage::mount_rootfs(&plan.rootfs_mounts, &plan.rootfs)?;
    }
    kata_storage::check_mount_points(&plan.rootfs, &plan.mounts)?;
    if plan.readonly_rootfs {
        kata_storage::make_mount_points(&plan.rootfs, &plan.spec, &plan.mounts)?;
    }
    Ok(share.add_rootfs(&plan.id, &plan.rootfs, plan.readonly_rootfs)?)
}
