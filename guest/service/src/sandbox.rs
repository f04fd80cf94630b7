//! The sandbox: what its containers share, and which there are.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use kata_guest_container::namespaces::SharedNamespaces;

use crate::container::Container;
use crate::status::{invalid, not_found, refuse};
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
            Some(container) => drop(self.containers.insert(id.to_owned(), Some(container))),
            None => drop(self.containers.remove(id)),
        }
    }

    /// Forgets a container.
    pub(crate) fn remove(&mut self, id: &str) {
        self.containers.remove(id);
    }

    /// The namespaces for one more container, which shares process ids with the first one if it or
    /// the sandbox wants that. The first one has its own.
    ///
    /// # Errors
    ///
    /// FAILED_PRECONDITION when the first container's have gone with it.
    pub(crate) fn namespaces_for(&self, shares_pids: bool) -> ttrpc::Result<SharedNamespaces> {
        let mut namespaces = self.namespaces.clone();
        let is_first = !self.containers.values().any(Option::is_some);
        if !shares_pids && !self.shares_pids {
            namespaces.pid = None;
        } else if namespaces.pid.is_none() && !is_first {
            let text = "the container is to share process ids with the sandbox's first one, which has ended";
            return Err(refuse(ttrpc::Code::FAILED_PRECONDITION, text));
        }
        Ok(namespaces)
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
        assert_eq!(sandbox.namespaces_for(true).unwrap().pid, None, "the first has its own");
        let pid = PathBuf::from("/run/pid");
        sandbox.namespaces.pid = Some(pid.clone());
        assert_eq!(sandbox.namespaces_for(true).unwrap().pid, Some(pid.clone()));
        assert_eq!(sandbox.namespaces_for(false).unwrap().pid, None);
        sandbox.shares_pids = true;
        assert_eq!(sandbox.namespaces_for(false).unwrap().pid, Some(pid));
    }
}
