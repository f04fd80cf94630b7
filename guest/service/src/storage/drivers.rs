//! How each kind of storage is mounted.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use kata_agent_api::agent::Storage;
use kata_guest_setup::hotplug;
use rustix::fs::{Gid, Mode, Uid};
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_remount};

use super::options::Options;
use crate::disk::Disk;
use crate::path::Place;

/// Names a directory that an overlay needs, in `driver_options`.
const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory=";

/// A file system of a kind that the driver decides.
pub(super) fn file_system(storage: &Storage, fstype: &str) -> io::Result<()> {
    let options = Options::parse(&storage.options);
    let place = Place::make_directory(Path::new(&storage.mount_point), 0o755)?;
    mount_at(&place, &storage.source, fstype, &options)
}

/// A directory that the host shares.
pub(super) fn share(storage: &Storage) -> io::Result<()> {
    hotplug::find_devices()?;
    file_system(storage, "virtiofs")
}

/// A file system on a disk, which is there.
pub(super) fn disk(storage: &Storage) -> io::Result<()> {
    let disk = Disk::parse(&storage.driver, &storage.source).map_err(io::Error::other)?;
    let node = disk.node()?;
    let options = Options::parse(&storage.options);
    let place = Place::make_directory(Path::new(&storage.mount_point), 0o755)?;
    let source = node.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    mount_at(&place, source, &storage.fstype, &options)?;
    give_to_group(storage)
}

/// An overlay of directories that the options name.
pub(super) fn overlay(storage: &Storage) -> io::Result<()> {
    let directories =
        storage.driver_options.iter().filter_map(|option| option.strip_prefix(CREATE_DIRECTORY));
    for directory in directories {
        Place::make_directory(Path::new(directory), 0o755)?;
    }
    file_system(storage, "overlay")
}

/// Memory: a tmpfs, or huge pages.
pub(super) fn ephemeral(storage: &Storage) -> io::Result<()> {
    let fstype = match storage.fstype.as_str() {
        "hugetlbfs" => "hugetlbfs",
        "tmpfs" | "" => "tmpfs",
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    file_system(storage, fstype)?;
    give_to_group(storage)
}

/// A directory of the guest's own.
pub(super) fn local(storage: &Storage) -> io::Result<()> {
    let options = Options::parse(&storage.options);
    let place = Place::make_directory(Path::new(&storage.mount_point), 0o755)?;
    if let Some(mode) = options.mode {
        // Once more than at its making, which the umask cuts.
        rustix::fs::chmod(place.link(), Mode::from_raw_mode(mode & 0o7777))?;
    }
    give_to_group(storage)
}

/// Another place of the guest's.
pub(super) fn bind(storage: &Storage) -> io::Result<()> {
    let options = Options::parse(&storage.options);
    let source = Place::existing(Path::new(&storage.source))?;
    let target = Place::make_directory(Path::new(&storage.mount_point), 0o755)?;
    if options.recursive {
        mount_bind_recursive(source.link(), target.link())?;
    } else {
        mount_bind(source.link(), target.link())?;
    }
    if options.flags != MountFlags::empty() {
        // The place from before is below the new mount, so it is looked up again.
        let mounted = Place::directory(Path::new(&storage.mount_point))?;
        mount_remount(mounted.link(), MountFlags::BIND | options.flags, c"")?;
    }
    Ok(())
}

fn mount_at(place: &Place, source: &str, fstype: &str, options: &Options) -> io::Result<()> {
    let data = CString::new(options.data.as_str()).map_err(io::Error::from)?;
    Ok(mount(source, place.link(), fstype, options.flags, data.as_c_str())?)
}

/// Lets the storage's group use it.
fn give_to_group(storage: &Storage) -> io::Result<()> {
    let Some(group) = storage.fs_group.as_ref() else { return Ok(()) };
    let place = Place::directory(Path::new(&storage.mount_point))?;
    let group = Some(Gid::from_raw(group.group_id));
    rustix::fs::chownat(place.as_fd(), ".", None::<Uid>, group, rustix::fs::AtFlags::empty())?;
    // New files in it belong to the group too.
    let mode = rustix::fs::stat(place.link())?.st_mode;
    let with_group = Mode::from_raw_mode(mode & 0o7777) | Mode::SGID | Mode::RWXG;
    Ok(rustix::fs::chmod(place.link(), with_group)?)
}
