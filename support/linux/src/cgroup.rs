//! One group of processes in every cgroup hierarchy of the host: v2 alone, v1 alone, or both side
//! by side.
//!
//! The group is for membership (accounting, and finding every process again), and for where its
//! processes may run ([`HostCgroup::place`]); limits are set where the workload runs. So that a
//! group of v2 accounts for anything, its parents pass all of their controllers on, as far as they
//! can. Sources: cgroups(7), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.

mod above;
mod cpuset;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use thiserror::Error;

use crate::id_list::IdList;

pub use above::LimitsAbove;

/// How long a cgroup may stay busy after its last process has ended: the longest that
/// [`HostCgroup::remove`] takes.
pub const EMPTIED: Duration = Duration::from_millis(500);

/// How often a cgroup is made that is removed before it is entered.
const TRIES: u32 = 10;

/// Why a cgroup could not be used.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The path is empty, or climbs out of the hierarchy.
    #[error(
        "`{0}` is not a usable cgroup path; give an absolute one without `..`, or slice:prefix:name"
    )]
    Path(String),
    /// A file or directory of the hierarchy refused.
    #[error("cannot {action} cgroup {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which directory or file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The host has no such processors or memory nodes, or the cgroup may not have them.
    #[error("cannot run on the {what} {asked} of the host; its cgroup has {has}")]
    Place {
        /// `processors` or `memory nodes`.
        what: &'static str,
        /// Those that were asked for.
        asked: IdList,
        /// Those that there are.
        has: IdList,
    },
    /// Nothing can keep processes on some processors or memory nodes.
    #[error(
        "cannot keep to the {what} {asked} of the host: no cgroup with the controller cpuset can be made; \
         remove the limit, or switch the controller on"
    )]
    NoCpuset {
        /// `processors` or `memory nodes`.
        what: &'static str,
        /// Those that were asked for.
        asked: IdList,
    },
}

impl CgroupError {
    /// Whether the cgroup was removed meanwhile. One that goes while its file is open is no device
    /// any more.
    fn is_of_removal(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(Errno::from_io_error(source), Some(Errno::NOENT | Errno::NODEV))
            }
            Self::Path(_) | Self::Place { .. } | Self::NoCpuset { .. } => false,
        }
    }
}

/// One mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount_point: PathBuf,
    /// v1 controllers (`memory`, `name=systemd`, …); empty for v2.
    controllers: Vec<String>,
}

/// The same cgroup in every hierarchy that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCgroup {
    dirs: Vec<PathBuf>,
}

impl HostCgroup {
    /// Makes the cgroup `path` in every mounted hierarchy, with its parents, and nothing in it. One
    /// that exists is taken over. `path` is as in the OCI runtime spec's `cgroupsPath`: `/a/b`, or
    /// systemd's `slice:prefix:name`.
    pub fn create(path: &str) -> Result<Self, CgroupError> {
        let relative = relative_path(path)?;
        let dirs = hierarchies()?
            .into_iter()
            .map(|one| {
                pass_controllers_on(&one, &relative);
                make(&one, &relative, Leaf::Any)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { dirs })
    }

    /// Makes the cgroup `path`, as [`HostCgroup::create`] does, and moves the calling process into
    /// it, as [`HostCgroup::enter`] does. Nothing holds an empty one: whoever was in it before and
    /// removes it meanwhile makes this begin anew.
    pub fn create_and_enter(path: &str) -> Result<Self, CgroupError> {
        let once = || Self::create(path).and_then(|made| made.enter().map(|()| made));
        for _ in 1..TRIES {
            match once() {
                Err(error) if error.is_of_removal() => {}
                entered => return entered,
            }
        }
        once()
    }

    /// The cgroup `path`, as for [`HostCgroup::create`], to remove it; it need not exist.
    pub fn at(path: &str) -> Result<Self, CgroupError> {
        let relative = relative_path(path)?;
        let dirs = hierarchies()?.iter().map(|one| one.mount_point.join(&relative)).collect();
        Ok(Self { dirs })
    }

    /// Where a cgroup of one's own would be: `path`, as for [`HostCgroup::create`], where there is
    /// none yet; else `name` within it, for whoever is in the one that exists is somebody else's.
    /// Makes nothing.
    pub fn plan(path: &str, name: &str) -> Result<PlannedCgroup, CgroupError> {
        let relative = relative_path(path)?;
        let place = |hierarchy: Hierarchy| match hierarchy.mount_point.join(&relative).exists() {
            true => Place { hierarchy, relative: relative.join(name), leaf: Leaf::Any },
            false => Place { hierarchy, relative: relative.clone(), leaf: Leaf::New },
        };
        Ok(PlannedCgroup(hierarchies()?.into_iter().map(place).collect()))
    }

    /// The cgroup whose directories are already known, to enter or remove it; they need not exist.
    #[must_use]
    pub fn from_dirs(dirs: Vec<PathBuf>) -> Self {
        Self { dirs }
    }

    /// Its directories, one a hierarchy.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Moves the calling process with all its threads into the cgroup; children that it starts from
    /// now on are born there.
    pub fn enter(&self) -> Result<(), CgroupError> {
        self.dirs.iter().try_for_each(|dir| join(dir))
    }

    /// Removes the cgroup from every hierarchy. One that is gone already is fine, and one in which
    /// others have made theirs is left to them; one that still has processes is an error, after the
    /// others have been removed. Takes [`EMPTIED`] at most.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + EMPTIED;
        let mut result = Ok(());
        for dir in &self.dirs {
            match remove_emptied(dir, deadline) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    result = Err(CgroupError::Io { action: "remove", path: dir.clone(), source });
                }
                _ => {}
            }
        }
        result
    }

    /// The ids of all processes that are in it now.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self
            .dirs
            .iter()
            .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// A cgroup that is to be made ([`HostCgroup::plan`]), so that it can be written down before.
#[derive(Debug)]
pub struct PlannedCgroup(Vec<Place>);

/// One directory of it.
#[derive(Debug)]
struct Place {
    hierarchy: Hierarchy,
    relative: PathBuf,
    leaf: Leaf,
}

/// Whether a cgroup may be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Any,
    New,
}

impl PlannedCgroup {
    /// Its directories to be, one a hierarchy.
    #[must_use]
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.0.iter().map(|place| place.hierarchy.mount_point.join(&place.relative)).collect()
    }

    /// The cgroups that were there already, within which some of its directories will be.
    #[must_use]
    pub fn around(&self) -> Vec<PathBuf> {
        let within = self.0.iter().filter(|place| place.leaf == Leaf::Any);
        let dirs = within.map(|place| place.hierarchy.mount_point.join(&place.relative));
        dirs.filter_map(|dir| dir.parent().map(Path::to_owned)).collect()
    }

    /// Makes them, with their parents; `None` when somebody else has made one meanwhile: plan anew.
    pub fn make(&self) -> Result<Option<HostCgroup>, CgroupError> {
        for Place { hierarchy, relative, leaf } in &self.0 {
            // A group that was there already is its maker's: with controllers passed on, it could
            // take no process itself any more (cgroup-v2.rst, "No Internal Process Constraint").
            if *leaf == Leaf::New {
                pass_controllers_on(hierarchy, relative);
            }
            match make(hierarchy, relative, *leaf) {
                Err(CgroupError::Io { source, .. })
                    if source.kind() == io::ErrorKind::AlreadyExists =>
                {
                    return Ok(None);
                }
                made => made?,
            };
        }
        Ok(Some(HostCgroup { dirs: self.dirs() }))
    }
}

/// Where a process was before it entered another cgroup: directories, each with the root of its
/// hierarchy.
#[derive(Debug, Clone)]
pub struct Membership(Vec<(PathBuf, PathBuf)>);

impl Membership {
    /// The cgroups of the calling process now.
    pub fn of_this_process() -> Result<Self, CgroupError> {
        let path = PathBuf::from("/proc/self/cgroup");
        let text = fs::read_to_string(&path).map_err(|source| CgroupError::Io {
            action: "read",
            path,
            source,
        })?;
        Ok(Self(membership_dirs(&text, &hierarchies()?)))
    }

    /// Moves the calling process back there; to the root of a hierarchy whose cgroup has been
    /// removed since. All hierarchies are tried, and the first error is told.
    pub fn restore(&self) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for (dir, root) in &self.0 {
            let moved = match join(dir) {
                Err(_) if !dir.exists() => join(root),
                moved => moved,
            };
            result = result.and(moved);
        }
        result
    }
}

/// Whether the host's cgroups are v2 alone (the unified hierarchy at `/sys/fs/cgroup`).
#[must_use]
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Which hierarchies the host has, in words: `v2`, `v1`, `v1 and v2`, or `none`.
pub fn hierarchies_in_words() -> Result<&'static str, CgroupError> {
    let all = hierarchies()?;
    let (v2, v1): (Vec<_>, Vec<_>) = all.iter().partition(|one| one.controllers.is_empty());
    Ok(match (v1.is_empty(), v2.is_empty()) {
        (true, true) => "none",
        (true, false) => "v2",
        (false, true) => "v1",
        (false, false) => "v1 and v2",
    })
}

/// A process leaves its cgroups a moment after its end has been told, and no event says when. So a
/// group without processes that is still busy gets a few moments; one with processes does not.
fn remove_emptied(dir: &Path, deadline: Instant) -> io::Result<()> {
    const MOMENT: Duration = Duration::from_millis(10);
    loop {
        match fs::remove_dir(dir) {
            Err(busy) if busy.kind() == io::ErrorKind::ResourceBusy && is_empty(dir) => {
                if has_children(dir) {
                    return Ok(());
                }
                if Instant::now() >= deadline {
                    return Err(busy);
                }
                std::thread::sleep(MOMENT);
            }
            result => return result,
        }
    }
}

fn has_children(dir: &Path) -> bool {
    let is_dir = |entry: fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(is_dir))
}

fn is_empty(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty())
}

fn join(dir: &Path) -> Result<(), CgroupError> {
    let path = dir.join("cgroup.procs");
    fs::write(&path, "0").map_err(|source| CgroupError::Io { action: "join", path, source })
}

fn make(hierarchy: &Hierarchy, relative: &Path, leaf: Leaf) -> Result<PathBuf, CgroupError> {
    let is_cpuset = hierarchy.controllers.iter().any(|name| name == "cpuset");
    let wanted = hierarchy.mount_point.join(relative);
    let mut dir = hierarchy.mount_point.clone();
    for component in relative.components() {
        let parent = dir.clone();
        dir.push(component);
        let may_exist = leaf == Leaf::Any || dir != wanted;
        match fs::create_dir(&dir) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists || !may_exist => {
                return Err(CgroupError::Io { action: "create", path: dir, source });
            }
            _ => {}
        }
        if is_cpuset {
            cpuset::inherit(&parent, &dir)?;
        }
    }
    Ok(dir)
}

/// Has every parent of the group that is to be made below a v2 hierarchy pass on the controllers
/// that it has. One that cannot, since processes are in it, does not, and then its children account
/// for less.
fn pass_controllers_on(hierarchy: &Hierarchy, relative: &Path) {
    if !hierarchy.controllers.is_empty() {
        return;
    }
    let mut dir = hierarchy.mount_point.clone();
    let parents = relative.parent().unwrap_or(Path::new("")).components();
    for component in parents.map(Some).chain([None]) {
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        // One at a time: of several, none is passed on when one cannot be.
        for word in words_to_pass_on(&read("cgroup.controllers"), &read("cgroup.subtree_control")) {
            let _ = fs::write(dir.join("cgroup.subtree_control"), word);
        }
        if let Some(component) = component {
            dir.push(component);
            // An error is met again by whoever makes the group.
            let _ = fs::create_dir(&dir);
        }
    }
}

/// What to write to cgroup.subtree_control, a word each, for everything that is not passed on yet.
fn words_to_pass_on(controllers: &str, passed_on: &str) -> Vec<String> {
    let is_missing = |name: &&str| passed_on.split_whitespace().all(|one| one != *name);
    controllers.split_whitespace().filter(is_missing).map(|name| format!("+{name}")).collect()
}

fn hierarchies() -> Result<Vec<Hierarchy>, CgroupError> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let text = fs::read_to_string(&path).map_err(|source| CgroupError::Io {
        action: "read",
        path,
        source,
    })?;
    Ok(parse_hierarchies(&text))
}

/// The cgroup mounts of a mountinfo text (proc_pid_mountinfo(5)), the first mount of each
/// hierarchy.
fn parse_hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut tail = after.split(' ');
        let (Some(fstype), Some(options)) = (tail.next(), tail.nth(1)) else { continue };
        let Some(mount_point) = before.split(' ').nth(4) else { continue };
        let controllers = match fstype {
            "cgroup2" => Vec::new(),
            "cgroup" => controllers_of(options),
            _ => continue,
        };
        if found.iter().all(|known| known.controllers != controllers) {
            found.push(Hierarchy { mount_point: PathBuf::from(mount_point), controllers });
        }
    }
    found
}

/// The controllers among a v1 mount's super block options.
fn controllers_of(options: &str) -> Vec<String> {
    const NOT_CONTROLLERS: [&str; 5] = ["rw", "ro", "clone_children", "xattr", "noprefix"];
    let mut controllers: Vec<String> = options
        .split(',')
        .filter(|option| !NOT_CONTROLLERS.contains(option) && !option.starts_with("release_agent="))
        .map(str::to_owned)
        .collect();
    controllers.sort();
    controllers
}

/// The directories that a `/proc/PID/cgroup` text names (cgroups(7)), as far as they are mounted,
/// each with its hierarchy's root.
fn membership_dirs(text: &str, hierarchies: &[Hierarchy]) -> Vec<(PathBuf, PathBuf)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let mut controllers: Vec<&str> =
                controllers.split(',').filter(|name| !name.is_empty()).collect();
            controllers.sort_unstable();
            let hierarchy = hierarchies.iter().find(|one| one.controllers == controllers)?;
            let root = &hierarchy.mount_point;
            Some((root.join(path.trim_start_matches('/')), root.clone()))
        })
        .collect()
}

/// `cgroupsPath` as a path below the hierarchy's root.
fn relative_path(path: &str) -> Result<PathBuf, CgroupError> {
    let refused = || CgroupError::Path(path.to_owned());
    let expanded = match path.split(':').collect::<Vec<_>>()[..] {
        [plain] => PathBuf::from(plain.trim_start_matches('/')),
        [slice, prefix, name] => {
            slice_path(slice).ok_or_else(refused)?.join(scope_name(prefix, name))
        }
        _ => return Err(refused()),
    };
    let is_plain = expanded.components().all(|part| matches!(part, Component::Normal(_)));
    if expanded.as_os_str().is_empty() || !is_plain { Err(refused()) } else { Ok(expanded) }
}

fn scope_name(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") }
}

/// `a-b.slice` lives in `a.slice/a-b.slice` (systemd.slice(5)); an empty slice is `system.slice`.
fn slice_path(slice: &str) -> Option<PathBuf> {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 24 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
27 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpuacct,cpu
28 25 0:25 / /sys/fs/cgroup/unified rw,relatime - cgroup2 none rw
29 25 0:26 / /elsewhere rw,relatime - cgroup cgroup rw,memory";

    #[test]
    fn hierarchies_are_found_once_each() {
        let found = parse_hierarchies(HYBRID);
        let points: Vec<_> = found.iter().map(|one| one.mount_point.to_str().unwrap()).collect();
        assert_eq!(
            points,
            ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"]
        );
    }

    #[test]
    fn membership_finds_each_hierarchy_by_its_controllers() {
        let dirs = membership_dirs(
            "3:cpu,cpuacct:/a\n2:memory:/\n0::/b/c\n9:pids:/x",
            &parse_hierarchies(HYBRID),
        );
        let dirs: Vec<_> = dirs
            .iter()
            .map(|(dir, root)| (dir.to_str().unwrap(), root.to_str().unwrap()))
            .collect();
        assert_eq!(
            dirs,
            [
                ("/sys/fs/cgroup/cpu,cpuacct/a", "/sys/fs/cgroup/cpu,cpuacct"),
                ("/sys/fs/cgroup/memory/", "/sys/fs/cgroup/memory"),
                ("/sys/fs/cgroup/unified/b/c", "/sys/fs/cgroup/unified")
            ]
        );
    }

    #[test]
    fn only_what_is_not_passed_on_yet_is_asked_for() {
        assert_eq!(words_to_pass_on("cpuset cpu memory\n", "cpu\n"), ["+cpuset", "+memory"]);
        assert!(words_to_pass_on("", "").is_empty());
    }

    #[test]
    fn cgroup_paths_stay_below_the_root() {
        assert_eq!(relative_path("/default/c1").unwrap(), Path::new("default/c1"));
        assert_eq!(
            relative_path("machine-kata.slice:cri:c1").unwrap(),
            Path::new("machine.slice/machine-kata.slice/cri-c1.scope")
        );
        for bad in ["", "/", "/a/../b", "a:b", "a--b.slice:x:y", "s.slice:../x:y"] {
            assert!(relative_path(bad).is_err(), "{bad}");
        }
    }
}
