//! Which tests run, with which hypervisor.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kata_e2e::{GuestKernel, Installation};
use tempfile::TempDir;

use crate::tests_of::TestBinary;

/// A test binary's name, and what of it runs: all, if nothing is named.
type Selection = (&'static str, &'static [&'static str]);

/// A nested guest boots in about ten seconds, so these are the few that show the whole path: the accelerator and channel that are
/// used, a container's life, a pod, an end by violence.
const QEMU: &[Selection] = &[
    ("acceleration", &[]),
    ("hotplug", &["processors_that_come_later_are_switched_on"]),
    ("hypervisors", &[]),
    ("lifecycle", &["detached_container_lives_until_it_is_killed"]),
    ("pods", &["members_of_a_pod_share_a_vm_and_nothing_else"]),
    ("kill", &["vmm_is_killed_while_busy"]),
];

/// And for the others, which run nowhere else, what differs from QEMU: streams over another channel, other devices for networks and images,
/// another file server, another way to stand still.
const KRUN: &[Selection] = &[
    (
        "lifecycle",
        &["detached_container_lives_until_it_is_killed", "paused_container_stands_still"],
    ),
    ("integrity", &["half_closed_input_reaches_the_process"]),
    (
        "network",
        &[
            "container_has_the_network_of_its_namespace",
            "interface_that_comes_before",
            "pod_has_two_interfaces",
        ],
    ),
    ("assets", IMAGES),
    ("mounts", &["bind_mounts_are_shared_both_ways"]),
    ("pods", &["members_of_a_pod_share_a_vm_and_nothing_else"]),
    (
        "kill",
        &["vmm_is_killed_while_busy", "vmm_is_killed_while_it_boots", "shim_is_killed_while_idle"],
    ),
];

const CLOUD_HYPERVISOR: &[Selection] = &[
    (
        "lifecycle",
        &["detached_container_lives_until_it_is_killed", "paused_container_stands_still"],
    ),
    ("integrity", &["stream_through_exec_comes_back_whole"]),
    ("network", &["container_has_the_network_of_its_namespace", "interface_that_comes_before"]),
    ("assets", IMAGES),
    ("kill", &["vmm_is_killed_while_busy", "vmm_is_killed_while_it_boots"]),
    ("program", &[]),
];

const IMAGES: &[&str] = &["checked_image_boots", "image_that_was_tampered_with"];

/// Tests that run with one configuration.
#[derive(Debug)]
pub struct Round {
    /// The hypervisor, as people call it.
    pub hypervisor: &'static str,
    selections: &'static [Selection],
    /// The configuration file.
    configuration: PathBuf,
    /// The VMM's program, if it is not a part of what is tested.
    program: Option<PathBuf>,
}

/// All rounds that can be on a machine with KVM. Those that cannot are told of.
#[derive(Debug)]
pub struct Rounds {
    rounds: Vec<Round>,
    /// The configuration files.
    directory: TempDir,
}

impl Rounds {
    /// Cloud Hypervisor's is one of them where its program is found in `search_path`, a list as in `PATH`.
    pub fn with_programs_of(search_path: Option<OsString>) -> Result<Self> {
        let directory =
            tempfile::tempdir().context("cannot make a directory for configurations")?;
        let named = |name: &str, lines: &str| {
            let file = directory.path().join(format!("{name}.toml"));
            fs::write(&file, format!("[runtime]\nhypervisor_name = \"{name}\"\n{lines}"))
                .context("cannot write a configuration")?;
            anyhow::Ok(file)
        };
        let qemu = Round {
            hypervisor: "QEMU",
            selections: QEMU,
            configuration: named("qemu", "")?,
            program: None,
        };
        let krun = Round {
            hypervisor: "krun",
            selections: KRUN,
            configuration: named("krun", "")?,
            program: None,
        };
        let mut rounds = vec![qemu, krun];
        match find("cloud-hypervisor", search_path) {
            Some(program) => {
                let path = format!("[hypervisor.clh]\npath = \"{}\"\n", program.display());
                rounds.push(Round {
                    hypervisor: "Cloud Hypervisor",
                    selections: CLOUD_HYPERVISOR,
                    configuration: named("clh", &path)?,
                    program: Some(program),
                });
            }
            None => println!(
                "skipped: all tests with Cloud Hypervisor, for `cloud-hypervisor` is not on PATH"
            ),
        }
        Ok(Self { rounds, directory })
    }

    /// The rounds in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Round> {
        self.rounds.iter()
    }

    /// The names of all test binaries, once each.
    #[must_use]
    pub fn binaries(&self) -> Vec<&'static str> {
        let mut names: Vec<_> =
            self.iter().flat_map(|round| round.selections.iter().map(|(name, _)| *name)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The files and directories beside the test binaries that a machine must have.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files =
            vec![Installation::under_test().prefix().to_owned(), self.directory.path().to_owned()];
        files.push(GuestKernel::Small.vmlinux());
        files.extend(self.iter().filter_map(|round| round.program.clone()));
        files
    }
}

impl Round {
    /// The commands for a shell, each with the name of its test binary. With `all` no test of a binary is left out. `patience` is by how
    /// much deadlines are longer than on this machine.
    pub fn commands<'a>(
        &'a self,
        binaries: &'a [TestBinary],
        all: bool,
        patience: u32,
    ) -> impl Iterator<Item = (&'static str, String)> + 'a {
        self.selections.iter().map(move |(name, tests)| {
            let binary = binaries.iter().find(|binary| binary.name == *name);
            let path = binary.map_or(Path::new(name), |binary| &binary.path).display();
            let tests = if all { String::new() } else { tests.join(" ") };
            let environment = self.environment(patience);
            (*name, format!("{environment} '{path}' --test-threads=1 {tests}"))
        })
    }

    fn environment(&self, patience: u32) -> String {
        let installation = Installation::under_test();
        let mut words = vec![
            format!("KATA_E2E_PREFIX='{}'", installation.prefix().display()),
            format!("KATA_E2E_CONFIG='{}'", self.configuration.display()),
            format!("KATA_E2E_PATIENCE={patience}"),
            format!("KATA_TEST_KERNEL='{}'", installation.kernel().display()),
            format!("KATA_TEST_INITRD='{}'", installation.initrd().display()),
        ];
        let directory = self.program.as_ref().and_then(|program| program.parent());
        words.extend(directory.map(|directory| format!("PATH=\"{}:$PATH\"", directory.display())));
        words.join(" ")
    }
}

fn find(program: &str, search_path: Option<OsString>) -> Option<PathBuf> {
    let path = search_path?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypervisor_that_is_not_there_has_no_round() {
        let rounds = Rounds::with_programs_of(None).unwrap();
        assert_eq!(
            rounds.iter().map(|round| round.hypervisor).collect::<Vec<_>>(),
            ["QEMU", "krun"]
        );
        assert!(!rounds.binaries().contains(&"program"));
    }

    #[test]
    fn program_that_is_there_is_configured_and_taken_along() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("cloud-hypervisor");
        fs::write(&program, "").unwrap();
        let rounds = Rounds::with_programs_of(Some(directory.path().into())).unwrap();
        assert!(rounds.files().contains(&program));
        let round = rounds.iter().last().unwrap();
        let text = fs::read_to_string(&round.configuration).unwrap();
        assert!(text.contains(&format!("path = \"{}\"", program.display())), "{text}");
        let binaries = [TestBinary { name: "kill".to_owned(), path: "/t/kill-1".into() }];
        let commands: Vec<_> = round.commands(&binaries, false, 4).collect();
        let (_, kill) = commands.iter().find(|(name, _)| *name == "kill").unwrap();
        assert!(kill.contains("KATA_E2E_CONFIG='") && kill.contains("'/t/kill-1'"), "{kill}");
        assert!(kill.ends_with("vmm_is_killed_while_busy vmm_is_killed_while_it_boots"), "{kill}");
    }
}
