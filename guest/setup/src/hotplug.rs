//! What comes and goes while the guest runs. CPUs and memory the kernel sees, somebody has to
//! switch them on, and CPUs off before they go; devices it sees too, but late.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::pci;
use crate::uevent::Uevents;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// The PCI devices that the kernel has found.
const PCI: &str = "/sys/bus/pci/devices";

/// Why CPUs or memory could not be switched on.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// Fewer CPUs appeared than were announced.
    #[error("{wanted} new CPUs were announced, but only {online} appeared within {patience:?}")]
    Missing {
        /// How many were announced.
        wanted: u32,
        /// How many were switched on.
        online: u32,
        /// How long was waited.
        patience: Duration,
    },
    /// There are fewer CPUs than are to be on.
    #[error("{wanted} CPUs are to be on, but there are {there} only after {patience:?}")]
    TooFew {
        /// How many are to be on.
        wanted: u32,
        /// How many there are.
        there: u32,
        /// How long was waited.
        patience: Duration,
    },
    /// The kernel would not switch something on or off, or its list could not be read.
    #[error("cannot switch {path}")]
    Switch {
        /// The CPU's, memory block's or list's path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is no subscribing to device events.
    #[error("cannot listen for device events")]
    Events(#[source] io::Error),
}

/// Switches on `wanted` more CPUs, waiting for at most `patience` until they appear; 0 means
/// whichever are off now.
///
/// # Errors
///
/// Fails when too few have appeared in that time; those that did are on.
pub async fn online_cpus(wanted: u32, patience: Duration) -> Result<(), HotplugError> {
    let events = Uevents::open().map_err(HotplugError::Events)?;
    let mut online = 0;
    let all_appear = async {
        loop {
            online += switch_on(Path::new(CPUS), "cpu", "online", &["0"], "1")?;
            if online >= wanted {
                return Ok(());
            }
            events.next().await.map_err(HotplugError::Events)?;
        }
    };
    match tokio::time::timeout(patience, all_appear).await {
        Ok(result) => result,
        Err(_elapsed) => Err(HotplugError::Missing { wanted, online, patience }),
    }
}

/// Switches CPUs on or off until the first `count` of them are on and no other is, waiting for at
/// most `patience` until there are as many. The first CPU of all is always on, and so is one that
/// the kernel lets nobody switch.
///
/// # Errors
///
/// Fails when there are too few after that time, of which all are on then, and when the kernel
/// refuses to switch one.
pub async fn keep_cpus(count: u32, patience: Duration) -> Result<(), HotplugError> {
    let events = Uevents::open().map_err(HotplugError::Events)?;
    let mut there = 0;
    let all_appear = async {
        loop {
            there = keep_first(Path::new(CPUS), count)?;
            if there >= count {
                return Ok(());
            }
            events.next().await.map_err(HotplugError::Events)?;
        }
    };
    match tokio::time::timeout(patience, all_appear).await {
        Ok(result) => result,
        Err(_elapsed) => Err(HotplugError::TooFew { wanted: count, there, patience }),
    }
}

/// Switches on the first `count` CPUs of `list`, and off all others; yields how many are on then.
fn keep_first(list: &Path, count: u32) -> Result<u32, HotplugError> {
    let failed = |path: PathBuf| move |source| HotplugError::Switch { path, source };
    let entries = fs::read_dir(list).map_err(failed(list.to_owned()))?;
    let number = |name: &str| name.strip_prefix("cpu")?.parse::<u32>().ok();
    let cpus: BTreeMap<u32, PathBuf> = entries
        .flatten()
        .filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    let mut on = 0;
    for cpu in cpus.values() {
        let switch = cpu.join("online");
        // The first one has none.
        let state = fs::read_to_string(&switch).ok();
        let (is_on, stays) = (state.as_ref().is_none_or(|state| state.trim() == "1"), on < count);
        if state.is_some() && is_on != stays {
            let word = if stays { "1" } else { "0" };
            fs::write(&switch, word).map_err(failed(switch))?;
        }
        on += u32::from(stays || state.is_none());
    }
    Ok(on)
}

/// Has the kernel look into the ports that something is in: a guest that goes on from a template
/// has been given devices. They are there when this returns, also those that the kernel has begun
/// to look at by itself, for which it takes 100 ms.
///
/// # Errors
///
/// Fails when the kernel does not look; a machine without such ports has nothing to find.
pub fn find_devices() -> io::Result<()> {
    for port in fs::read_dir(PCI).into_iter().flatten().flatten() {
        let port = port.path();
        let config = File::open(port.join("config"))?;
        if !pci::slot_is_filled(|buffer, at| config.read_exact_at(buffer, at)) {
            continue;
        }
        for bus in fs::read_dir(port.join("pci_bus")).into_iter().flatten().flatten() {
            // Documentation/ABI/testing/sysfs-bus-pci; what it has found already stays as it is.
            fs::write(bus.path().join("rescan"), "1")?;
        }
    }
    Ok(())
}

/// Switches on every memory block that is off.
///
/// # Errors
///
/// Fails when the kernel refuses a block.
pub fn online_memory() -> Result<(), HotplugError> {
    switch_on(Path::new(MEMORY), "memory", "state", &["offline"], "online").map(drop)
}

/// Size of a memory block in bytes, the unit of memory hotplug; `None` when this kernel has no
/// memory hotplug.
#[must_use]
pub fn memory_block_size() -> Option<u64> {
    let text = fs::read_to_string(Path::new(MEMORY).join("block_size_bytes")).ok()?;
    u64::from_str_radix(text.trim(), 16).ok()
}

/// Whether this kernel wants to be told of new memory by address.
#[must_use]
pub fn has_memory_probe() -> bool {
    Path::new(MEMORY).join("probe").exists()
}

/// Writes `on` to `<list>/<prefix><number>/<file>` wherever one of `off` is read from it; yields
/// how many that were.
fn switch_on(
    list: &Path,
    prefix: &str,
    file: &str,
    off: &[&str],
    on: &str,
) -> Result<u32, HotplugError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| HotplugError::Switch { path, source }
    };
    let mut switched = 0;
    let entries = match fs::read_dir(list) {
        Ok(entries) => entries,
        // A kernel without hotplug has nothing to switch on.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed(list)(error)),
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
        if number.is_none_or(|number| number.parse::<u32>().is_err()) {
            continue;
        }
        let path = entry.path().join(file);
        let is_off = || fs::read_to_string(&path).is_ok_and(|state| off.contains(&state.trim()));
        if !is_off() {
            continue;
        }
        match fs::write(&path, on) {
            // Some kernels switch new memory on by themselves, and refuse whoever is a moment late.
            Err(source) if is_off() => return Err(failed(&path)(source)),
            _ => switched += 1,
        }
    }
    Ok(switched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switch_on_counts_only_what_was_off() {
        let cpus = tempfile::tempdir().unwrap();
        for (name, state) in
            [("cpu1", Some("0\n")), ("cpu2", Some("1\n")), ("cpu0", None), ("cpuidle", Some("0"))]
        {
            fs::create_dir(cpus.path().join(name)).unwrap();
            if let Some(state) = state {
                fs::write(cpus.path().join(name).join("online"), state).unwrap();
            }
        }
        assert_eq!(switch_on(cpus.path(), "cpu", "online", &["0"], "1").unwrap(), 1);
        assert_eq!(fs::read_to_string(cpus.path().join("cpu1/online")).unwrap(), "1");
        assert_eq!(fs::read_to_string(cpus.path().join("cpuidle/online")).unwrap(), "0");
    }

    #[test]
    fn first_cpus_are_kept_and_the_others_are_off() {
        let cpus = tempfile::tempdir().unwrap();
        let switch = |name: &str| cpus.path().join(name).join("online");
        for name in ["cpu0", "cpu1", "cpu2", "cpu10", "cpuidle"] {
            fs::create_dir(cpus.path().join(name)).unwrap();
        }
        for (name, state) in [("cpu1", "0\n"), ("cpu2", "1\n"), ("cpu10", "0\n"), ("cpuidle", "x")]
        {
            fs::write(switch(name), state).unwrap();
        }
        let states = || {
            ["cpu1", "cpu2", "cpu10"]
                .map(|name| fs::read_to_string(switch(name)).unwrap().trim_end().to_owned())
        };
        assert_eq!(keep_first(cpus.path(), 2).unwrap(), 2);
        assert_eq!(states(), ["1", "0", "0"]);
        assert_eq!(keep_first(cpus.path(), 9).unwrap(), 4, "all that there are");
        assert_eq!(states(), ["1", "1", "1"]);
        assert_eq!(keep_first(cpus.path(), 0).unwrap(), 1, "the first one stays");
        assert_eq!(states(), ["0", "0", "0"]);
        assert!(!switch("cpu0").exists());
        assert_eq!(fs::read_to_string(switch("cpuidle")).unwrap(), "x");
    }

    #[test]
    fn switch_on_without_list_is_nothing() {
        assert_eq!(switch_on(Path::new("/nonexistent"), "cpu", "online", &["0"], "1").unwrap(), 0);
    }
}
