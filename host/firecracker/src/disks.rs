//! The places of a VM's disks, and which of them are taken.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kata_hypervisor::{DiskSpec, GuestDisk, HypervisorError, VmSpec};

/// The place of one disk. Whether it may be written to is settled when it is made: a request for
/// another file (PATCH /drives) cannot change that. So a read-only disk never goes where a guest
/// could write to it, even if that is all that is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// What the API calls it.
    pub(crate) drive: String,
    readonly: bool,
    /// Whether it was made for disks that come later.
    later: bool,
    /// The disk that is there.
    disk: Option<String>,
}

/// What the API calls the disk that the guest boots from.
pub(crate) const IMAGE: &str = "image";

/// All places, in the order in which the guest counts them.
#[derive(Debug)]
pub(crate) struct Disks {
    // Locked for a look or a change, never while the VMM is asked.
    places: Mutex<Vec<Place>>,
}

impl Disks {
    /// The image that the guest boots from, if it does; the spec's disks, then the places for
    /// others.
    pub(crate) fn of(spec: &VmSpec) -> Self {
        let image = spec.root.image().map(|_| Place {
            drive: IMAGE.to_owned(),
            readonly: true,
            later: false,
            disk: None,
        });
        let now = spec.disks.iter().map(|disk| (disk.readonly, Some(disk.id.clone())));
        let later = [(true, spec.later_disks.readonly), (false, spec.later_disks.writable)];
        let later = later.into_iter().flat_map(|(readonly, count)| vec![(readonly, None); count]);
        let places = now.chain(later).enumerate().map(|(number, (readonly, disk))| Place {
            drive: format!("disk{number}"),
            readonly,
            later: disk.is_none(),
            disk,
        });
        Self { places: Mutex::new(image.into_iter().chain(places).collect()) }
    }

    /// Every place's name, and whether it is read-only.
    pub(crate) fn drives(&self) -> Vec<(String, bool)> {
        self.places().iter().map(|place| (place.drive.clone(), place.readonly)).collect()
    }

    /// Where the guest finds a disk.
    pub(crate) fn find(&self, id: &str) -> Option<GuestDisk> {
        let number = self.places().iter().position(|place| place.disk.as_deref() == Some(id))?;
        Some(address(number))
    }

    /// Takes a place for a disk that comes now. Returns its name and where the guest finds it.
    pub(crate) fn take(&self, disk: &DiskSpec) -> Result<(String, GuestDisk), HypervisorError> {
        let mut places = self.places();
        let free =
            |place: &Place| place.later && place.disk.is_none() && place.readonly == disk.readonly;
        let number = places.iter().position(free);
        let number = number.ok_or_else(|| {
            let id = disk.id.clone();
            let is_any_free = places.iter().any(|place| place.later && place.disk.is_none());
            if is_any_free {
                HypervisorError::NoDiskOfSort { id, readonly: disk.readonly }
            } else {
                HypervisorError::NoDisk { id }
            }
        })?;
        places[number].disk = Some(disk.id.clone());
        Ok((places[number].drive.clone(), address(number)))
    }

    /// The name of the place that a disk has taken; `None` if it has none, or has had it from the
    /// beginning.
    pub(crate) fn taken_by(&self, id: &str) -> Option<String> {
        let places = self.places();
        let place = places.iter().find(|place| place.disk.as_deref() == Some(id))?;
        place.later.then(|| place.drive.clone())
    }

    /// Gives a place back.
    pub(crate) fn give_back(&self, id: &str) {
        for place in self.places().iter_mut() {
            if place.later && place.disk.as_deref() == Some(id) {
                place.disk = None;
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The node of the disk with this number. There are far fewer than letters: the machine has
/// interrupts for less than 20 devices.
fn address(number: usize) -> GuestDisk {
    let letter = u8::try_from(number).ok().and_then(|number| b'a'.checked_add(number));
    let letter = char::from(letter.unwrap_or(b'?'));
    GuestDisk { driver: "mmioblk", address: format!("/dev/vd{letter}") }
}

#[cfg(test)]
mod tests {
    use kata_hypervisor::LaterDisks;

    use super::*;
    use crate::machine::tests::{image, spec};

    fn disk(id: &str, readonly: bool) -> DiskSpec {
        DiskSpec { id: id.into(), path: "/disk".into(), readonly }
    }

    #[test]
    fn place_is_taken_by_one_disk_at_a_time() {
        let disks = Disks::of(&VmSpec {
            disks: vec![disk("root", false)],
            later_disks: LaterDisks { readonly: 1, writable: 1 },
            ..spec()
        });
        assert_eq!(disks.find("root").unwrap().address, "/dev/vda");
        let (drive, found) = disks.take(&disk("one", true)).unwrap();
        assert_eq!((drive.as_str(), found.address.as_str()), ("disk1", "/dev/vdb"));
        assert_eq!(disks.find("one"), Some(found));
        let error = disks.take(&disk("two", true)).unwrap_err().to_string();
        let words =
            "no room for the disk two any more: the places that are free are for writable disks";
        assert!(error.contains(words) && error.contains("fewer read-only disks"), "{error}");
        assert_eq!(disks.take(&disk("three", false)).unwrap().0, "disk2");
        let error = disks.take(&disk("two", true)).unwrap_err().to_string();
        assert!(error.ends_with("use fewer containers with disks in one sandbox"), "{error}");
        assert_eq!(disks.taken_by("one").unwrap(), "disk1");
        disks.give_back("one");
        assert_eq!((disks.taken_by("one"), disks.find("one")), (None, None));
        assert_eq!(disks.take(&disk("two", true)).unwrap().0, "disk1");
    }

    #[test]
    fn image_is_the_first_and_nobodys() {
        let mut spec = VmSpec { disks: vec![disk("root", false)], ..spec() };
        spec.root = image();
        spec.later_disks.readonly = 1;
        let disks = Disks::of(&spec);
        let drives: Vec<_> = disks.drives().into_iter().map(|(name, _)| name).collect();
        assert_eq!(drives, [IMAGE, "disk0", "disk1"]);
        assert_eq!(disks.find("root").unwrap().address, "/dev/vdb");
        assert_eq!(disks.take(&disk("one", true)).unwrap().1.address, "/dev/vdc");
        assert!(disks.take(&disk("two", true)).is_err());
    }

    #[test]
    fn disk_of_the_boot_keeps_its_place() {
        let disks = Disks::of(&VmSpec { disks: vec![disk("root", false)], ..spec() });
        assert_eq!(disks.taken_by("root"), None);
        disks.give_back("root");
        assert!(disks.find("root").is_some());
    }
}
