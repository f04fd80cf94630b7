//! The sandbox: what its containers share, and which there are.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_guest_container::namespaces::{PidNamespace, SharedNamespaces};

use crate::container::{Container, Pids};
use crate::status::{Tell, invalid, not_found, refuse};
use crate::storage::Storages;

/// The state behind the service. It is changed only between awaits.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    /// Its id; `None` before CreateSandbox.
    pub(crate) id: Option<String>,
    /// Namespaces that containers share.
    pub(crate) namespaces: SharedNamespaces,
    /// Whether all containers share the first one's pid namespace.
    pub(crate) shares_pids: bool,
    /// What is mounted.
    pub(crate) storages: Storages,
    /// Mount points of the sandbox's own storages.
    pub(crate) own_storages: Vec<PathBuf>,
    /// By id; `None` while one is being made.
    containers: HashMap<String, Option<Arc<Container>>>,
    /// Whether there has been a container with process ids of its own, but for the first one.
    had_own_pids: bool,
}

/// What a container that is about to be made has together with others.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) namespaces: SharedNamespaces,
    pub(crate) pids: Pids,
    /// The paths above lead to it for as long as it is kept.
    _target: Option<PidNamespace>,
}

/// The sandbox, whoever had it before.
pub(crate) fn lock(sandbox: &Mutex<Sandbox>) -> MutexGuard<'_, Sandbox> {
    sandbox.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    /// A container that has been made.
    ///
    /// # Errors
    ///
    /// NOT_FOUND.
    pub(crate) fn container(&self, id: &str) -> ttrpc::Result<Arc<Container>> {
        let found = self.containers.get(id).and_then(Option::as_ref);
        found.cloned().ok_or_else(|| not_found(format!("there is no container {id:?}")))
    }

    /// Takes an id for a container that is about to be made.
    ///
    /// # Errors
    ///
    /// ALREADY_EXISTS, or INVALID_ARGUMENT when there are very many.
    pub(crate) fn reserve(&mut self, id: &str) -> ttrpc::Result<()> {
        /// Far more than a guest can run.
        const MOST: usize = 4096;
        if self.containers.contains_key(id) {
            let text = format!("there is a container {id:?} already");
            return Err(refuse(ttrpc::Code::ALREADY_EXISTS, text));
        }
        if self.containers.len() >= MOST {
            return Err(invalid(format!("there are {MOST} containers already")));
        }
        self.containers.insert(id.to_owned(), None);
        Ok(())
    }

    /// Fills or gives back what [`Sandbox::reserve`] took.
    pub(crate) fn settle(&mut self, id: &str, container: Option<Arc<Container>>) {
        match container {
            Some(container) => {
                self.had_own_pids |= container.pids == Pids::Own;
                self.containers.insert(id.to_owned(), Some(container));
            }
            None => drop(self.containers.remove(id)),
        }
    }

    /// Forgets a container; false if that has been done already, even if another one has its id.
    pub(crate) fn remove(&mut self, container: &Arc<Container>) -> bool {
        let known = self.containers.get(&container.id).and_then(Option::as_ref);
        let is_known = known.is_some_and(|known| Arc::ptr_eq(known, container));
        if is_known {
            self.containers.remove(&container.id);
        }
        is_known
    }

    /// What one more container joins; `is_kubelets` if a kubelet's engine has it made.
    ///
    /// Who `shares_pids` sees those of the sandbox's first container, which has its own. In a pod
    /// of a kubelet's either all do so, or each has its own and one is to look into another
    /// (`kubectl debug --target`). That one is named by a pid, but of a pod's containers each has
    /// the VM's; so it is clear only if there is no more than one.
    ///
    /// # Errors
    ///
    /// FAILED_PRECONDITION when whose process ids it is to share has ended, or when any of several
    /// containers could be meant. If the one that is meant ends at this very moment and one other
    /// is left, that is taken for it.
    pub(crate) fn namespaces_for(
        &self,
        shares_pids: bool,
        is_kubelets: bool,
    ) -> ttrpc::Result<Joined> {
        let mut namespaces = self.namespaces.clone();
        let of_first = namespaces.pid.take();
        let is_first = !self.containers.values().any(Option::is_some);
        if !shares_pids && !self.shares_pids {
            let pids = if is_first { Pids::Sandbox } else { Pids::Own };
            return Ok(Joined { namespaces, pids, _target: None });
        }
        let looks_into_another = is_kubelets && !self.shares_pids && self.had_own_pids;
        let targets = if looks_into_another { self.running_with_own_pids() } else { Vec::new() };
        match &targets[..] {
            [] if looks_into_another => {
                let text = "the container whose process ids it is to share has ended";
                Err(refuse(ttrpc::Code::FAILED_PRECONDITION, text))
            }
            [] if of_first.is_none() && !is_first => {
                let text = "the container is to share process ids with the sandbox's first one, which has ended";
                Err(refuse(ttrpc::Code::FAILED_PRECONDITION, text))
            }
            [] => {
                namespaces.pid = of_first;
                Ok(Joined { namespaces, pids: Pids::Sandbox, _target: None })
            }
            [target] => {
                let namespace = PidNamespace::of(&target.init).map_err(Tell::tell)?;
                namespaces.pid = Some(namespace.path());
                Ok(Joined { namespaces, pids: Pids::Another, _target: Some(namespace) })
            }
            several => Err(refuse(
                ttrpc::Code::FAILED_PRECONDITION,
                format!(
                    "the container is to share the process ids of one of {} others of its pod, and in a VM it cannot be told of which one; set \
                     `shareProcessNamespace` for the pod, or leave out `--target`",
                    several.len()
                ),
            )),
        }
    }

    /// The containers that see their own process ids only and have not ended, but for the first
    /// one.
    fn running_with_own_pids(&self) -> Vec<&Arc<Container>> {
        let runs = |one: &&Arc<Container>| one.pids == Pids::Own && one.init.status().is_none();
        self.containers.values().flatten().filter(runs).collect()
    }

    /// Every container that has been made.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.values().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_takes_an_id_once() {
        let mut sandbox = Sandbox::default();
        sandbox.reserve("a").unwrap();
        assert!(sandbox.reserve("a").is_err());
        assert!(sandbox.container("a").is_err(), "not made yet");
        sandbox.settle("a", None);
        sandbox.reserve("a").unwrap();
    }

    #[test]
    fn process_ids_are_shared_only_on_demand() {
        let mut sandbox = Sandbox::default();
        let joined = |sandbox: &Sandbox, shares| {
            sandbox.namespaces_for(shares, true).unwrap().namespaces.pid
        };
        assert_eq!(joined(&sandbox, true), None, "the first has its own");
        let pid = PathBuf::from("/run/pid");
        sandbox.namespaces.pid = Some(pid.clone());
        assert_eq!(joined(&sandbox, true), Some(pid.clone()));
        assert_eq!(joined(&sandbox, false), None);
        sandbox.shares_pids = true;
        assert_eq!(joined(&sandbox, false), Some(pid));
    }

    #[test]
    fn who_is_to_look_into_a_container_that_is_gone_sees_no_other() {
        let mut sandbox = Sandbox { had_own_pids: true, ..Sandbox::default() };
        sandbox.namespaces.pid = Some(PathBuf::from("/run/pid"));
        let refusal = sandbox.namespaces_for(true, true).unwrap_err().to_string();
        assert!(refusal.contains("has ended"), "{refusal}");
        let joined = |sandbox: &Sandbox, kubelets| {
            sandbox.namespaces_for(true, kubelets).unwrap().namespaces.pid
        };
        assert_eq!(joined(&sandbox, false), sandbox.namespaces.pid, "Podman's may mean the pod's");
        sandbox.shares_pids = true;
        assert_eq!(joined(&sandbox, true), sandbox.namespaces.pid);
    }
}
