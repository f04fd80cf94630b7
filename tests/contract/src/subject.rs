//! What is tested: a driver, and what it boots.

use std::env;
use std::path::PathBuf;

use kata_e2e::Installation;
use kata_hypervisor::Hypervisor;

/// A driver with a guest.
#[derive(Debug)]
pub struct Subject {
    pub(crate) hypervisor: Box<dyn Hypervisor>,
    pub(crate) guest: Guest,
}

/// Files that a guest is made of, whether they are used or not.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    /// With an ext4 file system.
    pub(crate) image: PathBuf,
    /// Whether there is a kernel that could panic, and answer to a ping.
    pub(crate) has_kernel: bool,
}

impl Subject {
    /// The driver with the installed guest.
    #[must_use]
    pub fn new(hypervisor: Box<dyn Hypervisor>) -> Self {
        let installed = Installation::under_test();
        let guest = Guest {
            kernel: installed.kernel(),
            initrd: installed.initrd(),
            image: installed.image(),
            has_kernel: true,
        };
        Self { hypervisor, guest }
    }

    /// The driver with a guest that is an agent and nothing below it.
    #[must_use]
    pub fn without_kernel(mut self) -> Self {
        self.guest.has_kernel = false;
        self
    }
}

/// A VMM's program, or another of its maker's, where `PATH` leads to it; else a sentence that says
/// so.
pub fn program_on_path(name: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut programs = env::split_paths(&path).map(|directory| directory.join(name));
    programs.find(|program| program.is_file()).ok_or_else(|| format!("no `{name}` on PATH"))
}
