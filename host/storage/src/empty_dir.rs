//! emptyDirs of Kubernetes, which a pod's containers write to for each other.
//!
//! Where a directory is shared, the kubelet's own serves them, as it does without a VM. A guest
//! that gets copies has one directory for all containers of the pod in its place. No container may
//! write to what leads to another's: it could have a link lead out of there.
//!
//! ```text
//!   <kubelet>/pods/UID/volumes/kubernetes.io~empty-dir/NAME            the volume
//!   <kubelet>/pods/UID/volume-subpaths/NAME/CONTAINER/INDEX            a directory in it (`subPath`), bound here
//! ```

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::copy::MAX_COPIED_FILES;
use crate::{GUEST_SHARE, HostBind, StorageError};

/// The kubelet's directory of a pod's emptyDirs (Kubernetes, pkg/volume/emptydir, and
/// `EscapeQualifiedName`).
const PLUGIN: &str = "volumes/kubernetes.io~empty-dir";

/// The kubelet's directory of parts of volumes (Kubernetes, pkg/volume/util/subpath).
const SUBPATHS: &str = "volume-subpaths";

/// Where the guest has emptyDirs. No container can have it as its id.
const GUEST_DIRECTORY: &str = ".empty-dirs";

/// A directory of the guest's that stands for an emptyDir, or for a directory in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmptyDir {
    /// Where it is in the guest, for whichever container of the pod.
    pub guest_path: String,
}

impl EmptyDir {
    /// The emptyDir that a mount is of; `None` if it is of something else.
    ///
    /// # Errors
    /// [`StorageError::Unsupported`] where it is of a part of one that cannot be told.
    pub fn of(bind: &HostBind) -> Result<Option<Self>, StorageError> {
        let Some((volume, below)) = part(bind)? else { return Ok(None) };
        let name = volume.file_name().unwrap_or_default();
        // Without a `/` at its end where nothing is below.
        let path = Path::new(GUEST_SHARE).join(GUEST_DIRECTORY).join(name);
        let path: PathBuf = path.components().chain(below.components()).collect();
        let text = path.into_os_string().into_string();
        let guest_path = text.map_err(|_| refused(bind, "its path is no UTF-8 text"))?;
        Ok(Some(Self { guest_path }))
    }

    /// Refuses a mount of this one where `others` are mounted, of which one is a part of it, or the
    /// other way round.
    pub fn check_beside(&self, others: &[Self], bind: &HostBind) -> Result<(), StorageError> {
        let path = Path::new(&self.guest_path);
        let meets = |other: &Self| {
            path != Path::new(&other.guest_path)
                && (path.starts_with(&other.guest_path)
                    || Path::new(&other.guest_path).starts_with(path))
        };
        if others.iter().any(meets) {
            let what = "the pod's containers mount an emptyDir and a part of it (`subPath`), of which only one can be in the guest";
            return Err(refused(bind, what));
        }
        Ok(())
    }
}

/// Where containerd and CRI-O tell the id of the container's pod. Each sets one of them on its own;
/// the other may be the pod's author speaking.
const POD_IDS: [&str; 2] = ["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"];

/// The id of the pod that a container is of, as its engine tells it; `None` if it does not, or if
/// somebody else tells another.
pub(crate) fn pod_of(annotations: Option<&HashMap<String, String>>) -> Option<&str> {
    let mut told = POD_IDS.iter().filter_map(|key| annotations?.get(*key)).map(String::as_str);
    let pod = told.next()?;
    told.all(|other| other == pod).then_some(pod)
}

/// Whether a mount's source is an emptyDir of this pod, or a part of one.
pub(crate) fn is_of_pod(source: &Path, pod: &str) -> bool {
    let volume = if is_whole(source) { Some(source.to_owned()) } else { volume_of_subpath(source) };
    let own = Path::new("pods").join(pod).join(PLUGIN);
    volume.is_some_and(|volume| {
        volume.is_dir() && volume.parent().is_some_and(|parent| parent.ends_with(&own))
    })
}

/// Whether a mount's source is an emptyDir, or a part of one.
pub(crate) fn is_of_one(source: &Path) -> bool {
    is_whole(source) || volume_of_subpath(source).is_some_and(|volume| volume.is_dir())
}

fn is_whole(source: &Path) -> bool {
    source.parent().is_some_and(|parent| parent.ends_with(PLUGIN))
}

/// The emptyDir of a mount, and the directory in it.
fn part(bind: &HostBind) -> Result<Option<(PathBuf, PathBuf)>, StorageError> {
    let source = &bind.source;
    if !source.is_dir() {
        return Ok(None);
    }
    if is_whole(source) {
        return Ok(Some((source.clone(), PathBuf::new())));
    }
    let Some(volume) = volume_of_subpath(source).filter(|volume| volume.is_dir()) else {
        return Ok(None);
    };
    // It is bound, so that its path does not tell what it is.
    let below = find(&volume, source).ok_or_else(|| {
        refused(bind, "it is a part of an emptyDir (`subPath`) that is not there")
    })?;
    Ok(Some((volume, below)))
}

/// Where the emptyDir is that a source is a part of, if it is one.
fn volume_of_subpath(source: &Path) -> Option<PathBuf> {
    let volume = source.parent()?.parent()?;
    let subpaths = volume.parent()?;
    let pod = subpaths.ends_with(SUBPATHS).then(|| subpaths.parent())??;
    Some(pod.join(PLUGIN).join(volume.file_name()?))
}

/// The path below `top` of the directory that `source` is by another name.
fn find(top: &Path, source: &Path) -> Option<PathBuf> {
    let number = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    let wanted = number(&fs::symlink_metadata(source).ok()?);
    let mut directories = vec![top.to_owned()];
    let mut looked_at = 0;
    while let Some(directory) = directories.pop() {
        let found = fs::symlink_metadata(&directory).ok()?;
        if number(&found) == wanted {
            return directory.strip_prefix(top).ok().map(Path::to_owned);
        }
        for entry in fs::read_dir(&directory).ok()? {
            let entry = entry.ok()?;
            looked_at += 1;
            if looked_at > MAX_COPIED_FILES {
                return None;
            }
            if entry.file_type().ok()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    None
}

fn refused(bind: &HostBind, what: &str) -> StorageError {
    let reason = format!(
        "{what}: {}; choose a hypervisor that shares files with `hypervisor_name` in the section runtime",
        bind.source.display()
    );
    StorageError::Unsupported { destination: bind.destination.clone(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::tests::bind;

    fn guest_path(source: &Path) -> Result<Option<String>, StorageError> {
        let found = EmptyDir::of(&bind(source))?;
        Ok(found.map(|found| found.guest_path))
    }

    #[test]
    fn empty_dir_has_one_place_whichever_container_mounts_it() {
        let pods = tempfile::tempdir().unwrap();
        let volumes = pods.path().join("pods/1/volumes");
        for (plugin, expected) in [
            ("kubernetes.io~empty-dir", Some(format!("{GUEST_SHARE}/.empty-dirs/data"))),
            ("kubernetes.io~configmap", None),
        ] {
            let volume = volumes.join(plugin).join("data");
            fs::create_dir_all(&volume).unwrap();
            assert_eq!(guest_path(&volume).unwrap(), expected, "{plugin}");
        }
        let file = volumes.join("kubernetes.io~empty-dir/file");
        fs::write(&file, "").unwrap();
        assert_eq!(guest_path(&file).unwrap(), None);
    }

    #[test]
    fn whole_and_part_of_an_empty_dir_do_not_go_together() {
        let of = |path: &str| EmptyDir { guest_path: path.to_owned() };
        let bind = bind(Path::new("/kubelet/data"));
        let beside = |one: &str, other: &str| of(one).check_beside(&[of(other)], &bind);
        for (one, other) in [("/e/data", "/e/data/part"), ("/e/data/a/b", "/e/data/a")] {
            for (one, other) in [(one, other), (other, one)] {
                let error = beside(one, other).unwrap_err().to_string();
                assert!(error.contains("/data") && error.contains("`subPath`"), "{error}");
            }
        }
        for (one, other) in [("/e/data", "/e/data"), ("/e/data", "/e/data2"), ("/e/a/b", "/e/a/c")]
        {
            assert!(beside(one, other).is_ok(), "{one} {other}");
        }
    }

    #[test]
    fn part_of_an_empty_dir_is_found_in_it() {
        let pods = tempfile::tempdir().unwrap();
        let pod = pods.path().join("pods/1");
        let subpath = pod.join("volume-subpaths/data/web/0");
        fs::create_dir_all(&subpath).unwrap();
        // Of a volume that is no emptyDir.
        assert_eq!(guest_path(&subpath).unwrap(), None);
        let volume = pod.join(PLUGIN).join("data");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        let error = guest_path(&subpath).unwrap_err().to_string();
        assert!(error.contains("/data") && error.contains("subPath"), "{error}");
        assert_eq!(find(&volume, &volume.join("a/b")), Some("a/b".into()));
        assert_eq!(find(&volume, &volume), Some(PathBuf::new()));
    }
}
