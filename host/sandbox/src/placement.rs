//! Which of the host's processors and memory nodes a VM may use: those of its containers. Pure.
//!
//! A guest has processors of its own, whose numbers say nothing of the host's. So what a container
//! asks for is kept on the host, for the VM as a whole, and is not the guest's matter.

use std::collections::BTreeMap;

use kata_linux::id_list::{IdList, IdListError};
use oci_spec::runtime::LinuxResources;
use thiserror::Error;

/// The processors' names: in the resources' `cpu`, and in `unified`.
const PROCESSORS: [&str; 2] = ["cpus", "cpuset.cpus"];

/// The same of the memory nodes.
const NODES: [&str; 2] = ["mems", "cpuset.mems"];

/// A list of processors or memory nodes that is none.
#[derive(Debug, Error)]
#[error("the resources' `{field}` is wrong")]
pub struct PlacementError {
    field: String,
    source: IdListError,
}

/// Where something may run; `None` for anywhere, and in an update for where it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The processors, by their numbers on the host.
    pub processors: Option<IdList>,
    /// The memory nodes, by their numbers on the host.
    pub nodes: Option<IdList>,
}

impl Placement {
    /// What a container asks for: in `cpu`, or by the names of a cgroup's files in `unified`, which
    /// count if both are there. Empty lists are none.
    ///
    /// # Errors
    ///
    /// When one is no list.
    pub fn of(resources: &LinuxResources) -> Result<Self, PlacementError> {
        let cpu = resources.cpu().as_ref();
        let list = |[name, file]: [&str; 2], plain: Option<&String>| {
            let unified = resources.unified().as_ref().and_then(|files| files.get(file));
            let text = unified.or(plain).map_or("", String::as_str);
            match text.parse() {
                Ok(list) => Ok(Some(list).filter(|list: &IdList| !list.is_empty())),
                Err(source) => {
                    let plain = format!("cpu.{name}");
                    let field = unified.map_or(plain, |_| format!("unified.{file}"));
                    Err(PlacementError { field, source })
                }
            }
        };
        let processors = list(PROCESSORS, cpu.and_then(|cpu| cpu.cpus().as_ref()))?;
        let nodes = list(NODES, cpu.and_then(|cpu| cpu.mems().as_ref()))?;
        Ok(Self { processors, nodes })
    }

    /// The same, taken out of the resources: nothing of it is the guest's matter.
    ///
    /// # Errors
    ///
    /// As [`Placement::of`].
    pub fn take_from(resources: &mut LinuxResources) -> Result<Self, PlacementError> {
        let placement = Self::of(resources)?;
        if let Some(cpu) = resources.cpu_mut() {
            cpu.set_cpus(None).set_mems(None);
        }
        if let Some(files) = resources.unified_mut() {
            files.retain(|file, _| file != PROCESSORS[1] && file != NODES[1]);
        }
        Ok(placement)
    }

    pub(crate) fn is_anywhere(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the containers of one VM may run.
#[derive(Debug)]
pub(crate) struct Placements {
    /// The container for which the VM was made.
    first: String,
    all: BTreeMap<String, Placement>,
}

impl Placements {
    /// Nobody's yet.
    pub(crate) fn new(first: &str) -> Self {
        Self { first: first.to_owned(), all: BTreeMap::new() }
    }

    /// Adds a container.
    pub(crate) fn add(&mut self, container: &str, placement: Placement) {
        self.all.insert(container.to_owned(), placement);
    }

    /// Changes what is named anew. Returns what a container had before; `None` for one that is not
    /// here, of which nothing is taken note.
    pub(crate) fn update(&mut self, container: &str, new: Placement) -> Option<Placement> {
        let held = self.all.get_mut(container)?;
        let before = held.clone();
        held.processors = new.processors.or(held.processors.take());
        held.nodes = new.nodes.or(held.nodes.take());
        Some(before)
    }

    /// Makes a container's what it was before, if it is still here.
    pub(crate) fn restore(&mut self, container: &str, before: Placement) {
        if let Some(held) = self.all.get_mut(container) {
            *held = before;
        }
    }

    /// Forgets a container.
    pub(crate) fn forget(&mut self, container: &str) {
        self.all.remove(container);
    }

    /// Where the VM may run: where any of its containers may. One that may run anywhere is not held
    /// back by another, but for the first one of several, which may be nothing but what a pod hangs
    /// on: nobody says so of Podman's.
    pub(crate) fn together(&self) -> Placement {
        let several = self.all.len() > 1;
        let counts = |(id, one): &(&String, &Placement)| {
            !(several && **id == self.first && one.is_anywhere())
        };
        let counting: Vec<_> = self.all.iter().filter(counts).map(|(_, one)| one).collect();
        let all = |list: fn(&Placement) -> Option<&IdList>| {
            let mut lists = counting.iter().copied().map(list);
            let first = lists.next().flatten().cloned();
            lists.fold(first, |sum, list| Some(sum?.or(list?)))
        };
        Placement {
            processors: all(|one| one.processors.as_ref()),
            nodes: all(|one| one.nodes.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resources(cpu: &serde_json::Value) -> LinuxResources {
        serde_json::from_value(json!({ "cpu": cpu })).unwrap()
    }

    fn placement(processors: &str, nodes: &str) -> Placement {
        Placement::of(&resources(&json!({ "cpus": processors, "mems": nodes }))).unwrap()
    }

    #[test]
    fn lists_are_the_hosts_and_nothing_of_them_stays() {
        let mut all = resources(&json!({ "cpus": "2-3", "mems": "0", "quota": 5000 }));
        let taken = Placement::take_from(&mut all).unwrap();
        assert_eq!(taken, placement("2-3", "0"));
        assert_eq!(all, resources(&json!({ "quota": 5000 })));
        assert_eq!(Placement::of(&LinuxResources::default()).unwrap(), Placement::default());
        assert_eq!(placement("", ""), Placement::default());
    }

    #[test]
    fn lists_by_the_names_of_files_are_the_same() {
        let both = json!({
            "cpu": { "cpus": "0" }, "unified": { "cpuset.cpus": "1-2", "cpuset.mems": "1", "memory.high": "9" },
        });
        let mut both: LinuxResources = serde_json::from_value(both).unwrap();
        assert_eq!(Placement::take_from(&mut both).unwrap(), placement("1-2", "1"));
        let left = json!({ "cpu": {}, "unified": { "memory.high": "9" } });
        assert_eq!(both, serde_json::from_value(left).unwrap());
    }

    #[test]
    fn wrong_list_is_told_with_its_name() {
        let error = Placement::of(&resources(&json!({ "mems": "one" }))).unwrap_err();
        assert_eq!(
            kata_log::chain(&error),
            "the resources' `cpu.mems` is wrong: `one` is no list like `0-3,8`, of numbers up to 8191"
        );
    }

    #[test]
    fn vm_runs_where_any_of_its_containers_may() {
        let mut all = Placements::new("pod");
        assert_eq!(all.together(), Placement::default());
        all.add("a", placement("0", "0"));
        assert_eq!(all.together(), placement("0", "0"));
        all.add("b", placement("2", ""));
        assert_eq!(all.together(), placement("0,2", ""));
        assert_eq!(all.update("b", placement("3", "")), Some(placement("2", "")));
        assert_eq!(all.together(), placement("0,3", ""));
        assert!(all.update("b", placement("", "1")).is_some());
        assert_eq!(all.together(), placement("0,3", "0-1"));
        all.forget("b");
        all.add("c", Placement::default());
        assert_eq!(all.together(), Placement::default());
        all.forget("c");
        all.restore("a", placement("1", ""));
        assert_eq!(all.together(), placement("1", ""));
    }

    #[test]
    fn container_that_is_not_here_has_no_say() {
        let mut all = Placements::new("pod");
        all.add("a", placement("0", ""));
        assert_eq!(all.update("pod", Placement::default()), None);
        all.restore("gone", Placement::default());
        assert_eq!(all.together(), placement("0", ""));
    }

    #[test]
    fn what_a_pod_hangs_on_holds_it_nowhere() {
        let mut all = Placements::new("infra");
        all.add("infra", Placement::default());
        assert_eq!(all.together(), Placement::default());
        all.add("a", placement("1", ""));
        assert_eq!(all.together(), placement("1", ""));
        all.update("infra", placement("0", ""));
        assert_eq!(all.together(), placement("0-1", ""));
    }
}
