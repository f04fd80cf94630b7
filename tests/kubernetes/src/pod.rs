//! Pods.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kata_e2e::dial_in;

use crate::container::ContainerPlan;
use crate::forward::Forward;
use crate::messages::{
    DNSConfig, NamespaceMode, PodSandboxConfig, PodSandboxMetadata, PodSandboxState,
    PodSandboxStatus, PodSandboxStatusRequest, PodSandboxStatusResponse, PortForwardRequest,
    PortForwardResponse, RunPodSandboxRequest, RunPodSandboxResponse,
};
use crate::node::Node;

/// One RunPodSandbox: what it is told.
#[derive(Debug)]
#[must_use = "it runs only when start is called"]
pub struct PodPlan<'a> {
    node: &'a Node<'a>,
    config: PodSandboxConfig,
}

impl<'a> PodPlan<'a> {
    pub(crate) fn new(node: &'a Node<'a>, name: &str) -> Self {
        let mark = node.containerd().mark();
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("{name}-{mark}"),
            namespace: "default".to_owned(),
            ..Default::default()
        };
        let mut config = PodSandboxConfig {
            metadata: Some(metadata).into(),
            hostname: name.to_owned(),
            log_directory: node.containerd().directory().join(name).display().to_string(),
            ..Default::default()
        };
        let linux = config.linux.mut_or_insert_default();
        // The kubelet makes a cgroup for each pod, and takes it away. This one goes with the
        // fixture.
        linux.cgroup_parent = format!("/ns-{mark}");
        Self { node, config }.pid_namespace(NamespaceMode::CONTAINER)
    }

    /// What the kubelet's directory of the pod is named by.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.uid)
    }

    /// With this DNS server, and this domain to look in.
    pub fn dns(mut self, server: &str, domain: &str) -> Self {
        let (servers, searches) = (vec![server.to_owned()], vec![domain.to_owned()]);
        self.config.dns_config = Some(DNSConfig { servers, searches, ..Default::default() }).into();
        self
    }

    /// With an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Whose containers see each other's processes (`shareProcessNamespace`), or each its own.
    pub fn pid_namespace(mut self, mode: NamespaceMode) -> Self {
        self.config
            .linux
            .mut_or_insert_default()
            .security_context
            .mut_or_insert_default()
            .namespace_options
            .mut_or_insert_default()
            .pid = mode.into();
        self
    }

    /// Which may have privileged containers.
    pub fn privileged(mut self) -> Self {
        let linux = self.config.linux.mut_or_insert_default();
        linux.security_context.mut_or_insert_default().privileged = true;
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Pod<'a>> {
        fs::create_dir_all(&self.config.log_directory).context("cannot make a place for logs")?;
        let request = RunPodSandboxRequest {
            config: Some(self.config.clone()).into(),
            runtime_handler: Node::handler().to_owned(),
            ..Default::default()
        };
        let answer: RunPodSandboxResponse = self.node.call("RunPodSandbox", &request)?;
        self.node.has(&answer.pod_sandbox_id);
        Ok(Pod { node: self.node, config: self.config, id: answer.pod_sandbox_id })
    }
}

/// A pod that runs.
#[derive(Debug)]
pub struct Pod<'a> {
    pub(crate) node: &'a Node<'a>,
    pub(crate) config: PodSandboxConfig,
    pub(crate) id: String,
}

impl<'a> Pod<'a> {
    /// Its id: that of its sandbox.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A container of it to be that runs a shell with `script`.
    pub fn shell(&'a self, name: &str, script: &str) -> ContainerPlan<'a> {
        ContainerPlan::new(self, name, &["sh", "-c", script])
    }

    /// Its address in the cluster.
    pub fn address(&self) -> Result<String> {
        let address = self.status()?.network.ip.clone();
        ensure!(!address.is_empty(), "the pod has no address");
        Ok(address)
    }

    /// Whether the engine takes it for running.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(self.status()?.state == PodSandboxState::SANDBOX_READY.into())
    }

    /// Where a container writes its log.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        PathBuf::from(&self.config.log_directory).join(format!("{name}.log"))
    }

    /// Stops it with all of its containers, and removes it.
    pub fn remove(self) -> Result<()> {
        self.node.remove(&self.id)
    }

    /// Connects to one of its ports, as a kubelet has it done for `kubectl port-forward`.
    pub fn forward(&self, port: u16) -> Result<Forward> {
        let (pod_sandbox_id, port) = (self.id.clone(), vec![port.into()]);
        let request = PortForwardRequest { pod_sandbox_id, port, ..Default::default() };
        let answer: PortForwardResponse = self.node.call("PortForward", &request)?;
        Forward::open(self.node, &answer.url)
    }

    /// Connects to one of its ports as the engine itself does: at 127.0.0.1 of the pod's network
    /// namespace on the host.
    pub fn dial(&self, port: u16) -> Result<TcpStream> {
        let info: serde_json::Value = match self.answer(true)?.info.get("info") {
            Some(info) => serde_json::from_str(info).context("the engine's words are no JSON")?,
            None => bail!("the engine says nothing more of the pod"),
        };
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let network = namespaces.into_iter().flatten().find(|one| one["type"] == "network");
        let path = network.and_then(|network| network["path"].as_str());
        let path = path.context("the pod has no network namespace")?;
        dial_in(Path::new(path), (Ipv4Addr::LOCALHOST, port).into())
    }

    fn status(&self) -> Result<PodSandboxStatus> {
        self.answer(false)?.status.into_option().context("the engine says nothing of the pod")
    }

    fn answer(&self, verbose: bool) -> Result<PodSandboxStatusResponse> {
        let pod_sandbox_id = self.id.clone();
        let request = PodSandboxStatusRequest { pod_sandbox_id, verbose, ..Default::default() };
        self.node.call("PodSandboxStatus", &request)
    }
}
