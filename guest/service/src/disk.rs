//! Block devices: how the host names them, and when they are there.
//!
//! A disk may come a moment later than the request for it; or its place was there from the
//! beginning, with a disk of one sector, and gets the real one now (Firecracker's way). In both
//! cases the kernel tells by an event.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_guest_setup::uevent::Uevents;
use ttrpc::Code;

use crate::status::{chain, invalid, refuse};

/// By address on the PCI bus, and by device node.
pub(crate) const DRIVERS: [&str; 2] = ["blk", "mmioblk"];

/// How long the kernel may take to see a disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// A disk of so many sectors of 512 bytes holds no file system: it stands in for one that is still
/// to come.
const PLACEHOLDER: u64 = 1;

const NODES: &str = "/dev";
const BLOCK: &str = "/sys/class/block";
const BY_SERIAL: &str = "/dev/disk/by-id/virtio-";
const PCI: &str = "/sys/bus/pci/devices";

/// A disk, as the host names it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    address: Address,
    /// As it was named, for messages.
    name: String,
}

impl Disk {
    /// The disk that `driver` finds at `source`.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT when it is none of the forms that a disk's name has.
    pub(crate) fn parse(driver: &str, source: &str) -> ttrpc::Result<Self> {
        let address = Address::parse(driver, source)
            .ok_or_else(|| invalid(format!("{source:?} is no disk of driver {driver:?}")))?;
        Ok(Self { address, name: source.to_owned() })
    }

    /// Waits until the kernel sees it.
    ///
    /// # Errors
    ///
    /// DEADLINE_EXCEEDED.
    pub(crate) async fn arrival(&self) -> ttrpc::Result<()> {
        let failed = |error: &io::Error| {
            let reason = chain(error);
            refuse(Code::INTERNAL, format!("cannot wait for the disk {:?}: {reason}", self.name))
        };
        let events = Uevents::open().map_err(|error| failed(&error))?;
        let arrived = async {
            while !self.address.is_there() {
                events.next().await?;
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, arrived).await {
            Ok(arrived) => arrived.map_err(|error: io::Error| failed(&error)),
            Err(_elapsed) => {
                let text = format!("the disk {:?} has not come within {PATIENCE:?}", self.name);
                Err(refuse(Code::DEADLINE_EXCEEDED, text))
            }
        }
    }

    /// Its node, once it is there.
    pub(crate) fn node(&self) -> io::Result<PathBuf> {
        let name = self.address.name().ok_or(io::ErrorKind::NotFound)?;
        Ok(Path::new(NODES).join(name))
    }
}

/// Where a disk is.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    /// Its node's name.
    Node(String),
    /// The serial number of a virtio disk, which udev names links after.
    Serial(String),
    /// Slots on the PCI bus, from the root bus on.
    Pci(Vec<u8>),
}

impl Address {
    fn parse(driver: &str, source: &str) -> Option<Self> {
        if let Some(serial) = source.strip_prefix(BY_SERIAL).filter(|serial| is_plain(serial)) {
            return Some(Self::Serial(serial.to_owned()));
        }
        match source.strip_prefix("/dev/") {
            Some(name) if is_plain(name) => Some(Self::Node(name.to_owned())),
            None if driver == DRIVERS[0] => {
                let slots = source.split('/').map(|slot| u8::from_str_radix(slot, 16).ok());
                slots.collect::<Option<_>>().map(Self::Pci)
            }
            _ => None,
        }
    }

    /// The name of its node, once the kernel has seen it.
    fn name(&self) -> Option<String> {
        match self {
            Self::Node(name) => Path::new(BLOCK).join(name).exists().then(|| name.clone()),
            Self::Serial(serial) => with_serial(Path::new(BLOCK), serial),
            Self::Pci(slots) => on_pci(Path::new(PCI), slots),
        }
    }

    fn is_there(&self) -> bool {
        self.name().is_some_and(|name| is_whole(Path::new(BLOCK), Path::new(NODES), &name))
    }
}

fn is_plain(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether a disk has its size and its node, and can be opened by that. The kernel shows a disk a
/// moment before it has made its node, that one a moment before anybody may open it (ENXIO until
/// then), and tells of the disk only after all of it.
fn is_whole(disks: &Path, nodes: &Path, name: &str) -> bool {
    let size = fs::read_to_string(disks.join(name).join("size")).unwrap_or_default();
    let sectors: u64 = size.trim().parse().unwrap_or_default();
    sectors > PLACEHOLDER && fs::File::open(nodes.join(name)).is_ok()
}

/// The disk that says it has this serial number.
fn with_serial(disks: &Path, serial: &str) -> Option<String> {
    let has_it = |disk: &PathBuf| {
        fs::read_to_string(disk.join("serial")).is_ok_and(|found| found.trim() == serial)
    };
    Some(entries(disks).find(has_it)?.file_name()?.to_str()?.to_owned())
}

/// The disk of the virtio device at the last of `slots`, of which each but the last is a bridge on
/// the bus of the one before.
fn on_pci(devices: &Path, slots: &[u8]) -> Option<String> {
    let (first, rest) = slots.split_first()?;
    let mut device = devices.join(format!("0000:00:{first:02x}.0"));
    for slot in rest {
        let suffix = format!(":{slot:02x}.0");
        device = entries(&device).find(|entry| is_device(entry, &suffix))?;
    }
    let virtio = entries(&device).find(|entry| starts_with(entry, "virtio"))?;
    let disk = entries(&virtio.join("block")).next()?;
    Some(disk.file_name()?.to_str()?.to_owned())
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn starts_with(path: &Path, prefix: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
}

/// Like `0000:01:02.0`.
fn is_device(path: &Path, suffix: &str) -> bool {
    starts_with(path, "0000:")
        && path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_by_node_or_by_slots() {
        assert_eq!(Address::parse("mmioblk", "/dev/vdb").unwrap(), Address::Node("vdb".into()));
        assert_eq!(Address::parse("blk", "/dev/vda1").unwrap(), Address::Node("vda1".into()));
        assert_eq!(Address::parse("blk", "02/1f").unwrap(), Address::Pci(vec![2, 0x1f]));
        let serial = Address::parse("blk", "/dev/disk/by-id/virtio-root").unwrap();
        assert_eq!(serial, Address::Serial("root".into()));
        for (driver, source) in [
            ("mmioblk", "02/03"),
            ("blk", "/dev/../etc"),
            ("blk", "/dev/"),
            ("blk", "vdb"),
            ("blk", ""),
            ("blk", "02/"),
            ("blk", "100"),
        ] {
            assert!(Disk::parse(driver, source).is_err(), "{driver} {source}");
        }
    }

    #[test]
    fn disk_with_a_serial_number_is_found() {
        let disks = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "other"), ("vdb", "root\n")] {
            fs::create_dir(disks.path().join(name)).unwrap();
            fs::write(disks.path().join(name).join("serial"), serial).unwrap();
        }
        fs::create_dir(disks.path().join("loop0")).unwrap();
        assert_eq!(with_serial(disks.path(), "root").as_deref(), Some("vdb"));
        assert_eq!(with_serial(disks.path(), "none"), None);
    }

    #[test]
    fn disk_is_there_when_it_has_its_size_and_its_node() {
        let (disks, nodes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let is_there = || is_whole(disks.path(), nodes.path(), "vda");
        assert!(!is_there());
        fs::create_dir(disks.path().join("vda")).unwrap();
        fs::write(disks.path().join("vda/size"), "2048\n").unwrap();
        assert!(!is_there());
        // A socket cannot be opened by its name either: ENXIO (open(2)).
        let node = nodes.path().join("vda");
        let socket = std::os::unix::net::UnixListener::bind(&node).unwrap();
        assert!(!is_there());
        drop(socket);
        fs::remove_file(&node).unwrap();
        fs::write(&node, "").unwrap();
        assert!(is_there());
        fs::write(disks.path().join("vda/size"), "1\n").unwrap();
        assert!(!is_there());
    }

    #[test]
    fn disk_behind_a_bridge_is_found() {
        let devices = tempfile::tempdir().unwrap();
        let at = |path: &str| fs::create_dir_all(devices.path().join(path)).unwrap();
        at("0000:00:05.0/virtio3/block/vda");
        at("0000:00:02.0/power");
        at("0000:00:02.0/0000:01:03.0/virtio4/block/vdb");
        let found = |slots: &[u8]| on_pci(devices.path(), slots);
        assert_eq!(found(&[5]).as_deref(), Some("vda"));
        assert_eq!(found(&[2, 3]).as_deref(), Some("vdb"));
        assert_eq!(
            (found(&[2]), found(&[2, 4]), found(&[9]), found(&[])),
            (None, None, None, None)
        );
    }
}
