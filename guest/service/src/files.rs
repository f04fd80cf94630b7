//! CopyFile: files that the host cannot share, or does not, are written piece by piece.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use kata_agent_api::agent::CopyFileRequest;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::path::Place;
use crate::status::{Tell, invalid};

/// Where the host's files are. It writes here where nothing is mounted.
pub(crate) const SHARED: &str = "/run/kata-containers/shared/containers";

/// Where it writes files of single containers: each has a directory, which goes with it. That is
/// this agent's own.
const COPIES: &str = "/run/kata-containers/shared/copies";

/// Largest file; the guest's memory holds it.
const MAX_SIZE: i64 = 1 << 30;

/// Writes one piece of a file, or makes a directory or a symbolic link, below [`SHARED`] or
/// [`COPIES`].
/// The pieces go to a temporary file beside the target, which takes its name with the last one. A
/// link takes its name in one step, too.
///
/// A mode of 0, which has no file type, means that there is nothing any more: what is there is
/// removed, with all below it. That is this agent's own; no other host asks for it.
pub(crate) fn copy(request: &CopyFileRequest) -> ttrpc::Result<()> {
    let (top, relative) = below_top(&request.path)?;
    if request.file_mode == 0 {
        let top = Place::make_directory(Path::new(top), 0o755).map_err(Tell::tell)?;
        return remove_below(&top, &relative).map_err(Tell::tell);
    }
    let kind = FileType::from_raw_mode(request.file_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
        return Err(invalid(format!(
            "file mode {:#o} of {:?} is no file, directory or symbolic link",
            request.file_mode, request.path
        )));
    }
    check_piece(request)?;
    let top = Place::make_directory(Path::new(top), 0o755).map_err(Tell::tell)?;
    copy_below(&top, &relative, kind, request).map_err(Tell::tell)
}

/// Removes what the host has copied for a container; nothing, if it has not.
pub(crate) fn forget(container: &str) {
    // No container's id is anything but a name.
    let Ok((top, relative)) = below_top(&format!("{COPIES}/{container}")) else { return };
    let removed = match Place::directory(Path::new(top)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        place => place.and_then(|top| remove_below(&top, &relative)),
    };
    if let Err(error) = removed {
        tracing::warn!(container, %error, "the container's copies stay");
    }
}

fn check_piece(request: &CopyFileRequest) -> ttrpc::Result<()> {
    let length = i64::try_from(request.data.len()).unwrap_or(i64::MAX);
    let fits = (0..=MAX_SIZE).contains(&request.file_size)
        && request.offset >= 0
        && request.offset.checked_add(length).is_some_and(|end| end <= request.file_size);
    if fits || FileType::from_raw_mode(request.file_mode) != FileType::RegularFile {
        return Ok(());
    }
    Err(invalid(format!(
        "{length} bytes at offset {} do not fit into a file of {} bytes (at most {MAX_SIZE})",
        request.offset, request.file_size
    )))
}

/// One of the two places, and the path below it, without anything that leads out of it.
fn below_top(path: &str) -> ttrpc::Result<(&'static str, PathBuf)> {
    let outside = || invalid(format!("{path:?} is not a path below {SHARED} or {COPIES}"));
    let below = |top| Some((top, Path::new(path).strip_prefix(top).ok()?));
    let (top, relative) = [SHARED, COPIES].into_iter().find_map(below).ok_or_else(outside)?;
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && relative.file_name().is_some() {
        Ok((top, relative.to_owned()))
    } else {
        Err(outside())
    }
}

fn copy_below(
    shared: &Place,
    relative: &Path,
    kind: FileType,
    request: &CopyFileRequest,
) -> io::Result<()> {
    let parent = relative.parent().unwrap_or(Path::new(""));
    let parent = shared.make_below(parent, request.dir_mode.max(0o700))?;
    let name = Path::new(relative.file_name().unwrap_or_default());
    match kind {
        FileType::Directory => {
            let made = shared.make_below(relative, request.file_mode)?;
            let mode = Mode::from_raw_mode(request.file_mode & 0o7777);
            rustix::fs::chmod(made.link(), mode)?;
            return own(&parent, name, request);
        }
        FileType::Symlink => {
            let target = String::from_utf8_lossy(&request.data).into_owned();
            let partial = partial_name(name);
            remove(&parent, &partial)?;
            rustix::fs::symlinkat(target, &parent, &partial)?;
            own(&parent, &partial, request)?;
            return Ok(rustix::fs::renameat(&parent, &partial, &parent, name)?);
        }
        _ => {}
    }
    let partial = partial_name(name);
    if write_piece(&parent, &partial, request)? {
        own(&parent, &partial, request)?;
        rustix::fs::renameat(&parent, &partial, &parent, name)?;
    }
    Ok(())
}

fn remove_below(shared: &Place, relative: &Path) -> io::Result<()> {
    let parent = match shared.find_below(relative.parent().unwrap_or(Path::new(""))) {
        Ok(parent) => parent,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let name = Path::new(relative.file_name().unwrap_or_default());
    match remove(&parent, name) {
        // It follows no link on its way down.
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            std::fs::remove_dir_all(parent.link().join(name))
        }
        removed => removed,
    }
}

/// What a file is called until its last piece has come. Each piece comes by itself, so that its
/// name must tell; and no other file that is copied may be called that, nor may it be too long a
/// name where `name` is not.
fn partial_name(name: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    format!(".kata-copy-{:016x}", hasher.finish()).into()
}

/// Whether the file is complete now.
fn write_piece(parent: &Place, name: &Path, request: &CopyFileRequest) -> io::Result<bool> {
    let mut flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if request.offset == 0 {
        flags |= OFlags::TRUNC;
    }
    let mode = Mode::from_raw_mode(request.file_mode & 0o7777);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(parent.as_fd(), name, flags, mode, resolve)?;
    let file = std::fs::File::from(file);
    file.write_all_at(&request.data, request.offset.unsigned_abs())?;
    // Not at its making alone: the umask cuts the mode there.
    rustix::fs::fchmod(&file, mode)?;
    Ok(file.metadata()?.len() >= request.file_size.unsigned_abs())
}

fn own(parent: &Place, name: &Path, request: &CopyFileRequest) -> io::Result<()> {
    // -1 means "as it is", as chown(2) has it.
    let id = |value: i32| u32::try_from(value).ok();
    let (uid, gid) = (id(request.uid).map(Uid::from_raw), id(request.gid).map(Gid::from_raw));
    Ok(rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn remove(parent: &Place, name: &Path) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::mem::MaybeUninit;
    use std::os::unix::fs::{MetadataExt, symlink};

    use proptest::prelude::*;
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

    use super::*;

    fn request(offset: i64, size: i64, data: &[u8]) -> CopyFileRequest {
        let mut request = CopyFileRequest::new();
        request.file_mode = 0o100_640;
        request.dir_mode = 0o755;
        (request.uid, request.gid) = (-1, -1);
        (request.offset, request.file_size, request.data) = (offset, size, data.to_vec());
        request
    }

    fn shared() -> (tempfile::TempDir, Place) {
        let base = tempfile::tempdir().unwrap();
        let place = Place::directory(&base.path().canonicalize().unwrap()).unwrap();
        (base, place)
    }

    #[test]
    fn copy_pieces_make_a_file_with_its_mode() {
        let (base, place) = shared();
        let name = Path::new("c1/etc/hosts");
        let file = FileType::RegularFile;
        copy_below(&place, name, file, &request(0, 6, b"abc")).unwrap();
        assert!(!base.path().join(name).exists());
        copy_below(&place, name, file, &request(3, 6, b"def")).unwrap();
        assert_eq!(fs::read(base.path().join(name)).unwrap(), b"abcdef");
        assert_eq!(fs::metadata(base.path().join(name)).unwrap().mode() & 0o7777, 0o640);
    }

    #[test]
    fn copy_leaves_files_of_like_names_alone() {
        let (base, place) = shared();
        let file = FileType::RegularFile;
        let long = "n".repeat(255);
        for name in ["a", "a.tmp", "a.tmp.tmp", &long] {
            let data = name.as_bytes();
            let size = i64::try_from(data.len()).unwrap();
            copy_below(&place, Path::new(name), file, &request(0, size, data)).unwrap();
        }
        copy_below(&place, Path::new("a"), file, &request(0, 1, b"b")).unwrap();
        let read = |name: &str| fs::read_to_string(base.path().join(name)).unwrap();
        assert_eq!(
            ["a", "a.tmp", "a.tmp.tmp", &long].map(read),
            ["b", "a.tmp", "a.tmp.tmp", &long]
        );
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 4);
    }

    #[test]
    fn copy_through_a_link_is_refused() {
        let (base, place) = shared();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), base.path().join("link")).unwrap();
        let file = FileType::RegularFile;
        assert!(copy_below(&place, Path::new("link/x"), file, &request(0, 1, b"x")).is_err());
        let partial = partial_name(Path::new("y"));
        symlink(outside.path().join("y"), base.path().join(partial)).unwrap();
        assert!(copy_below(&place, Path::new("y"), file, &request(0, 1, b"x")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn link_takes_the_place_of_another_and_leaves_nothing_beside_it() {
        let (base, place) = shared();
        for target in ["..1", "..2"] {
            let request = CopyFileRequest {
                file_mode: 0o120_777,
                data: target.as_bytes().to_vec(),
                ..request(0, 0, b"")
            };
            copy_below(&place, Path::new("c1/..data"), FileType::Symlink, &request).unwrap();
            let link = fs::read_link(base.path().join("c1/..data")).unwrap();
            assert_eq!(link, Path::new(target));
        }
        assert_eq!(fs::read_dir(base.path().join("c1")).unwrap().count(), 1);
    }

    /// As programs do that load their configuration again.
    #[test]
    fn who_watches_is_told_when_a_link_takes_its_place() {
        let (base, place) = shared();
        fs::create_dir(base.path().join("c1")).unwrap();
        let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, base.path().join("c1"), WatchFlags::MOVED_TO).unwrap();
        let link =
            CopyFileRequest { file_mode: 0o120_777, data: b"..1".to_vec(), ..request(0, 0, b"") };
        copy_below(&place, Path::new("c1/..data"), FileType::Symlink, &link).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        assert_eq!(events.next().unwrap().file_name(), Some(c"..data"));
    }

    #[test]
    fn what_is_removed_is_gone_with_all_below_it_and_with_nothing_else() {
        let (base, place) = shared();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "").unwrap();
        fs::create_dir_all(base.path().join("c1/..1/sub")).unwrap();
        fs::write(base.path().join("c1/..1/sub/file"), "").unwrap();
        for at in ["c1/link", "c1/..1/link"] {
            symlink(outside.path(), base.path().join(at)).unwrap();
        }
        assert!(remove_below(&place, Path::new("c1/link/file")).is_err());
        for name in ["c1/..1", "c1/link", "c1/link", "c1/none/none"] {
            remove_below(&place, Path::new(name)).unwrap();
        }
        assert_eq!(fs::read_dir(base.path().join("c1")).unwrap().count(), 0);
        assert!(outside.path().join("file").exists());
    }

    #[test]
    fn check_piece_refuses_what_does_not_fit() {
        assert!(check_piece(&request(0, 3, b"abc")).is_ok());
        assert!(check_piece(&request(1, 3, b"abc")).is_err());
        assert!(check_piece(&request(-1, 3, b"a")).is_err());
        assert!(check_piece(&request(0, MAX_SIZE + 1, b"")).is_err());
        assert!(check_piece(&request(i64::MAX, 3, b"a")).is_err());
    }

    proptest! {
        #[test]
        fn below_top_never_leaves(path in "(/run/kata-containers/shared/(containers|copies))?[a-z./]{0,40}") {
            if let Ok((_, relative)) = below_top(&path) {
                prop_assert!(relative.is_relative());
                prop_assert!(!relative.components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
