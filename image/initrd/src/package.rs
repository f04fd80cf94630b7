//! A distribution's kernel package (.deb), read without dpkg: a Unix archive whose member
//! `data.tar.*` holds the files.
//!
//! Debian ships a kernel as one package up to 13 and as several from 14 on, with the kernel below
//! `/boot` or beside its modules, and the modules below `/lib` or `/usr/lib`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object::read::archive::ArchiveFile;

use crate::compression;

/// Why a kernel package cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The file cannot be read.
    #[error("cannot read the kernel package {}", path.display())]
    Read {
        /// The package's file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is not a .deb.
    #[error("{} is not a Debian package", path.display())]
    NotADeb {
        /// The package's file.
        path: PathBuf,
    },
    /// The list of files in the package is damaged.
    #[error("the contents of the kernel package {} are damaged", path.display())]
    Damaged {
        /// The package's file.
        path: PathBuf,
        /// What went wrong when unpacking.
        source: io::Error,
    },
    /// The packages together lack a part that is needed.
    #[error(
        "the kernel packages hold no {part}; pass every package of the kernel (from Debian 14 on \
         these are linux-binary-*, linux-modules-* and linux-base-*)"
    )]
    Incomplete {
        /// The missing part.
        part: &'static str,
    },
    /// The packages are of different kernels.
    #[error("the kernel packages are of different kernels: {first} and {second}")]
    Mixed {
        /// One kernel's release.
        first: String,
        /// Another's.
        second: String,
    },
}

/// A kernel and its modules, in memory, as its packages ship them.
#[derive(Debug, Default)]
pub struct KernelPackage {
    release: String,
    vmlinuz: Vec<u8>,
    modules: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
    insists_on_signatures: bool,
}

/// A module's file as it is in the package, possibly compressed.
#[derive(Debug)]
pub(crate) struct Module {
    /// Where it lies below `/lib/modules/<release>/`, without a compression's suffix.
    pub(crate) path: String,
    /// The file's bytes.
    pub(crate) data: Vec<u8>,
}

impl KernelPackage {
    /// Reads the package files that together ship one kernel.
    ///
    /// # Errors
    /// When a file cannot be read or is no .deb, or when the kernel, its modules or the list of
    /// built-in modules is missing.
    pub fn open(paths: &[PathBuf]) -> Result<Self, PackageError> {
        let mut package = Self::default();
        for path in paths {
            package.add(path)?;
        }
        let missing = |part| Err(PackageError::Incomplete { part });
        if package.vmlinuz.is_empty() {
            return missing("kernel image (vmlinuz)");
        }
        if package.modules.is_empty() {
            return missing("modules (*.ko)");
        }
        if package.builtin.is_empty() {
            return missing("list of built-in modules (modules.builtin)");
        }
        Ok(package)
    }

    /// The kernel's release, as `uname -r` would print it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The kernel image (bzImage) as shipped.
    #[must_use]
    pub fn vmlinuz(&self) -> &[u8] {
        &self.vmlinuz
    }

    /// The module of this name (with underscores), if it ships as a file.
    pub(crate) fn module(&self, name: &str) -> Option<&Module> {
        self.modules.get(name)
    }

    /// Whether the module of this name (with underscores) is part of the kernel itself.
    pub(crate) fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(name)
    }

    /// Whether the kernel refuses modules without a signature (CONFIG_MODULE_SIG_FORCE).
    pub(crate) fn insists_on_signatures(&self) -> bool {
        self.insists_on_signatures
    }

    fn add(&mut self, path: &Path) -> Result<(), PackageError> {
        let file = std::fs::read(path)
            .map_err(|source| PackageError::Read { path: path.to_owned(), source })?;
        let data =
            data_member(&file).ok_or_else(|| PackageError::NotADeb { path: path.to_owned() })?;
        let damaged = |source| PackageError::Damaged { path: path.to_owned(), source };
        let mut archive = tar::Archive::new(compression::decompressed(data).map_err(damaged)?);
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let Some((release, part)) = classify(&path) else { continue };
            self.belongs_to(release)?;
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(damaged)?;
            match part {
                Part::Kernel => self.vmlinuz = content,
                Part::BuiltinList => {
                    let list = String::from_utf8_lossy(&content);
                    self.builtin.extend(list.lines().map(module_name));
                }
                Part::Config => {
                    let config = String::from_utf8_lossy(&content);
                    self.insists_on_signatures =
                        config.lines().any(|line| line == "CONFIG_MODULE_SIG_FORCE=y");
                }
                Part::Module(path) => {
                    let module = Module { path: path.to_owned(), data: content };
                    self.modules.insert(module_name(path), module);
                }
            }
        }
        Ok(())
    }

    fn belongs_to(&mut self, release: &str) -> Result<(), PackageError> {
        if self.release.is_empty() {
            release.clone_into(&mut self.release);
        }
        if self.release == release {
            return Ok(());
        }
        Err(PackageError::Mixed { first: self.release.clone(), second: release.to_owned() })
    }
}

/// The files of a .deb as a plain tar archive.
///
/// # Errors
/// When this is not a .deb, or its compression is damaged at the start.
pub fn package_contents<'a>(deb: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
    let data = data_member(deb).ok_or_else(|| io::Error::other("is not a Debian package"))?;
    compression::decompressed(data)
}

/// The member of a .deb that holds its files.
fn data_member(deb: &[u8]) -> Option<&[u8]> {
    let archive = ArchiveFile::parse(deb).ok()?;
    let member = archive
        .members()
        .filter_map(Result::ok)
        .find(|member| member.name().starts_with(b"data.tar"))?;
    member.data(deb).ok()
}

/// A file of a kernel package that matters here.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Kernel,
    Config,
    BuiltinList,
    /// A module and its path below the directory of its release, without a compression's suffix.
    Module(&'a str),
}

/// What a file of a package is, and the kernel release that its path names.
fn classify(path: &str) -> Option<(&str, Part<'_>)> {
    let path = path.trim_start_matches("./").trim_start_matches('/');
    if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
        return Some((release, Part::Kernel));
    }
    if let Some(release) = path.strip_prefix("boot/config-") {
        return Some((release, Part::Config));
    }
    let path = path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")?;
    let (release, file) = path.split_once('/')?;
    let part = match file {
        "vmlinuz" => Part::Kernel,
        "config" => Part::Config,
        "modules.builtin" => Part::BuiltinList,
        _ => Part::Module(module_path(file)?),
    };
    Some((release, part))
}

/// The path of a module without a compression's suffix; `None` for other files.
fn module_path(file: &str) -> Option<&str> {
    ["", ".xz", ".zst", ".gz"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix).filter(|path| path.ends_with(".ko")))
}

/// The name by which the kernel knows the module in the file at `path`: it takes - for _.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A package of the given modules (name, modinfo `depends`) and built-ins.
    pub(crate) fn package(modules: &[(&str, &str)], builtin: &[&str]) -> KernelPackage {
        let module = |&(name, depends): &(&str, &str)| {
            let path = format!("kernel/{name}.ko");
            (name.to_owned(), Module { path, data: crate::modinfo::tests::module(depends) })
        };
        KernelPackage {
            release: "6.1.0".to_owned(),
            vmlinuz: Vec::new(),
            modules: modules.iter().map(module).collect(),
            builtin: builtin.iter().map(|&name| name.to_owned()).collect(),
            insists_on_signatures: false,
        }
    }

    #[test]
    fn classify_knows_the_layouts_of_debian_12_13_and_14() {
        let cases = [
            ("./boot/vmlinuz-6.1.0", Some(("6.1.0", Part::Kernel))),
            ("./boot/config-6.1.0", Some(("6.1.0", Part::Config))),
            ("./usr/lib/modules/7.2/config", Some(("7.2", Part::Config))),
            ("./usr/lib/modules/7.2/vmlinuz", Some(("7.2", Part::Kernel))),
            ("./lib/modules/6.1.0/modules.builtin", Some(("6.1.0", Part::BuiltinList))),
            (
                "./lib/modules/6.1.0/kernel/fs/fuse/virtiofs.ko",
                Some(("6.1.0", Part::Module("kernel/fs/fuse/virtiofs.ko"))),
            ),
            (
                "./usr/lib/modules/6.12/kernel/drivers/char/virtio-rng.ko.xz",
                Some(("6.12", Part::Module("kernel/drivers/char/virtio-rng.ko"))),
            ),
            ("./lib/modules/6.1.0/modules.order", None),
            ("./lib/modules/6.1.0/kernel/", None),
            ("./usr/share/doc/linux/changelog.gz", None),
        ];
        for (path, expected) in cases {
            assert_eq!(classify(path), expected, "{path}");
        }
    }

    #[test]
    fn module_name_has_underscores_and_no_suffix() {
        assert_eq!(module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz"), "virtio_rng");
    }

    #[test]
    fn open_of_something_else_says_that_it_is_no_package() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello").unwrap();
        let error = KernelPackage::open(&[file.path().to_owned()]).unwrap_err();
        assert!(matches!(error, PackageError::NotADeb { .. }), "{error}");
    }

    #[test]
    fn open_of_no_packages_says_what_is_missing() {
        let error = KernelPackage::open(&[]).unwrap_err();
        assert!(error.to_string().contains("vmlinuz"), "{error}");
    }
}
