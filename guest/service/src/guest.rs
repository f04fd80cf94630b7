//! The guest as a whole: sandbox, details, clock, entropy, hotplug.

use std::fs;
use std::io;
use std::path::Path;

use kata_agent_api::agent::{
    AgentDetails, CreateSandboxRequest, GuestDetailsRequest, GuestDetailsResponse,
    OnlineCPUMemRequest,
};
use kata_agent_api::cpu_count;
use kata_guest_container::namespaces::SharedNamespaces;
use kata_guest_setup::{free_memory, hotplug};
use ttrpc::Code;

use crate::agent::Agent;
use crate::status::{Tell, invalid, refuse};
use crate::{VERSION, id, modprobe, storage};

/// The agent's directory in the guest.
const DIRECTORY: &str = "/run/kata-containers";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Longest host name, as sethostname(2) has it.
const MAX_HOSTNAME: usize = 64;

impl Agent {
    /// Prepares the guest for containers.
    pub(crate) async fn create_sandbox(&self, request: CreateSandboxRequest) -> ttrpc::Result<()> {
        if !request.sandbox_id.is_empty() {
            id::check("sandbox", &request.sandbox_id)?;
        }
        if request.hostname.len() > MAX_HOSTNAME {
            return Err(invalid(format!("the host name is longer than {MAX_HOSTNAME} bytes")));
        }
        if !request.guest_hook_path.is_empty() {
            return Err(invalid("this agent runs no guest hooks: leave guest_hook_path empty"));
        }
        {
            let mut sandbox = self.sandbox();
            if sandbox.id.is_some() {
                let text = "this guest has a sandbox already";
                return Err(refuse(Code::ALREADY_EXISTS, text));
            }
            sandbox.id = Some(request.sandbox_id.clone());
        }
        for module in &request.kernel_modules {
            modprobe::load(&self.reaper, module).await?;
        }
        fs::create_dir_all(Path::new(DIRECTORY).join("sandbox")).map_err(Tell::tell)?;
        let namespaces = SharedNamespaces::make(&request.hostname).await.map_err(Tell::tell)?;
        if !request.dns.is_empty() {
            set_dns(&request.dns).map_err(Tell::tell)?;
        }
        storage::await_disks(&request.storages).await?;
        let mut sandbox = self.sandbox();
        sandbox.namespaces = namespaces;
        sandbox.shares_pids = request.sandbox_pidns;
        sandbox.own_storages = sandbox.storages.add(&request.storages)?;
        Ok(())
    }

    /// Switches on CPUs and memory that were added, or CPUs off until there are as many as are
    /// wanted.
    pub(crate) async fn online(&self, request: &OnlineCPUMemRequest) -> ttrpc::Result<()> {
        let patience = self.settings.hotplug_timeout;
        match cpu_count(request) {
            Some(count) => hotplug::keep_cpus(count, patience).await,
            None => hotplug::online_cpus(request.nb_cpus, patience).await,
        }
        .map_err(Tell::tell)?;
        if !request.cpu_only {
            hotplug::online_memory().map_err(Tell::tell)?;
            if self.settings.is_init {
                free_memory::lower_reserve();
            }
        }
        Ok(())
    }

    /// What this guest and this agent can do.
    pub(crate) fn details(&self, request: &GuestDetailsRequest) -> GuestDetailsResponse {
        let mut details = AgentDetails::new();
        VERSION.clone_into(&mut details.version);
        details.init_daemon = self.settings.is_init;
        details.storage_handlers = storage::DRIVERS.map(str::to_owned).to_vec();
        details.supports_seccomp = true;
        details.extra_features = vec!["seccomp".to_owned()];
        let mut response = GuestDetailsResponse::new();
        response.agent_details = Some(details).into();
        if request.mem_block_size {
            response.mem_block_size_bytes = hotplug::memory_block_size().unwrap_or(0);
        }
        if request.mem_hotplug_probe {
            response.support_mem_hotplug_probe = hotplug::has_memory_probe();
        }
        response
    }
}

/// The guest's own resolver configuration; containers get theirs as a mount.
fn set_dns(lines: &[String]) -> io::Result<()> {
    let own = Path::new(DIRECTORY).join("sandbox/resolv.conf");
    let mut text = lines.join("\n");
    text.push('\n');
    fs::write(&own, text)?;
    if !Path::new(RESOLV_CONF).exists() {
        fs::create_dir_all("/etc")?;
        fs::write(RESOLV_CONF, "")?;
    }
    Ok(rustix::mount::mount_bind(own, RESOLV_CONF)?)
}
