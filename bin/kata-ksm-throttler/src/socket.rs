//! The socket that kicks come in at.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tokio::net::UnixListener;

/// The longest path in bytes (unix(7)).
const MAX_PATH: usize = 107;

/// Only root, and whoever is in root's group, may kick.
const MODE: u32 = 0o660;
const DIR_MODE: u32 = 0o750;

/// A bound socket; dropping it removes it, and its directory if nothing else is there.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds it. One that nobody listens at any more is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        let shown = path.display();
        ensure!(path.is_absolute(), "the socket {shown} is not named by an absolute path");
        ensure!(
            path.as_os_str().as_bytes().len() <= MAX_PATH,
            "the socket's path {shown} is longer than {MAX_PATH} bytes"
        );
        let dir = path.parent().context("a socket lies in a directory")?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        remove_stale(path)?;
        let failed = || format!("cannot listen at {shown}");
        let listener = UnixListener::bind(path).with_context(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).with_context(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.with_context(|| format!("cannot look at {}", path.display()))?,
    };
    if !metadata.file_type().is_socket() {
        bail!("{} is there already, and is no socket", path.display());
    }
    if UnixStream::connect(path).is_ok() {
        bail!("somebody listens at {} already; end the other kata-ksm-throttler", path.display());
    }
    fs::remove_file(path).with_context(|| format!("cannot remove the stale {}", path.display()))
}

impl Drop for Socket {
    fn drop(&mut self) {
        // There is nobody to tell at the end; a directory that is not empty is somebody else's too.
        let _ = fs::remove_file(&self.path);
        let _ = self.path.parent().map(fs::remove_dir);
    }
}
