//! The mount table of the calling thread's namespace.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::MountError;

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's id, unique while it exists.
    pub id: u64,
    /// The id of the mount that it is mounted on.
    pub parent: u64,
    /// Which directory of its file system is mounted.
    pub root: PathBuf,
    /// Where, seen from the thread's root directory.
    pub mount_point: PathBuf,
    /// Options of this mount, such as `ro`, without those of its file system.
    pub options: Vec<String>,
    /// The file system's type.
    pub fstype: String,
    /// What is mounted; `none` or any word for file systems without a device.
    pub source: OsString,
}

/// All mounts at `path` or below it, in the order in which they were made. `path` must be absolute
/// and free of links; one that does not exist has none.
pub fn mounts_below(path: &Path) -> Result<Vec<MountEntry>, MountError> {
    // Not /proc/self: a thread may have a mount namespace of its own.
    let table = PathBuf::from("/proc/thread-self/mountinfo");
    let text = std::fs::read(&table).map_err(|source| MountError::Io {
        action: "read",
        path: table,
        source,
    })?;
    let mut entries = parse_mount_table(&text).map_err(|source| MountError::Io {
        action: "understand",
        path: "/proc/thread-self/mountinfo".into(),
        source,
    })?;
    entries.retain(|entry| entry.mount_point.starts_with(path));
    Ok(entries)
}

/// Reads a mount table; fails on the first line that is not one of mountinfo.
pub fn parse_mount_table(text: &[u8]) -> io::Result<Vec<MountEntry>> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> io::Result<MountEntry> {
    let broken = || {
        let line = String::from_utf8_lossy(line);
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("`{line}` is not a line of a mount table"),
        )
    };
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    // Optional fields come between the sixth and a lone dash.
    let dash = fields.iter().skip(6).position(|field| *field == b"-").ok_or_else(broken)? + 6;
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let text = |field: &[u8]| String::from_utf8(field.to_vec()).ok();
    let [fstype, source, _super_options] = fields[dash + 1..] else { return Err(broken()) };
    Ok(MountEntry {
        id: number(fields[0]).ok_or_else(broken)?,
        parent: number(fields[1]).ok_or_else(broken)?,
        root: unescape(fields[3]).into(),
        mount_point: unescape(fields[4]).into(),
        options: text(fields[5]).ok_or_else(broken)?.split(',').map(str::to_owned).collect(),
        fstype: text(fstype).ok_or_else(broken)?,
        source: unescape(source),
    })
}

/// Blanks, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = if first == b'\\' { tail.get(..3).and_then(from_octal) } else { None };
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}

fn from_octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn line_with_optional_fields_and_escapes_is_read() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let entry = parse_line(line).unwrap();
        assert_eq!((entry.id, entry.parent), (36, 35));
        assert_eq!(entry.root, Path::new("/mnt1"));
        assert_eq!(entry.mount_point, Path::new("/mnt 2"));
        assert_eq!(entry.options, ["rw", "noatime"]);
        assert_eq!((entry.fstype.as_str(), entry.source.to_str().unwrap()), ("ext3", "/dev/root"));
    }

    #[test]
    fn broken_lines_are_errors() {
        for line in ["x", "1 2 3 4 5 6 7 8", "a 2 0:1 / / rw - t s o", "1 2 0:1 / / rw - t s"] {
            assert!(parse_mount_table(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn own_table_is_read() {
        assert!(!mounts_below(Path::new("/")).unwrap().is_empty());
    }

    /// As the kernel writes paths (seq_path with its escape set).
    fn escape(path: &[u8]) -> Vec<u8> {
        let mut escaped = Vec::new();
        for &byte in path {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
                other => escaped.push(other),
            }
        }
        escaped
    }

    proptest! {
        #[test]
        fn any_path_survives_the_table(path in proptest::collection::vec(1_u8.., 1..64), id: u32) {
            let mut line = format!("{id} 1 0:1 / ").into_bytes();
            line.extend(escape(&path));
            line.extend(b" ro shared:1 - tmpfs none rw");
            let entry = parse_line(&line).unwrap();
            prop_assert_eq!(entry.mount_point.as_os_str().as_bytes(), path.as_slice());
            prop_assert_eq!(entry.id, u64::from(id));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse_mount_table(&text);
        }
    }
}
