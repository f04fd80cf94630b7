//! The runtimes that run the containers, and where the one under test is installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// What runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The one under test.
    Kata,
    /// The reference.
    Runc,
}

impl Runtime {
    /// The runtime under test: kata, unless `KATA_E2E_RUNTIME` says `runc` to test the tests.
    ///
    /// # Panics
    /// When the variable names another one.
    #[must_use]
    pub fn under_test() -> Self {
        match std::env::var("KATA_E2E_RUNTIME").as_deref() {
            Err(_) | Ok("kata") => Self::Kata,
            Ok("runc") => Self::Runc,
            Ok(other) => panic!("KATA_E2E_RUNTIME={other}: must be kata or runc"),
        }
    }

    /// Its name for containerd.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kata => "io.containerd.kata.v2",
            Self::Runc => "io.containerd.runc.v2",
        }
    }
}

/// Whether the runtime under test runs VMs. If not, says that `what` is left out.
#[must_use]
pub fn only_a_vm(what: &str) -> bool {
    let vm = Runtime::under_test() == Runtime::Kata;
    if !vm {
        eprintln!("left out, for runc has no VM: {what}");
    }
    vm
}

/// The programs under test.
#[derive(Debug, Clone)]
pub struct Installation {
    prefix: PathBuf,
}

impl Installation {
    /// The one under `KATA_E2E_PREFIX`, else the one that `make` has staged in this checkout.
    #[must_use]
    pub fn under_test() -> Self {
        let staged = || checkout().join("build/stage/usr/local");
        let prefix = std::env::var_os("KATA_E2E_PREFIX").map_or_else(staged, PathBuf::from);
        Self { prefix }
    }

    /// The directory that all of it is in.
    #[must_use]
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Where its programs for users are.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.prefix.join("bin")
    }

    /// A `PATH` on which its programs come first, then those in `further`, then the machine's.
    pub(crate) fn search_path(&self, further: Option<&Path>) -> OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [self.bin()].into_iter().chain(further.map(Path::to_owned));
        std::env::join_paths(folders.chain(std::env::split_paths(&path))).unwrap_or(path)
    }

    /// Where its other programs are.
    #[must_use]
    pub fn libexec(&self) -> PathBuf {
        self.prefix.join("libexec/kata-containers")
    }

    /// Where the guest's kernel and initial ramdisk are.
    #[must_use]
    pub fn assets(&self) -> PathBuf {
        self.prefix.join("share/kata-containers")
    }

    /// The example for one engine, as it is installed.
    #[must_use]
    pub fn example(&self, name: &str) -> PathBuf {
        self.prefix.join("share/doc/kata-containers/examples").join(name)
    }

    /// The shim.
    #[must_use]
    pub fn shim(&self) -> PathBuf {
        self.bin().join("containerd-shim-kata-v2")
    }

    /// The guest's kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.assets().join("vmlinux.container")
    }

    /// The guest's initial ramdisk.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.assets().join("kata-containers-initrd.img")
    }

    /// The guest's rootfs image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.assets().join("kata-containers.img")
    }

    /// An error that names the first file that is missing.
    pub fn check(&self) -> Result<()> {
        for file in [self.shim(), self.kernel(), self.initrd()] {
            let shown = file.display();
            ensure!(file.exists(), "there is no {shown}; run `make`, or set KATA_E2E_PREFIX");
        }
        Ok(())
    }
}

/// The guest kernels that `make` and `make kernel` have built in this checkout, each in a directory
/// with the initial ramdisk that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKernel {
    /// The small one, which has everything built in.
    Small,
    /// The distribution's, whose drivers are modules.
    Distribution,
}

impl GuestKernel {
    /// Its uncompressed form.
    #[must_use]
    pub fn vmlinux(self) -> PathBuf {
        self.directory().join("vmlinux.container")
    }

    /// Its compressed form (bzImage).
    #[must_use]
    pub fn vmlinuz(self) -> PathBuf {
        self.directory().join("vmlinuz.container")
    }

    /// Its initial ramdisk.
    #[must_use]
    pub fn initrd(self) -> PathBuf {
        self.directory().join("kata-containers-initrd.img")
    }

    fn directory(self) -> PathBuf {
        let name = match self {
            Self::Small => "small",
            Self::Distribution => "distribution",
        };
        checkout().join("build/guest").join(name)
    }
}

/// The agent as it is installed for guests.
#[must_use]
pub fn guest_agent() -> PathBuf {
    Installation::under_test().assets().join("guest/kata-agent")
}

/// The builder of guest assets as `make` has built it.
#[must_use]
pub fn kata_image() -> PathBuf {
    target().join("release/kata-image")
}

/// `make` in this checkout, to be run: `target`, on what was built there, with the directory `root`
/// for the file system's root.
#[must_use]
pub fn make(target: &str, root: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("--directory").arg(checkout()).arg(target);
    make.arg(format!("DESTDIR={}", root.display()));
    // It may be a `make` that runs the tests, and its options are not meant for this one.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("MFLAGS");
    make
}

fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    target.map_or_else(|| checkout().join("target"), PathBuf::from)
}

/// The top folder of this checkout.
#[must_use]
pub fn checkout() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this crate is two folders down")
}
