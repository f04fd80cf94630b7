//! The content of the guest's initrd: the agent as the first process, the modules that it loads,
//! and the directories and devices that it needs before it has mounted anything.

use std::collections::BTreeMap;

use object::Object;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{LittleEndian, elf};

use crate::cpio::{Archive, Entry};
use crate::modules::{self, GUEST_MODULES, ModuleError, OPTIONAL_MODULES};
use crate::package::KernelPackage;

/// Where the agent finds the list of modules: an absolute path per line, in the order of loading.
const MODULE_LIST: &str = "etc/kata-modules";

/// Directories that the agent mounts on or writes to, with their permissions.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// Why an initrd cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The agent is not a program for the guest.
    #[error("the agent is not a 64-bit x86 ELF program")]
    NotAProgram,
    /// The agent needs a dynamic loader, which an initrd doesn't have.
    #[error(
        "the agent is linked dynamically, and an initrd has no libraries; build it with \
         RUSTFLAGS=\"-C target-feature=+crt-static\""
    )]
    DynamicAgent,
    /// The modules cannot be gathered.
    #[error("cannot gather the guest's kernel modules")]
    Modules(#[from] ModuleError),
}

/// An initrd with this agent and the guest's modules of this kernel, as an uncompressed cpio
/// archive (which costs no time to unpack). `extra_modules` names modules to add to
/// [`GUEST_MODULES`] and those of [`OPTIONAL_MODULES`] that there are, with - or _. Without a
/// package the kernel has everything built in, and the initrd is the agent alone.
///
/// The same input gives the same bytes.
///
/// # Errors
/// When the agent is not a static program, or a module is missing or damaged.
pub fn build_initrd(
    agent: &[u8],
    package: Option<&KernelPackage>,
    extra_modules: &[String],
) -> Result<Vec<u8>, InitrdError> {
    check_agent(agent)?;
    let modules = match package {
        Some(package) => {
            let there = |name: &&str| package.module(name).is_some();
            let optional = OPTIONAL_MODULES.iter().copied().filter(there);
            let extra = extra_modules.iter().map(String::as_str);
            let wanted = GUEST_MODULES.iter().copied().chain(optional).chain(extra);
            modules::in_load_order(package, wanted)?
        }
        None => Vec::new(),
    };
    let list: String = modules.iter().map(|module| format!("{}\n", module.path)).collect();

    // Sorted, a directory comes before what is in it.
    let mut files = BTreeMap::new();
    for &(path, permissions) in DIRECTORIES {
        files.insert(path, (permissions, Entry::Directory));
    }
    files.insert("init", (0o755, Entry::File(agent)));
    files.insert("sbin/init", (0o777, Entry::Symlink("../init")));
    if !modules.is_empty() {
        files.insert(MODULE_LIST, (0o644, Entry::File(list.as_bytes())));
    }
    // The kernel opens the console for the first process before that can mount anything, and a
    // Rust program that finds its standard streams closed opens /dev/null, or aborts.
    files.insert("dev/console", (0o600, Entry::CharDevice(5, 1)));
    files.insert("dev/null", (0o666, Entry::CharDevice(1, 3)));
    for module in &modules {
        let path = module.path.trim_start_matches('/');
        for (slash, _) in path.match_indices('/') {
            files.insert(&path[..slash], (0o755, Entry::Directory));
        }
        files.insert(path, (0o644, Entry::File(&module.data)));
    }

    let mut archive = Archive::default();
    for (path, (permissions, entry)) in files {
        archive.add(path, permissions, entry);
    }
    Ok(archive.finish())
}

/// Checks that this is a program that runs in a guest without libraries.
///
/// # Errors
/// When it is no 64-bit x86 program, or needs a dynamic loader.
pub fn check_agent(agent: &[u8]) -> Result<(), InitrdError> {
    let file = ElfFile64::<LittleEndian>::parse(agent).map_err(|_| InitrdError::NotAProgram)?;
    if file.architecture() != object::Architecture::X86_64 {
        return Err(InitrdError::NotAProgram);
    }
    let is_interpreter = |segment: &elf::ProgramHeader64<LittleEndian>| {
        segment.p_type(file.endian()) == elf::PT_INTERP
    };
    if file.elf_program_headers().iter().any(is_interpreter) {
        return Err(InitrdError::DynamicAgent);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::read_back;
    use crate::package::tests::package;

    fn kernel() -> KernelPackage {
        let builtin: Vec<&str> =
            GUEST_MODULES.iter().copied().filter(|&name| name != "virtiofs").collect();
        package(&[("virtiofs", ""), ("erofs", "")], &builtin)
    }

    fn agent() -> Vec<u8> {
        crate::modinfo::tests::module("") // an ELF file of the right machine without interpreter
    }

    #[test]
    fn initrd_holds_agent_modules_and_devices_in_order() {
        let initrd = build_initrd(&agent(), Some(&kernel()), &["erofs".to_owned()]).unwrap();
        let entries = read_back(&initrd);
        let paths: Vec<&str> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(
            paths,
            [
                "dev",
                "dev/console",
                "dev/null",
                "etc",
                "etc/kata-modules",
                "init",
                "lib",
                "lib/modules",
                "lib/modules/6.1.0",
                "lib/modules/6.1.0/kernel",
                "lib/modules/6.1.0/kernel/erofs.ko",
                "lib/modules/6.1.0/kernel/virtiofs.ko",
                "proc",
                "run",
                "sbin",
                "sbin/init",
                "sys",
                "tmp",
            ]
        );
        let list = &entries[4].3;
        assert_eq!(
            String::from_utf8_lossy(list),
            "/lib/modules/6.1.0/kernel/virtiofs.ko\n/lib/modules/6.1.0/kernel/erofs.ko\n"
        );
        assert_eq!(entries[5].3, agent());
    }

    #[test]
    fn initrd_of_the_same_input_has_the_same_bytes() {
        let build = || build_initrd(&agent(), Some(&kernel()), &[]).unwrap();
        assert_eq!(build(), build());
    }

    #[test]
    fn initrd_for_a_kernel_without_modules_is_the_agent_alone() {
        let initrd = build_initrd(&agent(), None, &[]).unwrap();
        let files: Vec<String> = read_back(&initrd)
            .into_iter()
            .filter(|(_, mode, ..)| mode & 0o170_000 == 0o100_000)
            .map(|(path, ..)| path)
            .collect();
        assert_eq!(files, ["init"]);
    }

    #[test]
    fn initrd_refuses_a_script_and_a_dynamic_program() {
        let error = build_initrd(b"#!/bin/sh\n", None, &[]).unwrap_err();
        assert!(matches!(error, InitrdError::NotAProgram));
        // This test itself is a dynamically linked program.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = build_initrd(&own, None, &[]).unwrap_err();
        assert!(error.to_string().contains("crt-static"), "{error}");
    }
}
