//! Files that are copied into the guest instead of being shared.

use kata_agent_api::agent::CopyFileRequest;

use crate::client::request;
use crate::{AgentClient, AgentError};

/// How much of a file one message carries, in bytes.
const PIECE: usize = 1 << 20;

// File types (inode(7)).
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// A file for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestFile<'a> {
    /// Its absolute path in the guest: below the shared directory, or that of copies.
    pub path: &'a str,
    /// Its permission bits.
    pub mode: u32,
    /// The permission bits of directories that are made on the way.
    pub dir_mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What it is.
    pub content: FileContent<'a>,
}

/// What a file for the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileContent<'a> {
    /// A regular file of these bytes.
    Regular(&'a [u8]),
    /// An empty directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(&'a [u8]),
    /// Nothing any more: what is there is to be removed, with all below it. Only this project's
    /// agent does that; another one refuses it.
    Nothing,
}

impl AgentClient {
    /// Copies a file to the guest. A regular file appears when its last piece has arrived; each
    /// piece has the request's deadline.
    pub async fn copy_file(&self, file: GuestFile<'_>) -> Result<(), AgentError> {
        for message in messages(&file) {
            request!(self, agent.copy_file, "CopyFile", message)?;
        }
        Ok(())
    }
}

fn messages<'a>(file: &GuestFile<'a>) -> impl Iterator<Item = CopyFileRequest> + use<'a> {
    let (file_type, data): (u32, &'a [u8]) = match file.content {
        FileContent::Regular(data) => (S_IFREG, data),
        FileContent::Directory => (S_IFDIR, &[]),
        FileContent::Symlink(target) => (S_IFLNK, target),
        FileContent::Nothing => (0, &[]),
    };
    let mode = if file.content == FileContent::Nothing { 0 } else { file.mode & 0o7777 };
    let head = CopyFileRequest {
        path: file.path.to_owned(),
        file_size: data.len() as i64,
        file_mode: file_type | mode,
        dir_mode: file.dir_mode,
        uid: file.uid.cast_signed(),
        gid: file.gid.cast_signed(),
        ..Default::default()
    };
    // Without bytes there is still one message.
    let offsets = (0..data.len().max(1)).step_by(PIECE);
    offsets.map(move |offset| CopyFileRequest {
        offset: offset as i64,
        data: data[offset..data.len().min(offset + PIECE)].to_owned(),
        ..head.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: FileContent<'_>) -> Vec<CopyFileRequest> {
        let file = GuestFile {
            path: "/run/kata-containers/shared/containers/x",
            mode: 0o644,
            dir_mode: 0o755,
            uid: 1,
            gid: 2,
            content,
        };
        messages(&file).collect()
    }

    #[test]
    fn a_file_travels_in_pieces() {
        let data: Vec<u8> = (0..PIECE + 3).map(|n| n as u8).collect();
        let pieces = file(FileContent::Regular(&data));
        assert_eq!(pieces.len(), 2);
        assert!(pieces.iter().all(|piece| piece.file_size == data.len() as i64));
        assert!(pieces.iter().all(|piece| piece.file_mode == 0o100_644));
        assert_eq!(pieces[1].offset, PIECE as i64);
        assert_eq!([&pieces[0].data[..], &pieces[1].data[..]].concat(), data);
    }

    #[test]
    fn what_has_no_bytes_travels_too() {
        let directory = file(FileContent::Directory);
        assert_eq!(directory.len(), 1);
        assert_eq!(directory[0].file_mode, 0o040_644);
        assert_eq!(file(FileContent::Regular(b"")).len(), 1);
        assert_eq!(file(FileContent::Symlink(b"target"))[0].data, b"target");
        assert_eq!(file(FileContent::Nothing)[0].file_mode, 0);
    }
}
