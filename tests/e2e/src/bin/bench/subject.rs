//! The runtimes under containerd that are compared.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kata_e2e::{Containerd, Run, Runtime};

use crate::metric::Subject;

/// How runsc is called. containerd's shim for runc drives it, since Debian's package has no shim of
/// its own. Without a network namespace there is no network to give to it, and ptrace is the
/// platform that needs nothing of the host.
const RUNSC: &str = "#!/bin/sh\nexec runsc --platform=ptrace --network=none \"$@\"\n";

/// The runtimes that work here.
#[derive(Debug)]
pub(crate) struct Subjects<'a> {
    containerd: &'a Containerd,
    /// How it is called, or why it does not work here.
    runsc: Result<PathBuf, String>,
    configurations: &'a Configurations,
}

/// What sandboxes are configured with.
#[derive(Debug)]
pub(crate) struct Configurations {
    /// The defaults, with the memory and the assets that were asked for.
    pub(crate) under_test: PathBuf,
    /// The same memory, with the distribution's kernel and its initial ramdisk.
    pub(crate) distribution: PathBuf,
    /// As under test, with a template, which is there; `None` where the guest boots from an image,
    /// of which there is none.
    pub(crate) template: Option<PathBuf>,
}

impl<'a> Subjects<'a> {
    /// Finds out whether runsc works here.
    pub(crate) fn find(
        containerd: &'a Containerd,
        configurations: &'a Configurations,
    ) -> Result<Self> {
        let script = write_script(containerd.directory())?;
        let mut subjects = Self { containerd, runsc: Ok(script), configurations };
        let version = subjects.run(Subject::Distribution, &["cat", "/proc/version"]).output()?;
        ensure!(version.text().contains("Debian"), "not the distribution's kernel: {version}");
        let probe = subjects.run(Subject::Runsc, &["true"]).output()?;
        if let Err(error) = probe.clone().success() {
            let said = probe.error_text();
            let why = if said.trim().is_empty() { error.to_string() } else { said };
            subjects.runsc = Err(why);
        }
        Ok(subjects)
    }

    /// What kata's sandboxes are configured with unless they are to differ.
    pub(crate) fn configuration(&self) -> &Path {
        &self.configurations.under_test
    }

    /// Why there is no runsc among those that are compared.
    pub(crate) fn without_runsc(&self) -> Option<&str> {
        self.runsc.as_ref().err().map(String::as_str)
    }

    /// Those that run containers.
    pub(crate) fn runtimes(&self) -> Vec<Subject> {
        let mut all = vec![Subject::Kata, Subject::Runc];
        all.extend(self.runsc.is_ok().then_some(Subject::Runsc));
        all
    }

    /// Whether guests can go on from a template.
    pub(crate) fn has_template(&self) -> bool {
        self.configurations.template.is_some()
    }

    pub(crate) fn containerd(&self) -> &'a Containerd {
        self.containerd
    }

    /// A container to be under `subject`; for the distribution's kernel, one under kata with it.
    pub(crate) fn run(&self, subject: Subject, command: &[&str]) -> Run<'a> {
        let run = self.containerd.run(command.iter().copied());
        match (subject, &self.runsc) {
            (Subject::Runsc, Ok(script)) => {
                run.under(Runtime::Runc).option("--runc-binary", &script.display().to_string())
            }
            (Subject::Runc | Subject::Runsc, _) => run.under(Runtime::Runc),
            (Subject::Kata | Subject::Floor | Subject::Distribution | Subject::Template, _) => {
                let Configurations { under_test, distribution, template } = self.configurations;
                let file = match (subject, template) {
                    (Subject::Distribution, _) => distribution,
                    (Subject::Template, Some(template)) => template,
                    _ => under_test,
                };
                let file = file.display().to_string();
                run.under(Runtime::Kata).option("--runtime-config-path", &file)
            }
        }
    }
}

fn write_script(directory: &Path) -> Result<PathBuf> {
    let script = directory.join("runsc");
    fs::write(&script, RUNSC)
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", script.display()))?;
    Ok(script)
}

/// What `work` yields, and how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed()))
}
