//! Which processors and memory nodes of the host a group's processes may use. Sources:
//! Documentation/admin-guide/cgroup-v1/cpusets.rst; cgroup-v2.rst, "Cpuset".

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{CgroupError, HostCgroup};
use crate::id_list::IdList;

/// What a cpuset divides.
#[derive(Debug, Clone, Copy)]
struct Kind {
    what: &'static str,
    /// The file's name, and its name in a hierarchy of v1 that is mounted with `noprefix`.
    names: [&'static str; 2],
}

const PROCESSORS: Kind = Kind { what: "processors", names: ["cpuset.cpus", "cpus"] };
const NODES: Kind = Kind { what: "memory nodes", names: ["cpuset.mems", "mems"] };

impl HostCgroup {
    /// Keeps the cgroup's processes, and what they have in memory, to these processors and memory
    /// nodes of the host; with `None` they may use what the cgroup above has. `around` are
    /// directories of the cgroup that it is in, if that is to have no other place: then what else
    /// is in there is kept to it, too.
    ///
    /// # Errors
    ///
    /// When the cgroup would not be kept to these, since it can have none of them (in version 1:
    /// not all), or since there is no cpuset; it has what it had before then.
    pub fn place(
        &self,
        around: &[PathBuf],
        processors: Option<&IdList>,
        nodes: Option<&IdList>,
    ) -> Result<(), CgroupError> {
        let dirs: Vec<_> = around.iter().chain(&self.dirs).map(PathBuf::as_path).collect();
        let files = File::of(PROCESSORS, &dirs)?;
        set(PROCESSORS, &files, processors)?;
        File::of(NODES, &dirs).and_then(|nodes_files| set(NODES, &nodes_files, nodes)).inspect_err(
            // The first error is the one to tell.
            |_| restore(&files),
        )
    }
}

/// One of a cpuset's files.
#[derive(Debug)]
struct File<'a> {
    dir: &'a Path,
    name: &'static str,
    /// What was in it.
    held: IdList,
}

impl<'a> File<'a> {
    /// Those in the directories, of which not all have one.
    fn of(kind: Kind, dirs: &[&'a Path]) -> Result<Vec<Self>, CgroupError> {
        let found = dirs.iter().filter_map(|dir| Some((*dir, kind.name_in(dir)?)));
        let file = |(dir, name): (&'a Path, _)| {
            let held = read(&dir.join(name))?.parse().unwrap_or_default();
            Ok(Self { dir, name, held })
        };
        found.map(file).collect()
    }

    /// An empty list takes away what there was, in version 2.
    fn write(&self, list: &IdList) -> Result<(), CgroupError> {
        // A line of its own stands for nothing, and an empty write would not be one.
        write(&self.dir.join(self.name), &format!("{list}\n"))
    }

    /// What the group above has, which in version 2 may be what one further up gives it.
    fn above(&self) -> IdList {
        let parent = self.dir.parent().unwrap_or(self.dir);
        let text = read(&parent.join(format!("{}.effective", self.name)));
        let text = text.or_else(|_| read(&parent.join(self.name))).unwrap_or_default();
        text.parse().unwrap_or_default()
    }

    /// Version 2 takes what the group above has not, and gives what that has if it has nothing of
    /// it.
    fn gives(&self, list: &IdList) -> Result<bool, CgroupError> {
        let given = read(&self.dir.join(format!("{}.effective", self.name)))?;
        let given: IdList = given.parse().unwrap_or_default();
        Ok(!given.is_empty() && given.is_within(list))
    }
}

/// Sets the files, of which the outermost is the first.
fn set(kind: Kind, files: &[File<'_>], list: Option<&IdList>) -> Result<(), CgroupError> {
    let Some(first) = files.first() else {
        let refused =
            |asked: &IdList| CgroupError::NoCpuset { what: kind.what, asked: asked.clone() };
        return list.map_or(Ok(()), |asked| Err(refused(asked)));
    };
    let is_v2 = first.dir.join("cgroup.controllers").exists();
    let wanted = match list {
        Some(list) => list.clone(),
        None if is_v2 => IdList::default(),
        None => first.above(),
    };
    let written = if is_v2 {
        files.iter().try_for_each(|file| file.write(&wanted))
    } else {
        set_nested(files, &wanted)
    };
    let kept = match (written, list) {
        (Ok(()), Some(list)) if is_v2 => first.gives(list),
        (Ok(()), _) => Ok(true),
        (Err(error), _) if is_unavailable(&error) => Ok(false),
        (Err(error), _) => Err(error),
    };
    if !matches!(kept, Ok(true)) {
        restore(files);
    }
    match kept? {
        true => Ok(()),
        false => Err(CgroupError::Place { what: kind.what, asked: wanted, has: first.above() }),
    }
}

/// In version 1, a group has nothing that the one above has not, at any time.
fn set_nested(files: &[File<'_>], wanted: &IdList) -> Result<(), CgroupError> {
    for file in files {
        // Without it, what is in memory stays where it is. It stays on, for it does nothing else.
        let prefix = file.name.strip_suffix("mems").unwrap_or_default();
        if file.name.ends_with("mems") {
            write(&file.dir.join(format!("{prefix}memory_migrate")), "1")?;
        }
        file.write(&file.held.or(wanted))?;
    }
    files.iter().rev().try_for_each(|file| file.write(wanted))
}

/// Twice, since either the inner or the outer ones have to be written first.
fn restore(files: &[File<'_>]) {
    for file in files.iter().chain(files) {
        let _ = file.write(&file.held);
    }
}

impl Kind {
    /// How the file is called in this group; `None` where it has no cpuset.
    fn name_in(self, dir: &Path) -> Option<&'static str> {
        // No other controller has a file `cpus`.
        self.names.into_iter().find(|name| dir.join(name).exists())
    }
}

/// A v1 cpuset is born empty and refuses every process until it has processors and memory nodes.
pub(super) fn inherit(parent: &Path, dir: &Path) -> Result<(), CgroupError> {
    for kind in [PROCESSORS, NODES] {
        let Some(name) = kind.name_in(dir) else { continue };
        let path = dir.join(name);
        if read(&path)?.trim().is_empty() {
            write(&path, read(&parent.join(name))?.trim())?;
        }
    }
    Ok(())
}

/// Whether the kernel says that there is no such processor or node, at all or in the group above.
fn is_unavailable(error: &CgroupError) -> bool {
    let CgroupError::Io { source, .. } = error else { return false };
    matches!(Errno::from_io_error(source), Some(Errno::INVAL | Errno::RANGE | Errno::ACCESS))
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Io {
        action: "set up",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group within another, as the hierarchies of this machine have them, which both go at the
    /// end. Those of version 2 pass no controllers on from one with processes.
    struct Nested {
        outer: HostCgroup,
        own: HostCgroup,
    }

    impl Nested {
        fn new(name: &str) -> Self {
            let path = format!("/kata-test-{name}-{}", std::process::id());
            let outer = HostCgroup::create(&path).unwrap();
            let own = HostCgroup::create(&format!("{path}/own")).unwrap();
            Self { outer, own }
        }

        fn place(&self, processors: &str, nodes: &str) -> Result<(), CgroupError> {
            let list = |text: &str| text.parse().ok().filter(|list: &IdList| !list.is_empty());
            self.own.place(self.outer.dirs(), list(processors).as_ref(), list(nodes).as_ref())
        }

        /// What each of both has, for processors.
        fn has(&self) -> Vec<String> {
            let dirs: Vec<_> =
                self.outer.dirs().iter().chain(self.own.dirs()).map(PathBuf::as_path).collect();
            File::of(PROCESSORS, &dirs).unwrap().iter().map(|file| file.held.to_string()).collect()
        }
    }

    impl Drop for Nested {
        fn drop(&mut self) {
            self.own.remove().unwrap();
            self.outer.remove().unwrap();
        }
    }

    #[test]
    fn group_within_another_goes_where_it_is_told_and_back() {
        let nested = Nested::new("place");
        let before = nested.has();
        if before.is_empty() {
            return println!("skipped: this machine lets nobody make a cpuset");
        }
        let all = before
            .iter()
            .map(|list| list.parse().unwrap())
            .fold(IdList::default(), |sum: IdList, list| sum.or(&list));
        let all = if all.is_empty() { "0".to_owned() } else { all.to_string() };
        let first = all.split([',', '-']).next().unwrap();
        nested.place(first, "0").unwrap();
        assert!(nested.has().iter().all(|list| list == first), "{:?}", nested.has());
        nested.place(&all, "").unwrap();
        assert!(nested.has().iter().all(|list| *list == all), "{:?}", nested.has());
        nested.place("", "").unwrap();
        assert_eq!(nested.has(), before);
    }

    #[test]
    fn what_there_is_not_changes_nothing() {
        let nested = Nested::new("nowhere");
        let before = nested.has();
        if before.is_empty() {
            let error = nested.place("0", "").unwrap_err();
            return assert!(matches!(error, CgroupError::NoCpuset { .. }), "{error}");
        }
        let error = nested.place("4000", "").unwrap_err().to_string();
        assert!(
            error.starts_with("cannot run on the processors 4000 of the host; its cgroup has "),
            "{error}"
        );
        // The processors are there, the node is not.
        let error = nested.place("0", "63").unwrap_err();
        assert!(matches!(&error, CgroupError::Place { what: "memory nodes", .. }), "{error}");
        assert_eq!(nested.has(), before);
    }
}
