//! Images of root file systems, kept for the next container of the same snapshots.
//!
//! ```text
//!   root ──pack──▶ <sandbox's directory>/1 ──keep: fsync, one more name──▶ <cache>/<key>.erofs
//!   <cache>/<key>.erofs ──make: one more name──▶ <other sandbox's directory>/1
//! ```
//!
//! A sandbox always has a name of its own for its image, which goes with it. So an image goes from
//! the cache at any time without harm to whoever uses it, and a start that finds it gone packs.
//! Each start packs into its own place, and link(2) decides whose image is kept: there is neither a
//! lock nor anything half-written in the cache, whoever is killed at whatever time.
//!
//! Nobody but root gets to the files, and nobody at all writes to one again: VMMs have them as
//! read-only disks.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, linkat};

use crate::{ImageKey, StorageError, pack};

/// What the names of images end in. Nothing else in the directory is looked at.
const EXTENSION: &str = "erofs";

/// A directory with images that were packed for earlier containers. It is on the file system on
/// which sandboxes have theirs, without which nothing is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageCache {
    directory: PathBuf,
    limit: u64,
}

/// How an image came about.
#[derive(Debug)]
pub enum ImageOrigin {
    /// It was kept since an earlier container of the same snapshots.
    Kept,
    /// It was packed, and is this file, whatever its name leads to by now.
    Packed(File),
}

impl ImageCache {
    /// The cache in `directory`, which need not be there, for at most `limit` bytes of images; 0
    /// neither keeps nor finds any, and lets none stay.
    #[must_use]
    pub fn new(directory: PathBuf, limit: u64) -> Self {
        Self { directory, limit }
    }

    /// Puts the image of the directory `root` at `image`, where nothing is: the one that is kept
    /// under `key`, or one that it packs as [`pack()`] does. Without a key it packs. The limit may
    /// have been higher before, so what is beyond it goes in any case.
    ///
    /// Whatever is wrong with the cache is logged, and no error. If the disk is full, all that is
    /// kept goes.
    pub fn make(
        &self,
        key: Option<&ImageKey>,
        root: &Path,
        image: &Path,
    ) -> Result<ImageOrigin, StorageError> {
        let found = key.map_or(Ok(false), |key| self.find(key, image));
        // Only now, for what was found has just been used.
        if let Err(error) = self.remove_down_to(self.limit) {
            self.warn("make room in", &error);
        }
        match found {
            Ok(true) => return Ok(ImageOrigin::Kept),
            Ok(false) => {}
            Err(error) => self.warn("take an image from", &error),
        }
        let packed = match pack(root, image) {
            Err(error) if is_full(&error) && self.empty() => pack(root, image),
            packed => packed,
        };
        packed.map(ImageOrigin::Packed)
    }

    /// Keeps the finished image under `key` for others, and removes the images that were used
    /// longest ago until all are within the limit. One that is kept under the key already stays;
    /// nothing is kept of an image whose last name has gone meanwhile.
    ///
    /// Blocks until the image is on the disk, so that one that is found is whole also after a loss
    /// of power. Errors are logged.
    pub fn keep(&self, key: &ImageKey, image: &File) {
        match self.try_keep(key, image) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.warn("keep an image in", &error),
            Ok(()) => {}
        }
    }

    fn try_keep(&self, key: &ImageKey, image: &File) -> io::Result<()> {
        if image.metadata()?.len() > self.limit {
            return self.remove_down_to(self.limit).map(drop);
        }
        image.sync_all()?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        // By its name, it could be the unfinished image of a later sandbox with the same id.
        let itself = format!("/proc/self/fd/{}", image.as_raw_fd());
        let linked = linkat(CWD, itself, CWD, self.path(key), AtFlags::SYMLINK_FOLLOW);
        match linked.map_err(io::Error::from) {
            // Two containers were started at the same time.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.remove_down_to(self.limit).map(drop),
        }
    }

    fn find(&self, key: &ImageKey, image: &Path) -> io::Result<bool> {
        if self.limit == 0 {
            return Ok(false);
        }
        match fs::hard_link(self.path(key), image) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            linked => linked?,
        }
        // Its time says when it was used last. It is an image without that, too.
        if let Err(error) = File::open(image).and_then(|file| file.set_modified(SystemTime::now()))
        {
            self.warn("note the use of an image in", &error);
        }
        Ok(true)
    }

    /// Removes all that is kept; whether there was anything.
    fn empty(&self) -> bool {
        self.remove_down_to(0).unwrap_or_default()
    }

    /// Removes what was used longest ago until at most `limit` bytes are left; whether anything had
    /// to go.
    fn remove_down_to(&self, limit: u64) -> io::Result<bool> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            entries => entries?,
        };
        let mut images = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                // Somebody else may have removed it.
                let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
                images.push((metadata.modified()?, metadata.len(), path));
            }
        }
        images.sort();
        let mut total: u64 = images.iter().map(|(_, size, _)| size).sum();
        let mut removed = false;
        for (_, size, path) in images {
            if total <= limit {
                break;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            (total, removed) = (total - size, true);
        }
        Ok(removed)
    }

    fn path(&self, key: &ImageKey) -> PathBuf {
        self.directory.join(format!("{key}.{EXTENSION}"))
    }

    fn warn(&self, action: &str, error: &io::Error) {
        tracing::warn!("cannot {action} {}: {error}", self.directory.display());
    }
}

fn is_full(error: &StorageError) -> bool {
    let StorageError::Io { source, .. } = error else { return false };
    matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::Duration;

    use super::*;
    use crate::image_key::tests::{overlay, snapshotter};

    /// A cache beside snapshots and the directories of sandboxes.
    struct Fixture {
        directory: tempfile::TempDir,
        cache: ImageCache,
    }

    impl Fixture {
        fn new(limit: u64) -> Option<Self> {
            let directory = snapshotter()?;
            let cache = ImageCache::new(directory.path().join("cache"), limit);
            fs::create_dir(directory.path().join("sandbox")).unwrap();
            Some(Self { directory, cache })
        }

        /// The key of what the snapshot with this number holds alone.
        fn key(&self, number: u32) -> ImageKey {
            let mut mount = overlay(self.directory.path());
            mount.options[3] = format!("lowerdir={}", self.root(number).display());
            ImageKey::of(&[mount]).unwrap()
        }

        fn root(&self, number: u32) -> PathBuf {
            self.directory.path().join(format!("snapshots/{number}/fs"))
        }

        fn image(&self, name: &str) -> PathBuf {
            self.directory.path().join("sandbox").join(name)
        }

        /// Has an image packed, which must not be one that was kept.
        fn pack(&self, number: u32, name: &str) -> File {
            let (key, image) = (self.key(number), self.image(name));
            let origin = self.cache.make(Some(&key), &self.root(number), &image).unwrap();
            let ImageOrigin::Packed(file) = origin else { panic!("{origin:?}") };
            file
        }

        /// Has a sandbox's image made as for a container, and kept if it was packed. Whether it was
        /// kept before.
        fn start(&self, number: u32, name: &str) -> bool {
            let (key, image) = (self.key(number), self.image(name));
            match self.cache.make(Some(&key), &self.root(number), &image).unwrap() {
                ImageOrigin::Kept => true,
                ImageOrigin::Packed(file) => {
                    self.cache.keep(&key, &file);
                    false
                }
            }
        }

        fn size(&self, name: &str) -> u64 {
            fs::metadata(self.image(name)).unwrap().len()
        }

        fn kept(&self) -> usize {
            fs::read_dir(self.directory.path().join("cache")).map_or(0, Iterator::count)
        }
    }

    fn inode(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn second_container_has_the_image_of_the_first() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        assert!(!here.start(1, "a"));
        assert!(here.start(1, "b"));
        assert_eq!(inode(&here.image("a")), inode(&here.image("b")));
        assert!(!here.start(2, "c"));
        // Sandboxes that end take nothing away from those that come.
        for name in ["a", "b"] {
            fs::remove_file(here.image(name)).unwrap();
        }
        assert!(here.start(1, "d"));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(here.directory.path().join("cache")), 0o700);
        assert_eq!(mode(here.image("d")) & 0o022, 0, "others can write to it");
    }

    #[test]
    fn without_a_key_nothing_is_found() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        here.start(1, "a");
        let made = here.cache.make(None, &here.root(1), &here.image("b")).unwrap();
        assert!(matches!(made, ImageOrigin::Packed(_)));
    }

    #[test]
    fn layer_that_was_made_again_is_packed_again() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        here.start(1, "a");
        fs::rename(here.root(1), here.directory.path().join("old")).unwrap();
        fs::create_dir(here.root(1)).unwrap();
        fs::write(here.root(1).join("new"), "other").unwrap();
        assert!(!here.start(1, "b"));
        assert_ne!(fs::read(here.image("a")).unwrap(), fs::read(here.image("b")).unwrap());
    }

    #[test]
    fn two_that_pack_at_once_have_an_image_each_and_one_is_kept() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        let names: Vec<String> = (0..8).map(|number| format!("at-once-{number}")).collect();
        let barrier = std::sync::Barrier::new(names.len());
        std::thread::scope(|scope| {
            for name in &names {
                scope.spawn(|| {
                    barrier.wait();
                    here.start(1, name);
                });
            }
        });
        let first = fs::read(here.image(&names[0])).unwrap();
        assert!(names.iter().all(|name| fs::read(here.image(name)).unwrap() == first));
        assert_eq!(here.kept(), 1);
        assert!(here.start(1, "later"));
        assert_eq!(fs::read(here.image("later")).unwrap(), first);
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        here.start(1, "a");
        let size = here.size("a");
        here.start(2, "b");
        let hours_ago = |number: u64, name: &str| {
            let then = SystemTime::now() - Duration::from_secs(3600 * number);
            File::open(here.image(name)).unwrap().set_modified(then).unwrap();
        };
        hours_ago(2, "a");
        hours_ago(1, "b");
        assert!(here.start(1, "again"));
        fs::create_dir_all(here.root(4).join("more")).unwrap();
        let cache = ImageCache { limit: 2 * size, ..here.cache.clone() };
        let here = Fixture { cache, ..here };
        here.start(4, "c");
        assert_eq!(here.kept(), 2);
        assert!(!here.cache.path(&here.key(2)).exists(), "it was the one used longest ago");
        assert!(here.image("b").exists(), "a sandbox keeps its image");
        assert!(here.start(1, "d"));
        assert!(here.start(4, "e"));
    }

    #[test]
    fn image_is_kept_that_was_packed_and_not_the_one_that_has_its_name_by_now() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        let first = here.pack(1, "a");
        // Its sandbox goes, and another one of the same id comes.
        fs::remove_file(here.image("a")).unwrap();
        let second = here.pack(2, "a");
        here.cache.keep(&here.key(1), &first);
        assert_eq!(here.kept(), 0, "it has no name any more");
        let moved = here.pack(1, "b");
        fs::rename(here.image("b"), here.image("c")).unwrap();
        fs::write(here.image("b"), "unfinished").unwrap();
        here.cache.keep(&here.key(1), &moved);
        here.cache.keep(&here.key(2), &second);
        assert_eq!(inode(&here.cache.path(&here.key(1))), inode(&here.image("c")));
        assert_eq!(inode(&here.cache.path(&here.key(2))), inode(&here.image("a")));
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let Some(here) = Fixture::new(4096) else { return };
        assert!(!here.start(1, "too-large"));
        assert_eq!(here.kept(), 0);
    }

    #[test]
    fn lower_limit_holds_from_the_next_start_on() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        let old = SystemTime::now() - Duration::from_secs(3600);
        for (number, name) in [(1, "a"), (2, "b")] {
            here.start(number, name);
            File::open(here.image(name)).unwrap().set_modified(old).unwrap();
        }
        let lower = |here: Fixture, limit| {
            let cache = ImageCache { limit, ..here.cache.clone() };
            Fixture { cache, ..here }
        };
        let limit = here.size("a");
        let here = lower(here, limit);
        assert!(here.start(1, "hit"), "what is used now goes last");
        assert_eq!(here.kept(), 1);
        let here = lower(here, limit - 1);
        assert!(here.start(1, "last"), "a sandbox has the image that goes");
        assert_eq!(here.kept(), 0);
    }

    #[test]
    fn without_a_limit_above_zero_nothing_is_found_and_nothing_stays() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        let none = ImageCache { limit: 0, ..here.cache.clone() };
        for key in [None, Some(&here.key(1))] {
            let _ = fs::remove_file(here.image("b"));
            here.start(1, "a");
            let made = none.make(key, &here.root(1), &here.image("b")).unwrap();
            assert!(matches!(made, ImageOrigin::Packed(_)));
            assert_eq!(here.kept(), 0);
            fs::remove_file(here.image("a")).unwrap();
        }
        // Kept meanwhile by somebody with a limit.
        let large = here.pack(1, "c");
        here.cache.keep(&here.key(1), &large);
        none.keep(&here.key(1), &large);
        assert_eq!(here.kept(), 0);
    }

    #[test]
    fn cache_that_fails_fails_no_start() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        fs::write(here.directory.path().join("cache"), "no directory").unwrap();
        for name in ["a", "b"] {
            assert!(!here.start(1, name));
        }
    }

    #[test]
    fn emptying_leaves_what_is_none_of_its_images() {
        let Some(here) = Fixture::new(1 << 20) else { return };
        here.start(1, "a");
        fs::write(here.directory.path().join("cache/note"), "").unwrap();
        assert!(here.cache.empty());
        assert_eq!((here.kept(), here.cache.empty()), (1, false));
        assert!(here.image("a").exists());
    }
}
