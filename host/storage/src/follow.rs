//! Copies of directories that somebody keeps up to date.
//!
//! The kubelet writes the files of a ConfigMap, of a Secret, of tokens or of the downward API into
//! a directory of their own, has a link lead there in one step, and removes the directory before
//! (Kubernetes, pkg/volume/util/atomic_writer.go):
//!
//! ```text
//!   key ──▶ ..data/key      ..data ──▶ ..2026_11_29_06_12_01.5      ..2026_11_29_06_12_01.5/key
//! ```
//!
//! So the copies follow in the same order: new files, the link, links of new keys, and then goes
//! what is not there any more. A container sees all of the old files, or all of the new ones.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FileType;

use crate::tree::Tree;
use crate::{CopiedContent, CopiedFile, HostBind};

/// The link that leads to the files that count.
const DATA: &str = "..data";

/// How often a directory is looked at. Not to be told of changes by the kernel (inotify(7)) saves
/// root's other programs: it has 128 watchers for all of them, and a node has more pods than that.
const PERIOD: Duration = Duration::from_secs(2);

/// How long nothing has to change until an update is looked at. What comes later is looked at
/// again.
const REST: Duration = Duration::from_millis(500);

/// After how many rests it is looked at although it changes.
const RESTS: u32 = 10;

/// The kubelet's directories of volumes that it updates, below a pod's (Kubernetes, pkg/volume, and
/// `EscapeQualifiedName`).
const PLUGINS: [&str; 4] = [
    "volumes/kubernetes.io~configmap",
    "volumes/kubernetes.io~secret",
    "volumes/kubernetes.io~projected",
    "volumes/kubernetes.io~downward-api",
];

/// Whether a mount's source is a volume that the kubelet updates, and nobody else writes to.
#[must_use]
pub fn is_kubelets(source: &Path) -> bool {
    source.parent().is_some_and(|parent| PLUGINS.iter().any(|plugin| parent.ends_with(plugin)))
}

/// Notices when a directory is updated.
#[derive(Debug)]
pub struct Followed {
    // No descriptor of the directory: that would keep its file system from being unmounted.
    source: PathBuf,
    /// As it was when it was looked at last.
    state: State,
}

/// What is another one after each step of an update: when something came into the directory or went
/// from it, and the link.
#[derive(Debug, PartialEq, Eq)]
struct State {
    modified: (i64, u64),
    link: (u64, Vec<u8>),
}

impl State {
    /// `None` where it is no directory that is updated in the kubelet's way.
    fn of(source: &Path) -> io::Result<Option<Self>> {
        let tree = Tree::at_resolved(source)?;
        let top = tree.find(Path::new(""))?;
        if top.kind() != FileType::Directory {
            return Ok(None);
        }
        let link = match tree.find(Path::new(DATA)) {
            Ok(link) if link.kind() == FileType::Symlink => link,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let modified = (top.stat().st_mtime, top.stat().st_mtime_nsec);
        Ok(Some(Self { modified, link: (link.stat().st_ino, link.target()?) }))
    }
}

impl Followed {
    /// Follows the mount's source from now on; `None` where it is not updated in the kubelet's way.
    pub fn begin(bind: &HostBind) -> io::Result<Option<Self>> {
        let source = bind.source.clone();
        Ok(State::of(&source)?.map(|state| Self { source, state }))
    }

    /// Resolves soon after something has changed since the last call, when nothing changes any
    /// more; with `false` once there is no directory to follow any more. Has to be awaited in
    /// tokio's context. Nothing is missed if it is dropped before.
    pub async fn changed(&mut self) -> io::Result<bool> {
        while self.now()?.as_ref() == Some(&self.state) {
            tokio::time::sleep(PERIOD).await;
        }
        let mut last = self.now()?;
        for _ in 0..RESTS {
            tokio::time::sleep(REST).await;
            let now = self.now()?;
            if now == last {
                break;
            }
            last = now;
        }
        let Some(now) = last else { return Ok(false) };
        self.state = now;
        Ok(true)
    }

    /// `None` of a directory that is gone, or was emptied.
    fn now(&self) -> io::Result<Option<State>> {
        match State::of(&self.source) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            state => state,
        }
    }
}

/// What the guest has of a mount, to tell what has changed since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied(BTreeMap<String, u64>);

/// What the guest has to be told, in this order.
#[derive(Debug, PartialEq, Eq)]
pub struct Update<'a> {
    /// Files that are new, or not what they were.
    pub copies: Vec<&'a CopiedFile>,
    /// Paths below the mount's source at which nothing is any more. Of a directory that is gone,
    /// only its own.
    pub gone: Vec<String>,
}

impl Copied {
    /// The guest has these files and no others.
    #[must_use]
    pub fn of(files: &[CopiedFile]) -> Self {
        Self(files.iter().map(|file| (file.path.clone(), fingerprint(file))).collect())
    }

    /// The guest has this file, too, or another one at its path.
    pub fn add(&mut self, file: &CopiedFile) {
        self.0.insert(file.path.clone(), fingerprint(file));
    }

    /// The guest has nothing any more at this path and below it.
    pub fn remove(&mut self, path: &str) {
        let is_below = |other: &str| {
            other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.0.retain(|other, _| !is_below(other));
    }

    /// Directories of an update that the guest has, but does not see yet, for the link has not come
    /// with it.
    #[must_use]
    pub fn beside_the_version_before(&self, update: &Update<'_>) -> Vec<String> {
        let is_link = |file: &&CopiedFile| file.path == DATA;
        let Some(link) = update.copies.iter().copied().find(is_link) else { return Vec::new() };
        if self.0.get(DATA) == Some(&fingerprint(link)) {
            return Vec::new();
        }
        let is_here = |file: &&&CopiedFile| self.0.contains_key(&file.path);
        let is_top = |file: &&&CopiedFile| {
            file.content == CopiedContent::Directory
                && !file.path.is_empty()
                && !file.path.contains('/')
        };
        let new = update.copies.iter().filter(is_top).filter(is_here);
        new.map(|file| file.path.clone()).collect()
    }

    /// What makes `files` of what the guest has. `None` if they were read in the midst of a change,
    /// which then will be noticed, too.
    #[must_use]
    pub fn update<'a>(&self, files: &'a [CopiedFile]) -> Option<Update<'a>> {
        let is_directory = |path: &[u8]| {
            let at_path = files.iter().find(|file| file.path.as_bytes() == path);
            at_path.is_some_and(|file| file.content == CopiedContent::Directory)
        };
        let link = files.iter().find(|file| file.path == DATA)?;
        if !matches!(&link.content, CopiedContent::Symlink(target) if is_directory(target)) {
            return None;
        }
        let is_new = |file: &&CopiedFile| self.0.get(&file.path) != Some(&fingerprint(file));
        let mut copies: Vec<_> = files.iter().filter(is_new).collect();
        // A directory comes before what is in it, as it was read.
        copies.sort_by_key(|file| match &file.content {
            CopiedContent::Symlink(_) if file.path == DATA => 1,
            CopiedContent::Symlink(_) => 2,
            CopiedContent::Directory | CopiedContent::Regular(_) => 0,
        });
        let is_there = |path: &str| files.iter().any(|file| file.path == path);
        let gone = self.0.keys().filter(|path| {
            let above = path.rsplit_once('/').map_or("", |(above, _)| above);
            !is_there(path) && is_there(above)
        });
        Some(Update { copies, gone: gone.cloned().collect() })
    }
}

fn fingerprint(file: &CopiedFile) -> u64 {
    let CopiedFile { path: _, mode, uid, gid, content } = file;
    let mut hasher = DefaultHasher::new();
    (mode, uid, gid).hash(&mut hasher);
    match content {
        CopiedContent::Directory => 0.hash(&mut hasher),
        CopiedContent::Regular(bytes) => (1, bytes).hash(&mut hasher),
        CopiedContent::Symlink(target) => (2, target).hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::CopyBudget;

    fn bind(source: &Path) -> HostBind {
        HostBind {
            index: 0,
            source: source.canonicalize().unwrap(),
            destination: "/data".into(),
            readonly: true,
            recursive: true,
            follows_host: false,
        }
    }

    fn read(directory: &Path) -> Vec<CopiedFile> {
        CopyBudget::default().read(&bind(directory)).unwrap()
    }

    /// Writes a version as the kubelet does.
    fn write(directory: &Path, version: &str, keys: &[&str]) {
        let files = directory.join(version);
        fs::create_dir(&files).unwrap();
        for key in keys {
            fs::write(files.join(key), version).unwrap();
        }
        symlink(version, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join(DATA)).unwrap();
        for key in keys {
            let _ = symlink(format!("{DATA}/{key}"), directory.join(key));
        }
    }

    fn remove(directory: &Path, version: &str, keys: &[&str]) {
        for key in keys {
            fs::remove_file(directory.join(key)).unwrap();
        }
        fs::remove_dir_all(directory.join(version)).unwrap();
    }

    #[test]
    fn update_is_new_files_then_the_link_then_links_of_new_keys_then_what_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        write(directory, "..1", &["both", "old"]);
        let copied = Copied::of(&read(directory));
        assert_eq!(
            copied.update(&read(directory)).unwrap(),
            Update { copies: vec![], gone: vec![] }
        );
        write(directory, "..2", &["both", "new"]);
        remove(directory, "..1", &["old"]);
        let files = read(directory);
        let Update { copies, gone } = copied.update(&files).unwrap();
        let mut paths: Vec<_> = copies.iter().map(|file| file.path.as_str()).collect();
        paths[1..3].sort_unstable();
        assert_eq!(paths, ["..2", "..2/both", "..2/new", "..data", "new"]);
        assert_eq!(gone, ["..1", "old"]);
    }

    #[test]
    fn what_came_by_half_goes_with_the_next_version() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        write(directory, "..1", &["key"]);
        let mut copied = Copied::of(&read(directory));
        write(directory, "..2", &["key"]);
        for file in read(directory).iter().filter(|file| file.path.starts_with("..2")) {
            copied.add(file);
        }
        write(directory, "..3", &["key"]);
        remove(directory, "..1", &[]);
        remove(directory, "..2", &[]);
        let files = read(directory);
        assert_eq!(copied.update(&files).unwrap().gone, ["..1", "..2"]);
        copied.remove("..1");
        assert_eq!(copied.update(&files).unwrap().gone, ["..2"]);
    }

    #[test]
    fn what_is_in_the_way_of_the_next_try_is_the_new_version_until_it_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        write(directory, "..1", &["key"]);
        let mut copied = Copied::of(&read(directory));
        write(directory, "..2", &["key"]);
        remove(directory, "..1", &[]);
        let files = read(directory);
        let before = copied.clone();
        let update = before.update(&files).unwrap();
        assert!(copied.beside_the_version_before(&update).is_empty(), "nothing has come");
        for file in &update.copies {
            copied.add(file);
            let wanted: &[&str] = if file.path.starts_with("..2") { &["..2"] } else { &[] };
            assert_eq!(copied.beside_the_version_before(&update), wanted, "{}", file.path);
        }
    }

    #[test]
    fn what_was_read_in_the_midst_of_a_change_is_no_update() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "..1", &["key"]);
        let mut files = read(directory.path());
        let copied = Copied::of(&files);
        files.retain(|file| !file.path.starts_with("..1"));
        assert_eq!(copied.update(&files), None);
        files.retain(|file| file.path != DATA);
        assert_eq!(copied.update(&files), None);
    }

    #[test]
    fn file_of_the_same_length_is_another_one() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "..1", &["key"]);
        let copied = Copied::of(&read(directory.path()));
        fs::write(directory.path().join("..1/key"), "..2").unwrap();
        let files = read(directory.path());
        let update = copied.update(&files).unwrap();
        assert_eq!(update.copies.len(), 1);
        assert_eq!(update.copies[0].path, "..1/key");
    }

    #[tokio::test]
    async fn update_is_noticed_and_so_is_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        write(directory, "..1", &["key"]);
        let mut followed = Followed::begin(&bind(directory)).unwrap().unwrap();
        write(directory, "..2", &["key"]);
        remove(directory, "..1", &[]);
        assert!(followed.changed().await.unwrap());
        let unchanged = tokio::time::timeout(Duration::from_millis(50), followed.changed());
        assert!(unchanged.await.is_err(), "nothing has changed since");
        fs::remove_dir_all(directory).unwrap();
        while followed.changed().await.unwrap() {}
    }

    #[test]
    fn volumes_that_others_may_write_to_are_not_the_kubelets() {
        let pod = Path::new("/var/lib/kubelet/pods/1");
        let is = |path: &str| is_kubelets(&pod.join(path));
        assert!(is("volumes/kubernetes.io~configmap/config"));
        assert!(is("volumes/kubernetes.io~projected/kube-api-access-x"));
        for other in [
            "volumes/kubernetes.io~empty-dir/data",
            "volumes/kubernetes.io~nfs/data",
            "volumes/kubernetes.io~configmap",
            "volumes/kubernetes.io~configmap/config/..data",
            "volume-subpaths/config/web/0",
        ] {
            assert!(!is(other), "{other}");
        }
    }

    #[test]
    fn only_what_is_updated_in_this_way_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Followed::begin(&bind(directory.path())).unwrap().is_none());
        assert!(Followed::begin(&bind(&file)).unwrap().is_none());
        fs::write(directory.path().join(DATA), "no link").unwrap();
        assert!(Followed::begin(&bind(directory.path())).unwrap().is_none());
    }
}
