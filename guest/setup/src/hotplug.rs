//! CPUs and memory that were added while the guest runs: the kernel sees them, somebody has to
//! switch them on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::uevent::Uevents;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

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
    /// The kernel would not switch something on, or its list could not be read.
    #[error("cannot switch on {path}")]
    Online {
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
        move |source| HotplugError::Online { path, source }
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
    fn switch_on_without_list_is_nothing() {
        assert_eq!(switch_on(Path::new("/nonexistent"), "cpu", "online", &["0"], "1").unwrap(), 0);
    }
}
