//! The guest as a whole: before its first container and after its last.

use kata_agent_api::types::FSGroupChangePolicy;
use kata_agent_api::{BootStamps, agent};

use crate::client::request;
use crate::{AgentClient, AgentError};

/// How the guest is prepared for containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestSandbox {
    /// The sandbox's id.
    pub id: String,
    /// The guest's host name; empty leaves it.
    pub hostname: String,
    /// The lines of the guest's resolv.conf(5); none leaves it.
    pub dns: Vec<String>,
    /// What to mount for all containers, in this order.
    pub storages: Vec<GuestStorage>,
    /// Whether containers may share one PID namespace.
    pub shared_pid_namespace: bool,
    /// Modules to load first, each as a name followed by its parameters: `e1000e EEE=1`.
    pub kernel_modules: Vec<String>,
    /// The guest's directory of hooks for every container; empty is none.
    pub guest_hook_path: String,
}

/// Something to mount in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestStorage {
    /// The kind of storage, e.g. `virtio-fs`, `blk`, `ephemeral`, `local`.
    pub driver: String,
    /// Options of the driver.
    pub driver_options: Vec<String>,
    /// What to mount in the driver's terms, e.g. a mount tag or a PCI path.
    pub source: String,
    /// The file system's type.
    pub fstype: String,
    /// Mount options.
    pub options: Vec<String>,
    /// An absolute path in the guest.
    pub mount_point: String,
    /// The group that is to own the files; `None` leaves them.
    pub group: Option<GuestStorageGroup>,
    /// Whether several containers use it.
    pub shared: bool,
}

/// The group that is to own a storage's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestStorageGroup {
    /// The group's number.
    pub id: u32,
    /// Whether to skip the change when the root directory has the group already.
    pub only_on_mismatch: bool,
}

impl AgentClient {
    /// Prepares the guest. Must be called once, before there are containers. Tells what the guest
    /// says of its boot; `None` from an agent that says nothing, which every other one does.
    pub async fn create_sandbox(
        &self,
        sandbox: &GuestSandbox,
    ) -> Result<Option<BootStamps>, AgentError> {
        let message = agent::CreateSandboxRequest {
            hostname: sandbox.hostname.clone(),
            dns: sandbox.dns.clone(),
            storages: sandbox.storages.iter().map(storage_message).collect(),
            sandbox_pidns: sandbox.shared_pid_namespace,
            sandbox_id: sandbox.id.clone(),
            guest_hook_path: sandbox.guest_hook_path.clone(),
            kernel_modules: sandbox.kernel_modules.iter().filter_map(|m| module(m)).collect(),
            ..Default::default()
        };
        let answer = request!(self, agent.create_sandbox, "CreateSandbox", message)?;
        let stamps = BootStamps::of_answer(&answer);
        if stamps.is_some() {
            self.knows_additions();
        }
        Ok(stamps)
    }

    /// Ends the sandbox. The guest stops by itself afterwards; it may do so before it answers,
    /// which is [`AgentError::Disconnected`].
    pub async fn destroy_sandbox(&self) -> Result<(), AgentError> {
        let message = agent::DestroySandboxRequest::new();
        request!(self, agent.destroy_sandbox, "DestroySandbox", message).map(drop)
    }
}

pub(crate) fn storage_message(storage: &GuestStorage) -> agent::Storage {
    let group = storage.group.map(|group| agent::FSGroup {
        group_id: group.id,
        group_change_policy: if group.only_on_mismatch {
            FSGroupChangePolicy::OnRootMismatch.into()
        } else {
            FSGroupChangePolicy::Always.into()
        },
        ..Default::default()
    });
    agent::Storage {
        driver: storage.driver.clone(),
        driver_options: storage.driver_options.clone(),
        source: storage.source.clone(),
        fstype: storage.fstype.clone(),
        options: storage.options.clone(),
        mount_point: storage.mount_point.clone(),
        fs_group: group.into(),
        shared: storage.shared,
        ..Default::default()
    }
}

/// `None` for a blank line.
fn module(line: &str) -> Option<agent::KernelModule> {
    let mut words = line.split_whitespace().map(str::to_owned);
    Some(agent::KernelModule {
        name: words.next()?,
        parameters: words.collect(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_has_a_name_and_parameters() {
        let e1000e = module(" e1000e InterruptThrottleRate=3000,3000 EEE=1 ").unwrap();
        assert_eq!(e1000e.name, "e1000e");
        assert_eq!(e1000e.parameters, ["InterruptThrottleRate=3000,3000", "EEE=1"]);
        assert!(module("overlay").unwrap().parameters.is_empty());
        assert_eq!(module("  "), None);
    }
}
