//! What is measured, of whom, and the values.

use std::collections::BTreeMap;

use clap::ValueEnum;
use kata_e2e::Summary;
use serde::Serialize;

/// Things that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Group {
    /// One container from `ctr run` to its end, beside the least that a VM can take.
    Start,
    /// Where the time of a start goes, by kata's own timeline.
    Timeline,
    /// A process in a running container.
    Exec,
    /// The end of a running container.
    Stop,
    /// 10 and 20 starts at once.
    Burst,
    /// What an idle sandbox costs.
    Memory,
    /// Files and output.
    Io,
    /// Podman, Docker, and the OCI command line under them.
    Engines,
}

/// Whose value it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Subject {
    /// The VMM with the same machine and kernel, and an init that ends at once.
    Floor,
    /// The same with the distribution's kernel.
    Distribution,
    /// The runtime under test.
    Kata,
    /// The same, with a guest that goes on from a template.
    Template,
    /// The reference.
    Runc,
    /// gVisor.
    Runsc,
}

impl Subject {
    /// The order is that of the colours in the picture.
    pub(crate) const ALL: [Self; 6] =
        [Self::Floor, Self::Distribution, Self::Kata, Self::Runc, Self::Runsc, Self::Template];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Distribution => "distro",
            Self::Kata => "kata",
            Self::Template => "template",
            Self::Runc => "runc",
            Self::Runsc => "runsc",
        }
    }
}

/// One thing that is measured; a row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Metric {
    pub(crate) group: Group,
    /// The row's place in its group.
    order: u8,
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

const fn metric(group: Group, order: u8, name: &'static str, unit: &'static str) -> Metric {
    Metric { group, order, name, unit }
}

pub(crate) const RUN: Metric = metric(Group::Start, 0, "ctr run --rm … true", "s");
pub(crate) const RUN_DISTRIBUTION: Metric =
    metric(Group::Start, 1, "  with the distribution's kernel", "s");
pub(crate) const ONE: Metric = metric(Group::Start, 2, "one start: ready", "s");
pub(crate) const WORK: Metric = metric(Group::Start, 3, "  processor time of its processes", "s");
pub(crate) const BOOT: Metric = metric(Group::Start, 4, "the floor: a bare VM to its end", "s");
pub(crate) const TO_INIT: Metric = metric(Group::Start, 5, "  kernel to init", "s");
pub(crate) const MACHINE: Metric = metric(Group::Timeline, 0, "shim asked to VMM executed", "ms");
pub(crate) const VMM: Metric = metric(Group::Timeline, 1, "VMM executed to kernel", "ms");
pub(crate) const KERNEL: Metric = metric(Group::Timeline, 2, "kernel to init", "ms");
pub(crate) const AGENT: Metric = metric(Group::Timeline, 3, "init to agent reached", "ms");
pub(crate) const CONTAINER: Metric = metric(Group::Timeline, 4, "agent reached to created", "ms");
pub(crate) const PROCESS: Metric = metric(Group::Timeline, 5, "start asked to executed", "ms");
pub(crate) const EXEC: Metric = metric(Group::Exec, 0, "ctr task exec … true", "s");
pub(crate) const STOP: Metric = metric(Group::Stop, 0, "delete --force to last process gone", "s");
pub(crate) const TEN: Metric = metric(Group::Burst, 0, "10 starts at once: last ready", "s");
pub(crate) const TWENTY: Metric = metric(Group::Burst, 1, "20 starts at once: last ready", "s");
pub(crate) const FLOORS: Metric =
    metric(Group::Burst, 2, "a bare VM on each core: the last one's end", "s");
pub(crate) const MANY_KERNEL: Metric = metric(Group::Burst, 3, "10 at once: kernel to init", "ms");
pub(crate) const MANY_AGENT: Metric =
    metric(Group::Burst, 4, "10 at once: init to agent reached", "ms");
pub(crate) const MANY_CONTAINER: Metric =
    metric(Group::Burst, 5, "10 at once: agent reached to created", "ms");
pub(crate) const ALL_PSS: Metric = metric(Group::Memory, 0, "idle sandbox, all of it (PSS)", "MiB");
pub(crate) const REST_PSS: Metric = metric(Group::Memory, 1, "  without the guest's memory", "MiB");
pub(crate) const TOUCHED: Metric = metric(Group::Memory, 2, "  the guest's memory", "MiB");
pub(crate) const VMM_PSS: Metric = metric(Group::Memory, 3, "  VMM without it", "MiB");
pub(crate) const SERVER_PSS: Metric = metric(Group::Memory, 4, "  file server without it", "MiB");
pub(crate) const SHIM_PSS: Metric = metric(Group::Memory, 5, "  shim", "MiB");
pub(crate) const SHIM_RSS: Metric = metric(Group::Memory, 6, "  shim (resident)", "MiB");
pub(crate) const GUEST_USED: Metric =
    metric(Group::Memory, 7, "memory in use in an idle guest", "MiB");
pub(crate) const READ_PSS: Metric =
    metric(Group::Memory, 8, "shim of one whose output is read", "MiB");
pub(crate) const OWNER_PSS: Metric =
    metric(Group::Memory, 9, "kata-proxy of the same by hand", "MiB");
pub(crate) const ROOT_FIRST: Metric = metric(Group::Io, 0, "rootfs: first read", "MB/s");
pub(crate) const ROOT_READ: Metric = metric(Group::Io, 1, "rootfs: read again", "MB/s");
pub(crate) const ROOT_WRITE: Metric = metric(Group::Io, 2, "rootfs: write and sync", "MB/s");
pub(crate) const BIND_READ: Metric = metric(Group::Io, 3, "bind mount: first read", "MB/s");
pub(crate) const BIND_WRITE: Metric = metric(Group::Io, 4, "bind mount: write and sync", "MB/s");
pub(crate) const SMALL: Metric = metric(Group::Io, 5, "200 small files: make, list, remove", "ms");
pub(crate) const STDOUT: Metric = metric(Group::Io, 6, "standard output", "MB/s");
pub(crate) const PODMAN: Metric = metric(Group::Engines, 0, "podman run --rm … true", "s");
pub(crate) const PODMAN_NETWORK: Metric = metric(Group::Engines, 1, "  with its network", "s");
pub(crate) const DOCKER: Metric = metric(Group::Engines, 2, "docker run --rm … true", "s");
pub(crate) const DOCKER_NETWORK: Metric = metric(Group::Engines, 3, "  with its network", "s");
pub(crate) const STATE: Metric = metric(Group::Engines, 4, "kata-runtime state", "ms");
pub(crate) const PROXY_PSS: Metric = metric(Group::Engines, 5, "kata-proxy of Podman", "MiB");
pub(crate) const STAND_IN_PSS: Metric = metric(Group::Engines, 6, "kata-shim of Podman", "MiB");

/// Every metric.
#[cfg(test)]
pub(crate) const ALL: [Metric; 44] = [
    RUN,
    RUN_DISTRIBUTION,
    ONE,
    WORK,
    BOOT,
    TO_INIT,
    MACHINE,
    VMM,
    KERNEL,
    AGENT,
    CONTAINER,
    PROCESS,
    EXEC,
    STOP,
    TEN,
    TWENTY,
    FLOORS,
    MANY_KERNEL,
    MANY_AGENT,
    MANY_CONTAINER,
    ALL_PSS,
    REST_PSS,
    TOUCHED,
    VMM_PSS,
    SERVER_PSS,
    SHIM_PSS,
    SHIM_RSS,
    GUEST_USED,
    READ_PSS,
    OWNER_PSS,
    ROOT_FIRST,
    ROOT_READ,
    ROOT_WRITE,
    BIND_READ,
    BIND_WRITE,
    SMALL,
    STDOUT,
    PODMAN,
    PODMAN_NETWORK,
    DOCKER,
    DOCKER_NETWORK,
    STATE,
    PROXY_PSS,
    STAND_IN_PSS,
];

/// All values, in the order in which they were measured.
#[derive(Debug, Default)]
pub(crate) struct Values {
    values: BTreeMap<(Metric, Subject), Vec<f64>>,
    left_out: Vec<LeftOut>,
}

/// Somebody who could not be measured here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) who: Subject,
    /// In one line.
    pub(crate) why: String,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: left out: {}", self.who.name(), self.why)
    }
}

impl Values {
    pub(crate) fn add(&mut self, metric: Metric, subject: Subject, value: f64) {
        self.values.entry((metric, subject)).or_default().push(value);
    }

    /// Notes that somebody is not measured; `why` may be as long as programs' errors are.
    pub(crate) fn leave_out(&mut self, who: Subject, why: &str) {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        self.left_out.push(LeftOut { who, why });
    }

    /// Who was not measured.
    pub(crate) fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Who was measured, metric by metric.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (Metric, Subject, Summary)> {
        self.values.iter().filter_map(|(&(metric, subject), values)| {
            Some((metric, subject, Summary::of(values)?))
        })
    }

    /// `None` if it was not measured.
    pub(crate) fn median(&self, metric: Metric, subject: Subject) -> Option<f64> {
        Some(Summary::of(self.values.get(&(metric, subject))?)?.median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_by_metric_and_subject() {
        let mut values = Values::default();
        values.add(EXEC, Subject::Runc, 2.0);
        values.add(RUN, Subject::Kata, 1.0);
        values.add(RUN, Subject::Floor, 0.5);
        let rows: Vec<_> =
            values.rows().map(|(metric, subject, _)| (metric.name, subject)).collect();
        assert_eq!(rows[0], (RUN.name, Subject::Floor));
        assert_eq!(rows[2], (EXEC.name, Subject::Runc));
        assert_eq!(values.median(RUN, Subject::Kata), Some(1.0));
        assert_eq!(values.median(RUN, Subject::Runsc), None);
    }
}
