//! The memory of a guest, in a file that this process has made: one that is to be saved, or that
//! begins with what was.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, memfd_create, seek, sendfile};
use rustix::io::Errno;

const MIB: u64 = 1 << 20;

/// What is looked at at once for whether it is all zero: a page, the least that a file can lack.
const PAGE: usize = 4096;

/// How much is read at once.
const CHUNK: usize = 256 * PAGE;

/// A memory file of a guest's.
#[derive(Debug)]
pub(crate) struct MemoryFile(File);

impl MemoryFile {
    /// One that is all zero.
    pub(crate) fn new(mib: u32) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(c"guest", flags)?);
        file.set_len(u64::from(mib) * MIB)?;
        // A VMM that the guest has taken over could end the file server by making it smaller.
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self(file))
    }

    /// Makes one that is all zero as `saved` is. Takes some milliseconds for each 10 MiB that are
    /// not zero. A file of another size is refused.
    pub(super) fn fill(&self, saved: &File) -> io::Result<()> {
        if saved.metadata()?.len() != self.0.metadata()?.len() {
            return Err(io::Error::other("the memory of the template is not as large as the VM's"));
        }
        for extent in extents(saved) {
            let (mut from, to) = extent?;
            seek(&self.0, SeekFrom::Start(from))?;
            while from < to {
                let length = usize::try_from(to - from).unwrap_or(usize::MAX);
                if sendfile(&self.0, saved, Some(&mut from), length)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(())
    }

    /// Writes it to an empty file, but for the pages that are all zero.
    pub(super) fn save(&self, to: &File) -> io::Result<()> {
        to.set_len(self.0.metadata()?.len())?;
        let mut chunk = vec![0; CHUNK];
        for extent in extents(&self.0) {
            let (mut at, end) = extent?;
            while at < end {
                let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                self.0.read_exact_at(&mut chunk[..length], at)?;
                for page in chunk[..length].chunks(PAGE) {
                    if page.iter().any(|byte| *byte != 0) {
                        to.write_all_at(page, at)?;
                    }
                    at += page.len() as u64;
                }
            }
        }
        Ok(())
    }

    /// A descriptor of it for a VMM.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

/// Where a file has data: from, and to (lseek(2), `SEEK_DATA`).
fn extents(file: &File) -> impl Iterator<Item = io::Result<(u64, u64)>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let from = match seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return None,
            Err(errno) => return Some(Err(errno.into())),
        };
        match seek(file, SeekFrom::Hole(from)) {
            Ok(to) => {
                at = to;
                Some(Ok((from, to)))
            }
            Err(errno) => Some(Err(errno.into())),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn copy_of_what_was_saved_is_the_same_and_has_its_holes() {
        let memory = MemoryFile::new(8).unwrap();
        memory.0.write_all_at(b"kernel", 3 * MIB + 5).unwrap();
        memory.0.write_all_at(&[0; 3 * PAGE], 5 * MIB).unwrap();
        memory.0.write_all_at(b"end", 8 * MIB - 3).unwrap();
        let saved = tempfile::tempfile().unwrap();
        memory.save(&saved).unwrap();
        let copy = MemoryFile::new(8).unwrap();
        assert!(copy.0.set_len(1).is_err(), "it keeps its size");
        copy.fill(&saved).unwrap();
        let bytes = |file: &File| {
            let mut bytes = vec![0; 8 * MIB as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(bytes(&memory.0) == bytes(&copy.0));
        let pages = copy.0.metadata().unwrap().blocks() * 512 / PAGE as u64;
        assert_eq!(pages, 2, "the pages that are zero take no room");
        copy.0.write_all_at(b"x", 0).unwrap();
        assert_eq!(bytes(&saved)[0], 0, "what was saved stays as it is");
    }

    #[test]
    fn memory_of_another_size_is_refused() {
        let saved = tempfile::tempfile().unwrap();
        MemoryFile::new(1).unwrap().save(&saved).unwrap();
        assert!(MemoryFile::new(2).unwrap().fill(&saved).is_err());
    }
}
