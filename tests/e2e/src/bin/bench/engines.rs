//! Podman and Docker, and the programs of the OCI command line.

use std::process::Command;

use anyhow::{Context, Result};
use kata_e2e::{Engine, Installation, Part, Process, let_it_settle};

use crate::memory;
use crate::metric::{self, Subject, Values};
use crate::subject::timed;

/// The engines that the runtime is measured under.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Engines<'a> {
    pub(crate) podman: &'a Engine,
    pub(crate) docker: &'a Engine,
}

impl Engines<'_> {
    /// One round.
    pub(crate) fn measure(self, to: &mut Values) -> Result<()> {
        let (podman, docker) = ((self.podman, Flag::BeforeRun), (self.docker, Flag::OfRun));
        for ((engine, flag), network, metric) in [
            (podman, WITHOUT_NETWORK, metric::PODMAN),
            (podman, "", metric::PODMAN_NETWORK),
            (docker, WITHOUT_NETWORK, metric::DOCKER),
            (docker, "", metric::DOCKER_NETWORK),
        ] {
            for subject in [Subject::Kata, Subject::Runc] {
                let words = flag.words(subject.name(), network);
                let (_, took) = timed(|| engine.succeed(&words))?;
                to.add(metric, subject, took.as_secs_f64());
            }
        }
        self.programs(to)
    }

    /// What stands for one idle container.
    fn programs(self, to: &mut Values) -> Result<()> {
        self.podman.start("idle", "--network none", "exec sleep 1000")?;
        let id = self.podman.inspect("idle", "{{.ID}}")?;
        let_it_settle();
        let part = |part| -> Result<Process> {
            let found = self.podman.parts_of("idle", part)?.into_iter().next();
            found.with_context(|| format!("no {part:?}"))
        };
        to.add(metric::PROXY_PSS, Subject::Kata, memory::pss(&part(Part::Proxy)?)?);
        to.add(metric::STAND_IN_PSS, Subject::Kata, memory::pss(&part(Part::StandIn)?)?);
        let mut state = Command::new(Installation::under_test().bin().join("kata-runtime"));
        let (output, took) =
            timed(|| state.args(["state", &id]).output().context("cannot run kata-runtime"))?;
        anyhow::ensure!(output.status.success(), "kata-runtime state has failed: {output:?}");
        to.add(metric::STATE, Subject::Kata, took.as_secs_f64() * 1000.0);
        self.podman.succeed("rm --force --time 0 idle").map(drop)
    }
}

/// As the containers of `ctr` are.
const WITHOUT_NETWORK: &str = "--network none";

/// Where an engine takes the name of a runtime.
#[derive(Debug, Clone, Copy)]
enum Flag {
    BeforeRun,
    OfRun,
}

impl Flag {
    fn words(self, runtime: &str, network: &str) -> String {
        let rest = format!("--rm {network} localhost/busybox true");
        match self {
            Self::BeforeRun => format!("--runtime {runtime} run {rest}"),
            Self::OfRun => format!("run --runtime {runtime} {rest}"),
        }
    }
}
