//! A container's control group (version 2 only: the guest is ours).

mod devices;
mod events;
mod limits;
mod stats;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::LinuxResources;

pub use devices::{DeviceFilter, DeviceRuleError, DeviceRules};
pub use stats::{CpuStats, HugetlbStats, IoEntry, MemoryStats, Stats};

/// Where the hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// What could not be done with a group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The specification's path leaves the hierarchy or is its root, or a file is not the group's.
    #[error("cgroup path {0:?} is not a plain path below the root of the hierarchy")]
    Path(String),
    /// The group cannot be made.
    #[error("cannot make cgroup {path}")]
    Create {
        /// Its directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A value was refused, or the kernel lacks the controller.
    #[error(
        "cannot set {file} to {value:?}; the guest's kernel refuses it or lacks the controller"
    )]
    Set {
        /// The file.
        file: PathBuf,
        /// The value.
        value: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be watched.
    #[error("cannot watch {file}")]
    Watch {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A process of the group does not let itself be frozen.
    #[error(
        "a process of the container cannot be stopped: it has been waiting for a device for {after:?}"
    )]
    Unstoppable {
        /// How long it was waited for.
        after: Duration,
    },
    /// The device rules cannot be enforced.
    #[error(
        "cannot enforce the container's device rules; boot a guest kernel with CONFIG_CGROUP_BPF, or let \
         the container use all devices"
    )]
    Devices(#[source] io::Error),
    /// The group cannot be removed, since processes are left in it.
    #[error("cannot remove cgroup {path}")]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A group; it need not exist yet.
#[derive(Debug, Clone)]
pub struct Cgroup {
    root: PathBuf,
    relative: PathBuf,
}

impl Cgroup {
    /// The group of the specification's `cgroupsPath`, taken as a path below the root; without one
    /// the group is named after the container.
    ///
    /// # Errors
    ///
    /// Fails for a path with `..`, and for the root itself.
    pub fn new(path: Option<&Path>, id: &str) -> Result<Self, CgroupError> {
        Self::below(Path::new(ROOT), path, id)
    }

    fn below(root: &Path, path: Option<&Path>, id: &str) -> Result<Self, CgroupError> {
        let path = path.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(id));
        let wrong = || CgroupError::Path(path.display().to_string());
        let mut relative = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => relative.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(wrong()),
            }
        }
        if relative.as_os_str().is_empty() {
            return Err(wrong());
        }
        Ok(Self { root: root.to_owned(), relative })
    }

    /// The path as the specification wants it: absolute, from the hierarchy's root.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/").join(&self.relative)
    }

    /// The group's directory.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.root.join(&self.relative)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Makes the group and those above it, with every controller at hand switched on for it.
    ///
    /// # Errors
    ///
    /// Fails when a directory cannot be made.
    pub fn create(&self) -> Result<(), CgroupError> {
        let controllers =
            fs::read_to_string(self.root.join("cgroup.controllers")).unwrap_or_default();
        let mut directory = self.root.clone();
        for component in self.relative.components() {
            for controller in controllers.split_ascii_whitespace() {
                // Groups between the root and the container hold no processes, so that only an
                // unusual controller can refuse; a limit that needs it says so.
                let _ =
                    fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            directory.push(component);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Create { path: directory, source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sets what `resources` says and leaves the rest.
    ///
    /// # Errors
    ///
    /// Fails at the first value that the kernel refuses; those before it stay.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        // Without the controller there is none, and a limit that needs it says so.
        let cpu_max = self.read("cpu.max").unwrap_or_default();
        for setting in limits::settings(resources, &cpu_max) {
            let file = self.file(&setting.file);
            if setting.file.contains('/') {
                return Err(CgroupError::Path(setting.file));
            }
            match write(&file, &setting.value) {
                Ok(()) => {}
                // Nothing is lost when there is nothing to be limited, or no limit.
                Err(error) if error.kind() == io::ErrorKind::NotFound && setting.optional => {}
                Err(source) => {
                    return Err(CgroupError::Set { file, value: setting.value, source });
                }
            }
        }
        Ok(())
    }

    /// Kills every process in the group, also if it is frozen. A group that is gone is no error.
    ///
    /// # Errors
    ///
    /// Fails on kernels before 5.14.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.set("cgroup.kill", "1")
    }

    /// Whether no process is left in the group or below it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        events::value_of(&self.read("cgroup.events").unwrap_or_default(), "populated") == Some(0)
    }

    /// Removes the group and those below it. A group that is gone is no error.
    ///
    /// # Errors
    ///
    /// Fails while there are processes in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_tree(&self.directory())
            .map_err(|source| CgroupError::Remove { path: self.directory(), source })
    }

    /// Ids of the processes in the group and below it, as the agent sees them.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        collect_processes(&self.directory(), &mut pids);
        pids
    }

    fn set(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let file = self.file(name);
        match write(&file, value) {
            Err(error) if !self.directory().exists() => drop(error),
            Err(source) => return Err(CgroupError::Set { file, value: value.to_owned(), source }),
            Ok(()) => {}
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<String, CgroupError> {
        let file = self.file(name);
        fs::read_to_string(&file).map_err(|source| CgroupError::Read { file, source })
    }
}

/// As `fs::write`, but a file that is missing stays missing: the kernel's answer to making one here
/// is a misleading "permission denied".
fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// A group's files cannot be removed; only the directories below it can, and then itself.
fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) {
    let own = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(own.lines().filter_map(|line| line.parse::<i32>().ok()));
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), pids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(path: &str) -> Option<PathBuf> {
        Cgroup::new(Some(Path::new(path)), "c1").ok().map(|cgroup| cgroup.path())
    }

    #[test]
    fn new_path_stays_below_the_root() {
        assert_eq!(path_of("/default/c1"), Some("/default/c1".into()));
        assert_eq!(path_of("kubepods//pod1/./c1"), Some("/kubepods/pod1/c1".into()));
        assert_eq!(path_of(""), Some("/c1".into()));
        assert_eq!(path_of("/"), None);
        assert_eq!(path_of("/a/../../b"), None);
    }

    #[test]
    fn only_files_of_the_group_are_written() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::below(root.path(), Some(Path::new("/c")), "c").unwrap();
        cgroup.create().unwrap();
        fs::write(root.path().join("outside"), "").unwrap();
        let limits = serde_json::json!({ "unified": { "../outside": "1" } });
        let error = cgroup.apply(&serde_json::from_value(limits).unwrap()).unwrap_err();
        assert!(matches!(error, CgroupError::Path(_)), "{error}");
        assert_eq!(fs::read_to_string(root.path().join("outside")).unwrap(), "");
    }

    #[test]
    fn remove_takes_groups_below_too_and_is_idempotent() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::below(root.path(), Some(Path::new("/a/b")), "c1").unwrap();
        cgroup.create().unwrap();
        fs::create_dir(cgroup.directory().join("nested")).unwrap();
        cgroup.remove().unwrap();
        assert!(!cgroup.directory().exists());
        cgroup.remove().unwrap();
    }
}
