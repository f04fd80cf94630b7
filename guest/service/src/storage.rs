//! Storages: what the host wants mounted in the guest, for the sandbox or for one container.

mod drivers;
mod name;
mod options;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use kata_agent_api::agent::Storage;
use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::UnmountFlags;
use ttrpc::Code;

use crate::disk::{self, Disk};
use crate::files::SHARED;
use crate::path::Place;
use crate::status::{chain, invalid, refuse};

/// The drivers that this agent has, as it tells the host.
pub(crate) const DRIVERS: [&str; 7] =
    ["virtio-fs", "ephemeral", "local", "bind", "overlayfs", disk::DRIVERS[0], disk::DRIVERS[1]];

/// Upstream's drivers for block devices of buses that no guest of this agent has.
const OTHER_DISKS: [&str; 3] = ["blk-ccw", "scsi", "nvdimm"];

fn is_on_disk(storage: &Storage) -> bool {
    disk::DRIVERS.contains(&storage.driver.as_str())
}

/// Waits until the disks are there that some of `storages` are on. To be called before
/// [`Storages::add`].
pub(crate) async fn await_disks(storages: &[Storage]) -> ttrpc::Result<()> {
    for storage in storages.iter().filter(|storage| is_on_disk(storage)) {
        Disk::parse(&storage.driver, &storage.source)?.arrival().await?;
    }
    Ok(())
}

/// The share's directory of containers' root file systems and of what they mount (`Share` of
/// host/storage).
const MOUNTS: &str = ".mounts";

/// What is mounted where, and for how many.
#[derive(Debug, Default)]
pub(crate) struct Storages {
    users: HashMap<PathBuf, usize>,
}

impl Storages {
    /// Mounts `storages` in order and yields their mount points, for [`Storages::release`]. A mount
    /// point that is in use already is only counted. On an error nothing of this call stays.
    pub(crate) fn add(&mut self, storages: &[Storage]) -> ttrpc::Result<Vec<PathBuf>> {
        let mut added = Vec::new();
        for storage in storages {
            let mount_point = PathBuf::from(&storage.mount_point);
            let users = self.users.entry(mount_point.clone()).or_default();
            if *users == 0
                && let Err(error) = mount(storage)
            {
                self.users.remove(&mount_point);
                self.release(&added);
                return Err(error);
            }
            *self.users.entry(mount_point.clone()).or_default() += 1;
            added.push(mount_point);
        }
        Ok(added)
    }

    /// Has what a container has of the share, its root file system and what it mounts, mounted
    /// here, too, once for all containers, and yields where, for [`Storages::release`].
    ///
    /// Where the host's side of a share has a mount, the guest's kernel makes one as soon as
    /// somebody steps onto it, with a file system of its own for each mount namespace in which that
    /// happens. Sockets, fifos and locks of one are not those of the other. A container's namespace
    /// is a copy of this one, and finds what is here. Once such a mount is gone from all of them,
    /// the host's side closes whatever it had opened in it.
    pub(crate) fn step_onto(&mut self, spec: &Spec) -> Vec<PathBuf> {
        let root = spec.root().iter().map(|root| root.path().clone());
        let sources = spec.mounts().iter().flatten().filter_map(|mount| mount.source().clone());
        let shared: Vec<_> = root.chain(sources).filter(|path| is_hosts_mount(path)).collect();
        for source in &shared {
            // What is not there, whoever mounts it will tell.
            let _ = statx(CWD, source, AtFlags::empty(), StatxFlags::TYPE);
            *self.users.entry(source.clone()).or_default() += 1;
        }
        shared
    }

    /// Takes storages away, the last first, unless others use them too. Failures are logged: there
    /// is nobody who could do better. What is the host's must be let go of within the agent's
    /// runtime.
    pub(crate) fn release(&mut self, mount_points: &[PathBuf]) {
        for mount_point in mount_points.iter().rev() {
            match self.users.get_mut(mount_point) {
                Some(users) if *users > 1 => *users -= 1,
                Some(_) => {
                    self.users.remove(mount_point);
                    unmount(mount_point);
                }
                None => {}
            }
        }
    }
}

fn mount(storage: &Storage) -> ttrpc::Result<()> {
    let mounted = match storage.driver.as_str() {
        "virtio-fs" => drivers::share(storage),
        "overlayfs" => drivers::overlay(storage),
        "ephemeral" => drivers::ephemeral(storage),
        "local" => drivers::local(storage),
        "bind" => drivers::bind(storage),
        _ if is_on_disk(storage) => drivers::disk(storage),
        driver if OTHER_DISKS.contains(&driver) => {
            return Err(invalid(format!(
                "storage driver {driver:?} is not available: this agent finds disks on the PCI bus (`blk`) and by their \
                 nodes (`mmioblk`)"
            )));
        }
        driver => return Err(invalid(format!("there is no storage driver {driver:?}"))),
    };
    mounted.map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::InvalidInput => Code::INVALID_ARGUMENT,
            _ => Code::INTERNAL,
        };
        let Storage { driver, source, mount_point, .. } = storage;
        let reason = chain(&error);
        refuse(code, format!("cannot mount {driver} storage {source:?} on {mount_point}: {reason}"))
    })
}

/// Whether the host has something mounted there, below a directory of the share that only it makes
/// anything in.
fn is_hosts_mount(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent == Path::new(SHARED).join(MOUNTS))
        && path.file_name().is_some()
}

/// Local storages are plain directories, which unmounting refuses; they stay until the guest ends.
fn unmount(mount_point: &Path) {
    let unmounted = if is_hosts_mount(mount_point) {
        name::forget(mount_point.to_owned());
        // Also a file. Nothing in the guest can change what leads to it.
        rustix::mount::unmount(mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
    } else {
        let Ok(place) = Place::directory(mount_point) else { return };
        rustix::mount::unmount(place.link(), UnmountFlags::DETACH)
    };
    if let Err(errno) = unmounted
        && errno != rustix::io::Errno::INVAL
    {
        tracing::warn!(mount_point = %mount_point.display(), %errno, "a storage stays mounted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(mount_point: &Path) -> Storage {
        Storage {
            driver: "local".into(),
            mount_point: mount_point.display().to_string(),
            options: vec!["mode=0700".into()],
            ..Default::default()
        }
    }

    #[test]
    fn only_what_the_host_mounts_is_stepped_onto() {
        let at = |path: &str| is_hosts_mount(&Path::new(SHARED).join(path));
        assert!(at(".mounts/7"));
        for other in [".mounts", ".mounts/7/below", ".mounts/..", ".empty-dirs/data", "c1/rootfs"] {
            assert!(!at(other), "{other}");
        }
        assert!(!is_hosts_mount(Path::new("/.mounts/7")));
    }

    #[test]
    fn add_counts_users_of_a_mount_point() {
        let base = tempfile::tempdir().unwrap();
        let place = base.path().canonicalize().unwrap().join("volume");
        let mut storages = Storages::default();
        let first = storages.add(&[local(&place)]).unwrap();
        storages.add(&[local(&place)]).unwrap();
        assert_eq!(storages.users[&place], 2);
        storages.release(&first);
        assert_eq!(storages.users[&place], 1);
        assert!(place.is_dir());
    }

    #[test]
    fn add_unknown_driver_or_disk_is_refused_with_a_sentence() {
        let mut storages = Storages::default();
        for driver in ["blk", "scsi", "tape"] {
            let storage = Storage { driver: driver.into(), ..Default::default() };
            let error = storages.add(&[storage]).unwrap_err().to_string();
            assert!(error.contains(driver), "{error}");
        }
        assert!(storages.users.is_empty());
    }
}
