//! Which tests run, with which hypervisor.

use std::ffi::OsStr;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kata_e2e::{GuestKernel, Installation};
use tempfile::TempDir;

use crate::filter::{Filter, name};
use crate::selections::{Choice, TABLE, inabilities};
use crate::tests_of::TestBinary;

/// What a round's tests run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    /// QEMU.
    Qemu,
    /// The one of this project.
    Krun,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker by itself.
    Firecracker,
    /// Firecracker in its jailer's cell.
    Jailer,
    /// What the runtime chooses by itself.
    Chosen,
}

impl Hypervisor {
    /// All of them, in the order in which tables have them.
    pub(crate) const ALL: [Self; 6] = [
        Self::Qemu,
        Self::Krun,
        Self::CloudHypervisor,
        Self::Firecracker,
        Self::Jailer,
        Self::Chosen,
    ];
}

/// As people call it.
impl Display for Hypervisor {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "QEMU",
            Self::Krun => "krun",
            Self::CloudHypervisor => "Cloud Hypervisor",
            Self::Firecracker => "Firecracker",
            Self::Jailer => "Firecracker's jailer",
            Self::Chosen => "krun or QEMU",
        })
    }
}

/// Tests that run with one configuration.
#[derive(Debug)]
pub struct Round {
    /// What they run with.
    pub hypervisor: Hypervisor,
    /// Whether no test of a file is left out that may run.
    whole: bool,
    filter: Filter,
    /// The configuration file.
    configuration: PathBuf,
    /// The VMM's programs, if they are not a part of what is tested.
    programs: Vec<PathBuf>,
}

/// All rounds that can be on a machine with KVM. Those that cannot are told of.
#[derive(Debug)]
pub struct Rounds {
    rounds: Vec<Round>,
    /// The configuration files.
    directory: TempDir,
}

impl Rounds {
    /// Docker and Podman with what the runtime chooses by itself, on a machine where guests boot
    /// fast enough for all that is known of them.
    pub fn of_engines() -> Result<Self> {
        let directory = directory()?;
        let configuration = configured(&directory, "auto", "auto", "")?;
        let round = Round { whole: true, ..Round::new(Hypervisor::Chosen, configuration) };
        Ok(Self { rounds: vec![round], directory })
    }

    /// Those with Cloud Hypervisor and Firecracker are among them where their programs are found in
    /// `search_path`, a list as in `PATH`.
    pub fn with_programs_of(search_path: Option<&OsStr>) -> Result<Self> {
        let directory = directory()?;
        let configured =
            |file: &str, name: &str, lines: &str| configured(&directory, file, name, lines);
        // What takes longest is first, so that no machine stands idle while another one ends.
        let mut rounds = vec![
            Round::new(Hypervisor::Chosen, configured("auto", "auto", "")?),
            Round::new(Hypervisor::Qemu, configured("qemu", "qemu", "")?),
            Round::new(Hypervisor::Krun, configured("krun", "krun", "")?),
        ];
        let find = |program| find(program, search_path);
        match find("cloud-hypervisor") {
            Some(program) => {
                let path = format!("[hypervisor.clh]\npath = \"{}\"\n", program.display());
                let configuration = configured("clh", "clh", &path)?;
                let round = Round::new(Hypervisor::CloudHypervisor, configuration);
                rounds.push(Round { programs: vec![program], ..round });
            }
            None => println!(
                "skipped: all tests with Cloud Hypervisor, for `cloud-hypervisor` is not on PATH"
            ),
        }
        match (find("firecracker"), find("jailer")) {
            (Some(program), jailer) => {
                let path = format!("[hypervisor.firecracker]\npath = \"{}\"\n", program.display());
                let programs: Vec<_> = [program].into_iter().chain(jailer.clone()).collect();
                let configuration = configured("firecracker", "firecracker", &path)?;
                let round = Round::new(Hypervisor::Firecracker, configuration);
                rounds.push(Round { programs: programs.clone(), ..round });
                let Some(jailer) = jailer else {
                    println!("skipped: all tests with the jailer, for `jailer` is not on PATH");
                    return Ok(Self { rounds, directory });
                };
                let path = format!("{path}jailer_path = \"{}\"\n", jailer.display());
                let configuration = configured("jailer", "firecracker", &path)?;
                let round = Round::new(Hypervisor::Jailer, configuration);
                rounds.push(Round { programs, ..round });
            }
            (None, _) => {
                println!("skipped: all tests with Firecracker, for `firecracker` is not on PATH");
            }
        }
        Ok(Self { rounds, directory })
    }

    /// Leaves out what a filter does not name.
    #[must_use]
    pub fn only(mut self, filter: &Filter) -> Self {
        for round in &mut self.rounds {
            round.filter = filter.clone();
        }
        self.rounds.retain(|round| round.files(true).next().is_some());
        self
    }

    /// The rounds in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Round> {
        self.rounds.iter()
    }

    /// Tells what would run, a line each, as a test harness does; `all` as for
    /// [`Rounds::binaries`].
    pub fn list(&self, all: bool) {
        let mut count = 0;
        for round in self.iter() {
            for (file, _) in round.files(all) {
                println!("{}: test", name(file, round.hypervisor));
                count += 1;
            }
        }
        println!("{count} tests");
    }

    /// The names of all test binaries, once each. With `all`, also of those that otherwise run by
    /// hand only.
    #[must_use]
    pub fn binaries(&self, all: bool) -> Vec<&'static str> {
        let files = |round: &Round| round.files(all).map(|(name, _)| name).collect::<Vec<_>>();
        let mut names: Vec<_> = self.iter().flat_map(files).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The files and directories beside the test binaries that a machine must have; `all` as for
    /// [`Rounds::binaries`].
    #[must_use]
    pub fn files(&self, all: bool) -> Vec<PathBuf> {
        let mut files =
            vec![Installation::under_test().prefix().to_owned(), self.directory.path().to_owned()];
        files.push(GuestKernel::Small.vmlinux());
        if all {
            let of = |kernel: GuestKernel| [kernel.vmlinux(), kernel.vmlinuz(), kernel.initrd()];
            let guests = [GuestKernel::Small, GuestKernel::Distribution].map(of);
            files.extend(guests.into_iter().flatten().filter(|file| file.exists()));
        }
        files.extend(self.iter().flat_map(|round| round.programs.clone()));
        files.sort();
        files.dedup();
        files
    }
}

impl Round {
    fn new(hypervisor: Hypervisor, configuration: PathBuf) -> Self {
        let filter = Filter::default();
        Self { hypervisor, whole: false, filter, configuration, programs: Vec::new() }
    }

    /// The test files that have something to run, and what of each; nothing named is all of it.
    fn files(
        &self,
        all: bool,
    ) -> impl Iterator<Item = (&'static str, &'static [&'static str])> + use<> {
        let (hypervisor, all) = (self.hypervisor, all || self.whole);
        let filter = self.filter.clone();
        let named = TABLE.iter().filter(move |row| filter.takes(row.file, hypervisor));
        named.filter_map(move |row| match row.choice(hypervisor) {
            Choice::Whole => Some((row.file, [].as_slice())),
            Choice::Only(tests, _) => Some((row.file, if all { &[] } else { tests })),
            Choice::ByHand(_) => all.then_some((row.file, [].as_slice())),
            Choice::Never(_) => None,
        })
    }

    /// The commands for a shell, each with the name of its test binary. With `all` no test of a
    /// binary is left out. `patience` is by how much deadlines are longer than on this machine,
    /// `threads` how many tests of a binary run at a time.
    pub fn commands<'a>(
        &'a self,
        binaries: &'a [TestBinary],
        all: bool,
        patience: u32,
        threads: u32,
    ) -> impl Iterator<Item = (&'static str, String)> + 'a {
        self.files(all).map(move |(name, tests)| {
            let binary = binaries.iter().find(|binary| binary.name == name);
            let path = binary.map_or(Path::new(name), |binary| &binary.path).display();
            let left_out = inabilities(name, self.hypervisor).map(|one| one.test);
            let left_out = left_out.flat_map(|test| ["--skip", test]);
            let tests: Vec<_> = left_out.chain(tests.iter().copied()).collect();
            let tests = tests.join(" ");
            let environment = self.environment(patience);
            (name, format!("{environment} '{path}' --test-threads={threads} {tests}"))
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
        let directory = self.programs.first().and_then(|program| program.parent());
        words.extend(directory.map(|directory| format!("PATH=\"{}:$PATH\"", directory.display())));
        words.join(" ")
    }
}

fn directory() -> Result<TempDir> {
    tempfile::tempdir().context("cannot make a directory for configurations")
}

/// A configuration file that chooses the hypervisor `name`, with further lines.
fn configured(directory: &TempDir, file: &str, name: &str, lines: &str) -> Result<PathBuf> {
    let file = directory.path().join(format!("{file}.toml"));
    fs::write(&file, format!("[runtime]\nhypervisor_name = \"{name}\"\n{lines}"))
        .context("cannot write a configuration")?;
    Ok(file)
}

fn find(program: &str, search_path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(search_path?)
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
            rounds.iter().map(|round| round.hypervisor.to_string()).collect::<Vec<_>>(),
            ["krun or QEMU", "QEMU", "krun"]
        );
        assert!(!rounds.binaries(true).contains(&"program"));
        let has_more = |name: &&'static str| !rounds.binaries(false).contains(name);
        assert!(rounds.binaries(true).iter().any(has_more), "nothing is run by hand");
    }

    #[test]
    fn only_what_is_named_is_built_and_runs() {
        let only = |part: &str| {
            let filter = Filter::of([part.to_owned()]).unwrap();
            let rounds = Rounds::with_programs_of(None).unwrap().only(&filter);
            let commands = |round: &Round| round.commands(&[], true, 1, 1).collect::<Vec<_>>();
            let runs: usize = rounds.iter().map(|round| commands(round).len()).sum();
            (rounds.binaries(true), runs)
        };
        assert_eq!(only("lifecycle"), (vec!["lifecycle"], 2));
        assert_eq!(only("lifecycle with krun"), (vec!["lifecycle"], 1));
        assert_eq!(only("no such file"), (vec![], 0));
    }

    #[test]
    fn jailer_has_a_round_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let rounds = || Rounds::with_programs_of(Some(directory.path().as_os_str())).unwrap();
        let names = |rounds: &Rounds| {
            rounds.iter().skip(3).map(|round| round.hypervisor.to_string()).collect::<Vec<_>>()
        };
        let (vmm, jailer) = (directory.path().join("firecracker"), directory.path().join("jailer"));
        fs::write(&vmm, "").unwrap();
        assert_eq!(names(&rounds()), ["Firecracker"]);
        fs::write(&jailer, "").unwrap();
        let rounds = rounds();
        assert_eq!(names(&rounds), ["Firecracker", "Firecracker's jailer"]);
        let files = rounds.files(false);
        assert!(files.contains(&vmm) && files.contains(&jailer), "{files:?}");
        let of = |round: &Round| fs::read_to_string(&round.configuration).unwrap();
        let text = of(rounds.iter().last().unwrap());
        assert!(text.contains("jailer_path = ") && text.contains("path = "), "{text}");
    }

    #[test]
    fn program_that_is_there_is_configured_and_taken_along() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("cloud-hypervisor");
        fs::write(&program, "").unwrap();
        let rounds = Rounds::with_programs_of(Some(directory.path().as_os_str())).unwrap();
        assert!(rounds.files(false).contains(&program));
        let round = rounds.iter().last().unwrap();
        let text = fs::read_to_string(&round.configuration).unwrap();
        assert!(text.contains(&format!("path = \"{}\"", program.display())), "{text}");
        let binaries = [TestBinary { name: "kill".to_owned(), path: "/t/kill-1".into() }];
        let commands: Vec<_> = round.commands(&binaries, false, 4, 1).collect();
        let (_, kill) = commands.iter().find(|(name, _)| *name == "kill").unwrap();
        assert!(kill.contains("KATA_E2E_CONFIG='") && kill.contains("'/t/kill-1'"), "{kill}");
        assert!(kill.ends_with("vmm_is_killed_while_busy vmm_is_killed_while_it_boots"), "{kill}");
    }

    #[test]
    fn what_a_hypervisor_cannot_do_is_left_out_of_everything() {
        let rounds = Rounds::with_programs_of(None).unwrap();
        let hooks = |round: &Round| {
            let mut commands = round.commands(&[], true, 1, 1);
            commands.find(|(name, _)| *name == "hooks").map(|(_, command)| command)
        };
        let skips: Vec<_> = rounds.iter().filter_map(hooks).collect();
        assert!(!skips[0].contains("--skip"), "QEMU can: {skips:?}");
        assert!(skips[1].ends_with("--skip network_of_a_hook_is_the_containers"), "{skips:?}");
    }
}
