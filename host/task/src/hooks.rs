//! The host's hooks of a container, where no caller runs them: under a containerd shim.
//!
//! ```text
//!   sandbox is up ─ prestart, createRuntime ─▶ created ─ start ─ poststart ─▶ … deleted ─ poststop
//!                 └ the bundle's file DUE comes                                └ and goes
//! ```
//!
//! The file is what makes poststop run once, whether the shim lives to see the container deleted or
//! has to be cleaned up after.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use kata_hooks::{HookState, HostHooks};
use kata_linux::mount;
use kata_log::chain;
use oci_spec::runtime::Spec;
use tokio::sync::oneshot;
use ttrpc::Code;

use crate::error::Failure;

/// The name in a bundle of the file that says that its poststop hooks have not been run, although
/// others have.
const DUE: &str = "poststop-is-due";

/// The mount namespace that the engine sees, which hooks are run in.
#[derive(Debug, Clone)]
pub(crate) struct EnginesView(Arc<File>);

impl EnginesView {
    /// The calling thread's. To be taken before this process has one of its own.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self(Arc::new(File::open("/proc/thread-self/ns/mnt")?)))
    }

    /// Moves the calling thread there for good.
    fn enter(&self) -> Result<(), mount::MountError> {
        mount::enter_mount_namespace(&self.0)
    }
}

/// One container's hooks, and what they are told of it.
#[derive(Debug)]
pub(crate) struct ContainerHooks {
    hooks: HostHooks,
    id: String,
    oci_version: String,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
}

impl ContainerHooks {
    /// Those of the container `id`; `None` if it has none that are the host's.
    pub(crate) fn of(spec: &Spec, id: &str, bundle: &Path) -> Option<Arc<Self>> {
        let hooks = HostHooks::of(spec);
        (!hooks.is_empty()).then(|| {
            Arc::new(Self {
                hooks,
                id: id.to_owned(),
                oci_version: spec.version().clone(),
                bundle: bundle.to_owned(),
                annotations: spec.annotations().clone().unwrap_or_default(),
            })
        })
    }

    /// Runs those that come before the container. `pid` is a process in its network namespace.
    /// Whatever the result, [`ContainerHooks::deleted`] is due from now on.
    pub(crate) async fn before(
        self: &Arc<Self>,
        view: &EnginesView,
        pid: u32,
    ) -> Result<(), Failure> {
        let due = self.bundle.join(DUE);
        let failed = |error: &dyn std::error::Error| {
            let message = format!("OCI runtime create failed: {}", chain(error));
            Failure::new(Code::UNKNOWN, message)
        };
        fs::write(due, "").map_err(|error| failed(&error))?;
        let run = move |this: &Self| this.hooks.run_before(&this.state("creating", pid));
        match self.run_in(view, run).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(&error)),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Runs those that follow the start. The first that fails ends it, and the container is to be
    /// stopped then, as runc does it.
    pub(crate) async fn started(
        self: &Arc<Self>,
        view: &EnginesView,
        pid: u32,
    ) -> Result<(), Failure> {
        let failed = |error: &dyn std::error::Error| Failure::new(Code::UNKNOWN, chain(error));
        let run = move |this: &Self| {
            kata_hooks::run("poststart", &this.hooks.poststart, &this.state("running", pid))
        };
        match self.run_in(view, run).await {
            Ok(ran) => ran.map_err(|error| failed(&error)),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Runs those that follow the container's end, unless that was done. That one has failed is
    /// logged, and changes nothing.
    pub(crate) async fn deleted(self: &Arc<Self>, view: &EnginesView) {
        if self.take_due() {
            self.log_failures(self.run_in(view, Self::run_poststop).await);
        }
    }

    fn run_poststop(&self) -> Vec<kata_hooks::HookError> {
        kata_hooks::run_all("poststop", &self.hooks.poststop, &self.state("stopped", 0))
    }

    fn take_due(&self) -> bool {
        fs::remove_file(self.bundle.join(DUE)).is_ok()
    }

    fn log_failures(&self, failures: io::Result<Vec<kata_hooks::HookError>>) {
        match failures {
            Ok(failures) => {
                failures.iter().for_each(|error| tracing::warn!("container {}: {error}", self.id));
            }
            Err(error) => tracing::warn!("container {}: its hooks were not run: {error}", self.id),
        }
    }

    /// Does `work` where hooks are run: among the engine's mounts.
    async fn run_in<T: Send + 'static>(
        self: &Arc<Self>,
        view: &EnginesView,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (this, view) = (Arc::clone(self), view.clone());
        let (done, result) = oneshot::channel();
        // A thread of its own, since there is no way back for it, and a hook may take its time.
        thread::Builder::new().name("hooks".to_owned()).spawn(move || {
            let entered = view.enter().map_err(io::Error::other);
            // Whoever asked may have gone away.
            let _ = done.send(entered.map(|()| work(&this)));
        })?;
        result.await.unwrap_or_else(|_| Err(io::Error::other("the hooks' thread panicked")))
    }

    fn state<'a>(&'a self, status: &'a str, pid: u32) -> HookState<'a> {
        let annotations = self.annotations.iter();
        HookState {
            oci_version: &self.oci_version,
            id: &self.id,
            status,
            pid,
            bundle: &self.bundle,
            annotations: annotations.map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        }
    }
}

/// Runs the poststop hooks of a container whose shim has died before it could. To be called in the
/// engine's mount namespace.
pub(crate) fn make_up_for(id: &str, bundle: &Path) {
    if !bundle.join(DUE).exists() {
        return;
    }
    match Spec::load(bundle.join("config.json")) {
        Ok(spec) => {
            if let Some(hooks) = ContainerHooks::of(&spec, id, bundle).filter(|one| one.take_due())
            {
                hooks.log_failures(Ok(hooks.run_poststop()));
            }
        }
        Err(error) => tracing::warn!("container {id}: its poststop hooks are not known: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks_of(bundle: &Path) -> Arc<ContainerHooks> {
        let log = bundle.join("log");
        let hook = |name: &str| {
            let script = format!("echo {name} $PWD >> {}", log.display());
            serde_json::json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
        };
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "hooks": { "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
                       "poststart": hook("poststart"), "poststop": hook("poststop") },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        ContainerHooks::of(&serde_json::from_value(spec).unwrap(), "c1", bundle).unwrap()
    }

    fn log(bundle: &Path) -> String {
        let log = fs::read_to_string(bundle.join("log")).unwrap();
        log.replace(&bundle.display().to_string(), "BUNDLE")
    }

    /// Needs root.
    #[tokio::test]
    async fn hooks_run_in_their_order_in_the_bundle_and_poststop_once() {
        let bundle = tempfile::tempdir().unwrap();
        let hooks = hooks_of(bundle.path());
        let view = EnginesView::take().unwrap();
        hooks.before(&view, 1).await.unwrap();
        hooks.started(&view, 1).await.unwrap();
        hooks.deleted(&view).await;
        hooks.deleted(&view).await;
        make_up_for("c1", bundle.path());
        let each = ["prestart", "createRuntime", "poststart", "poststop"];
        let expected: String = each.iter().map(|name| format!("{name} BUNDLE\n")).collect();
        assert_eq!(log(bundle.path()), expected);
    }

    #[tokio::test]
    async fn poststop_is_made_up_for_where_hooks_had_been_run() {
        let bundle = tempfile::tempdir().unwrap();
        let hooks = hooks_of(bundle.path());
        make_up_for("c1", bundle.path());
        assert!(!bundle.path().join("log").exists(), "nothing was due");
        hooks.before(&EnginesView::take().unwrap(), 1).await.unwrap();
        make_up_for("c1", bundle.path());
        make_up_for("c1", bundle.path());
        assert_eq!(log(bundle.path()).matches("poststop").count(), 1);
    }
}
