//! Loads the kernel modules that the initrd brings, in the order of its list.
//!
//! The image builder has resolved the dependencies, so the guest needs no depmod data and no
//! modprobe: `/etc/kata-modules` names one module per line as an absolute path, optionally followed
//! by its parameters. A loaded module's file is removed, for in an initramfs it is memory.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Where the image builder leaves the list.
pub const LIST: &str = "/etc/kata-modules";

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The list is there but cannot be read.
    #[error("cannot read the module list {path}; rebuild the initrd")]
    ReadList {
        /// The list.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The list names a file that is not there.
    #[error("kernel module {path} of the initrd's list cannot be opened; rebuild the initrd")]
    Open {
        /// The module.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused it, most often because it was built for another kernel.
    #[error("the kernel refused module {path}; build the initrd for the kernel that is booted")]
    Load {
        /// The module.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// One line of the list.
#[derive(Debug, PartialEq, Eq)]
struct Module<'a> {
    path: &'a Path,
    parameters: &'a str,
}

/// Lines without an absolute path (comments, blanks) are skipped.
fn parse(list: &str) -> impl Iterator<Item = Module<'_>> {
    list.lines().map(str::trim).filter(|line| line.starts_with('/')).map(|line| {
        let (path, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        Module { path: Path::new(path), parameters: parameters.trim() }
    })
}

/// Loads every module of `list` in order, and removes its file. A missing list means that the
/// kernel has everything built in. A module that is already loaded is no error.
///
/// # Errors
///
/// Fails at the first module that cannot be loaded; those before it stay loaded.
pub fn load_all(list: &Path) -> Result<(), ModuleError> {
    let text = match std::fs::read_to_string(list) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ModuleError::ReadList { path: list.to_owned(), source }),
    };
    for module in parse(&text) {
        load(&module)?;
        // Only memory is lost if this fails, for example on a read-only image.
        let _ = std::fs::remove_file(module.path);
    }
    Ok(())
}

fn load(module: &Module<'_>) -> Result<(), ModuleError> {
    let path = module.path;
    let file =
        File::open(path).map_err(|source| ModuleError::Open { path: path.to_owned(), source })?;
    let parameters = CString::new(module.parameters).expect("lines of a text have no NUL");
    match rustix::system::finit_module(&file, &parameters, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(ModuleError::Load { path: path.to_owned(), source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_list_keeps_order_and_parameters() {
        let list = "# made by kata-image\n\n/lib/virtio.ko\n/lib/fuse.ko  max=3 debug=1 \nfuse\n";
        let modules: Vec<_> = parse(list).collect();
        assert_eq!(
            modules,
            [
                Module { path: Path::new("/lib/virtio.ko"), parameters: "" },
                Module { path: Path::new("/lib/fuse.ko"), parameters: "max=3 debug=1" },
            ]
        );
    }

    #[test]
    fn load_all_without_list_is_nothing_to_do() {
        assert!(load_all(Path::new("/nonexistent/kata-modules")).is_ok());
    }

    #[test]
    fn load_all_names_the_missing_module() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list");
        std::fs::write(&list, "/nonexistent/virtio.ko\n").unwrap();
        let error = load_all(&list).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/virtio.ko"), "{error}");
    }
}
