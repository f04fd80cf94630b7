//! A writer of cpio archives in the "newc" format, which the kernel unpacks as its initramfs
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Device nodes are entries like any other, so no root is needed. Everything belongs to root,
//! inode numbers count up from 1 and times are fixed: the archive depends on its entries alone.

/// Where inside the archive headers and file contents begin.
const ALIGNMENT: usize = 4;
/// One fixed time for all entries (the epoch), so that archives can be compared.
const MTIME: u32 = 0;

/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// What an archive entry is, with its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A directory.
    Directory,
    /// A regular file and its bytes; at most 4 GiB - 1.
    File(&'a [u8]),
    /// A symbolic link and its target.
    Symlink(&'a str),
    /// A character device by its major and minor number.
    CharDevice(u32, u32),
}

/// An archive in the making, in memory.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    last_inode: u32,
}

impl Archive {
    /// Appends an entry. `path` has no leading slash, and its directory must have been added
    /// before. `permissions` are the low twelve bits of the mode.
    pub fn add(&mut self, path: &str, permissions: u32, entry: Entry<'_>) {
        let (kind, links, content, device) = match entry {
            Entry::Directory => (S_IFDIR, 2, &[][..], (0, 0)),
            Entry::File(content) => (S_IFREG, 1, content, (0, 0)),
            Entry::Symlink(target) => (S_IFLNK, 1, target.as_bytes(), (0, 0)),
            Entry::CharDevice(major, minor) => (S_IFCHR, 1, &[][..], (major, minor)),
        };
        self.last_inode += 1;
        let header = Header { inode: self.last_inode, mode: kind | permissions, links, device };
        self.append(&header, path, content);
    }

    /// Ends the archive and gives its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.append(&Header { inode: 0, mode: 0, links: 1, device: (0, 0) }, TRAILER, &[]);
        self.bytes
    }

    fn append(&mut self, header: &Header, path: &str, content: &[u8]) {
        let size = u32::try_from(content.len()).expect("no guest file is near 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("paths are short");
        let (major, minor) = header.device;
        self.bytes.extend_from_slice(b"070701");
        for field in [
            header.inode,
            header.mode,
            0, // uid
            0, // gid
            header.links,
            MTIME,
            size,
            0, // major of the device that the file is on
            0, // minor
            major,
            minor,
            name_size,
            0, // checksum, unused in this variant
        ] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    device: (u32, u32),
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The magic and thirteen numbers of eight digits.
    const HEADER_SIZE: usize = 6 + 13 * 8;

    /// An entry as read back: path, mode, device and content.
    pub(crate) type ReadBack = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive of this writer up to its trailer, checking what all entries share.
    pub(crate) fn read_back(mut bytes: &[u8]) -> Vec<ReadBack> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let name_end = HEADER_SIZE + field(11) as usize;
            let content = name_end.next_multiple_of(ALIGNMENT);
            let content_end = content + field(6) as usize;
            let path = String::from_utf8(bytes[HEADER_SIZE..name_end - 1].to_vec()).unwrap();
            assert_eq!(bytes[name_end - 1], 0, "names end in a zero byte");
            if path == TRAILER {
                assert_eq!(bytes.len(), content);
                return entries;
            }
            assert_eq!(field(0) as usize, entries.len() + 1, "inodes count up");
            assert_eq!((field(2), field(3), field(5)), (0, 0, 0), "root's, at the epoch");
            let device = (field(9), field(10));
            entries.push((path, field(1), device, bytes[content..content_end].to_vec()));
            bytes = &bytes[content_end.next_multiple_of(ALIGNMENT)..];
        }
    }

    proptest! {
        #[test]
        fn archive_of_any_files_reads_back(
            files in prop::collection::vec(
                ("[a-z/._-]{1,40}", 0u32..0o10_000, prop::collection::vec(any::<u8>(), 0..64)),
                0..8,
            )
        ) {
            let mut archive = Archive::default();
            for (path, permissions, content) in &files {
                archive.add(path, *permissions, Entry::File(content));
            }
            let expected: Vec<ReadBack> = files
                .into_iter()
                .map(|(path, mode, content)| (path, S_IFREG | mode, (0, 0), content))
                .collect();
            prop_assert_eq!(read_back(&archive.finish()), expected);
        }
    }

    #[test]
    fn archive_keeps_kinds_and_devices() {
        let mut archive = Archive::default();
        archive.add("dev", 0o755, Entry::Directory);
        archive.add("dev/console", 0o600, Entry::CharDevice(5, 1));
        archive.add("init", 0o777, Entry::Symlink("sbin/init"));
        let entries = read_back(&archive.finish());
        assert_eq!(entries[0], ("dev".into(), 0o040_755, (0, 0), vec![]));
        assert_eq!(entries[1], ("dev/console".into(), 0o020_600, (5, 1), vec![]));
        assert_eq!(entries[2], ("init".into(), 0o120_777, (0, 0), b"sbin/init".to_vec()));
    }

    /// cpio itself is the judge where it is installed.
    #[test]
    fn archive_is_listed_by_cpio() {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut archive = Archive::default();
        archive.add("etc", 0o755, Entry::Directory);
        archive.add("etc/motd", 0o644, Entry::File(b"hello"));
        let Ok(mut cpio) = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            return;
        };
        cpio.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "etc\netc/motd\n");
    }
}
