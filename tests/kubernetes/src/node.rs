//! A node of a cluster, as far as its runtime is concerned.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    Configuration, Containerd, Daemon, Deadline, Image, Installation, Runtime, Scenario,
};
use protobuf::Message;
use serde_json::json;

use crate::grpc::Service;
use crate::messages::{Nothing, RemovePodSandboxRequest, StopPodSandboxRequest};
use crate::pod::PodPlan;

/// Containerd's settings for pods. A pause container does nothing but wait for the pod's end. Where
/// root may not lower the score of a process for the kernel's OOM killer, runc would fail.
const PLUGIN: &str = r#"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/kata-e2e/pause:latest"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{directory}/cni"
"#;

/// The same in the words of containerd 2.
const PLUGINS_OF_2: &str = r#"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/kata-e2e/pause:latest"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{directory}/cni"
"#;

/// What the engine says when it was asked soon after its start.
const NOT_YET: &str = "server is not initialized yet";

/// A containerd that speaks CRI, and whoever speaks with it.
#[derive(Debug)]
pub struct Node<'a> {
    containerd: &'a Containerd,
    runtime: Service,
    // Locked only to add one or take one.
    pods: Mutex<Vec<String>>,
}

/// Runs `test` on a node of its own, and checks that nothing but pods is left.
pub fn node(test: impl FnOnce(&Node<'_>) -> Result<()>) -> Result<()> {
    node_with(Daemon::of_this_machine(), test)
}

/// As [`node`], with another release of containerd.
pub fn node_with(daemon: Daemon, test: impl FnOnce(&Node<'_>) -> Result<()>) -> Result<()> {
    node_of(Scenario::new(), daemon, test)
}

/// As [`node`], whose pods all have this hypervisor.
pub fn node_under(hypervisor: &str, test: impl FnOnce(&Node<'_>) -> Result<()>) -> Result<()> {
    let chosen = format!("[runtime]\nhypervisor_name = \"{hypervisor}\"\n");
    let configuration = Configuration::with(&chosen)?;
    let scenario = Scenario::new().configuration(&configuration.file());
    node_of(scenario, Daemon::of_this_machine(), test)
}

fn node_of(
    scenario: Scenario,
    daemon: Daemon,
    test: impl FnOnce(&Node<'_>) -> Result<()>,
) -> Result<()> {
    let (plugins, example) = if daemon.version()?.contains(" 1.") {
        (PLUGIN, "containerd-1.toml")
    } else {
        (PLUGINS_OF_2, "containerd-2.toml")
    };
    let example = Installation::under_test().example(example);
    let example = fs::read_to_string(&example)
        .with_context(|| format!("cannot read {}", example.display()))?;
    // The fixture says the version, too.
    let tables: Vec<_> = example.lines().filter(|line| !line.starts_with("version")).collect();
    let scenario = scenario.daemon(daemon).for_kubernetes();
    scenario.plugins(plugins).plugins(&tables.join("\n")).run(|containerd| {
        let pause = json!(["sleep", "100000"]);
        containerd.import(&Image::busybox_with("pause", &[("Cmd", pause)]))?;
        let runtime = Service::at(&containerd.address(), "runtime.v1.RuntimeService")?;
        test(&Node { containerd, runtime, pods: Mutex::default() })
    })
}

impl<'a> Node<'a> {
    /// A pod to be.
    pub fn pod(&'a self, name: &str) -> PodPlan<'a> {
        PodPlan::new(self, name)
    }

    /// The engine.
    #[must_use]
    pub fn containerd(&self) -> &'a Containerd {
        self.containerd
    }

    /// Knows of a pod that runs, so that it goes with the test.
    pub(crate) fn has(&self, id: &str) {
        self.containerd.answer_for(id);
        self.pods().push(id.to_owned());
    }

    /// Stops a pod with all of its containers, and removes it.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        self.pods().retain(|pod| pod != id);
        let pod_sandbox_id = id.to_owned();
        let stop = StopPodSandboxRequest { pod_sandbox_id, ..Default::default() };
        self.call::<Nothing>("StopPodSandbox", &stop)?;
        let pod_sandbox_id = id.to_owned();
        let remove = RemovePodSandboxRequest { pod_sandbox_id, ..Default::default() };
        self.call::<Nothing>("RemovePodSandbox", &remove).map(drop)
    }

    fn pods(&self) -> MutexGuard<'_, Vec<String>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime under test, by the name that the engine knows.
    pub(crate) fn handler() -> &'static str {
        match Runtime::under_test() {
            Runtime::Kata => "kata",
            Runtime::Runc => "runc",
        }
    }

    /// Calls a method of the CRI's runtime service, again while the engine is still looking for its
    /// pods. The error is the engine's.
    pub(crate) fn call<Answer: Message>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<Answer> {
        let deadline = Deadline::for_command();
        loop {
            let answer = self.runtime.call(method, request, deadline.remaining());
            match &answer {
                Err(error) if format!("{error:#}").contains(NOT_YET) => {
                    ensure!(!deadline.remaining().is_zero(), "{error:#}");
                }
                _ => return answer,
            }
        }
    }
}

impl Drop for Node<'_> {
    /// A test that has failed shall not leave its pods' networks to the next one.
    fn drop(&mut self) {
        let pods = std::mem::take(&mut *self.pods());
        for pod in pods {
            if let Err(error) = self.remove(&pod) {
                eprintln!("pod {pod} is left: {error:#}");
            }
        }
    }
}
