//! A loaded configuration with the driver that it names.

use std::io;
use std::path::{Path, PathBuf};

use kata_config::{ConfigError, HostConfig, HypervisorName, LogLevel, SizeError};
use kata_hypervisor::Hypervisor;
use kata_linux::identifier::IdentifierError;
use kata_sandbox::{ContainerPlan, PlacementError, SandboxPlan};
use kata_storage::{RootfsMount, StorageError};
use oci_spec::runtime::Spec;
use thiserror::Error;
use tracing::level_filters::LevelFilter;

use crate::{RoleError, SpecError, auto, driver, plan};

/// The environment variable that names the configuration file.
const CONFIG_VARIABLE: &str = "KATA_CONF_FILE";

/// Why a bundle cannot be run with this configuration. Nothing was started.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The limits that the engine gave make no VM.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The spec asks for what cannot be done.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The spec names processors or memory nodes that are no numbers.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A mount of the spec cannot be done.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file that the VM is made of is missing.
    #[error(
        "the {what} {path} cannot be read; build it with `make`, or set `{key}` in the configuration"
    )]
    Asset {
        /// What it is.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// The configuration's key for it.
        key: &'static str,
        /// Why it cannot be read.
        #[source]
        source: io::Error,
    },
    /// The chosen hypervisor cannot do what every sandbox needs.
    #[error(
        "the hypervisor {hypervisor} lacks {what}; choose another with `hypervisor_name` in the section runtime"
    )]
    Lacks {
        /// Its name in the configuration.
        hypervisor: &'static str,
        /// What it lacks.
        what: &'static str,
    },
    /// The id cannot be a file name.
    #[error(transparent)]
    Id(#[from] IdentifierError),
    /// What the container is to its sandbox cannot be told.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// Not enough of the host is known to size a VM.
    #[error("cannot find out how many processors and how much memory this host has")]
    Host(#[source] io::Error),
}

/// Everything that sandboxes are made with.
#[derive(Debug)]
pub struct Runtime {
    pub(crate) config: HostConfig,
    /// Where the configuration was read; `None` for the built-in defaults.
    pub(crate) file: Option<PathBuf>,
    /// Where this software is installed.
    pub(crate) prefix: PathBuf,
    /// Whether the configuration leaves the choice of the hypervisor to this software.
    pub(crate) is_auto: bool,
    hypervisor: Box<dyn Hypervisor>,
}

/// The container that a sandbox is made for.
#[derive(Debug, Clone, Copy)]
pub struct FirstContainer<'a> {
    /// Its spec.
    pub spec: &'a Spec,
    /// What the engine wants mounted as its root file system.
    pub rootfs_mounts: &'a [RootfsMount],
}

impl Runtime {
    /// Loads the configuration: `option` is the file that the engine named for this sandbox, if
    /// any; `KATA_CONF_FILE` wins over it. Where neither names one, the name that this program was
    /// started under chooses ([`kata_config::variant_of`]). Where neither chooses a hypervisor, the
    /// sandbox of this container gets the one that can do what it needs, and `None`, which is no
    /// sandbox in particular, the one that can do most. The sandbox's annotations are applied as
    /// far as the administrator allows them. How much this process logs follows the configuration
    /// from then on.
    pub fn load(
        option: Option<&Path>,
        first: Option<FirstContainer<'_>>,
    ) -> Result<Self, RuntimeError> {
        let program = std::env::current_exe().map_err(RuntimeError::Host)?;
        let prefix = kata_config::prefix_of(&program);
        let variable = std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from);
        let name = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
        let variant = kata_config::variant_of(&name);
        let file = kata_config::locate(option, variable.as_deref(), variant, &prefix)?;
        let mut config = HostConfig::load(file.as_deref(), &prefix)?;
        for (name, reason) in config.listed_in_vain() {
            tracing::warn!(
                "`enable_annotations` lists {name}, which no pod may set all the same, for {reason}"
            );
        }
        let is_auto = config.runtime.hypervisor_name == HypervisorName::Auto;
        auto::settle(&mut config, first, &prefix);
        if let Some(annotations) = first.and_then(|first| first.spec.annotations().as_ref()) {
            config = config.with_annotations(annotations)?;
        }
        // From here on, for what the driver says of the host is meant, too.
        let driver = level(config.vm().effective_log_level());
        let drivers = driver::TARGETS.map(|target| (target, driver));
        kata_log::set_levels(level(config.runtime.effective_log_level()), &drivers);
        let hypervisor = driver::of(&config, &prefix);
        Ok(Self { config, file, prefix, is_auto, hypervisor })
    }

    /// The driver that the configuration names.
    #[must_use]
    pub fn hypervisor(&self) -> &dyn Hypervisor {
        self.hypervisor.as_ref()
    }

    /// Decides what VM a sandbox gets whose first container is `id` with this spec. `rootfs_mounts`
    /// are the engine's for that container.
    pub fn plan_sandbox(
        &self,
        id: &str,
        spec: &Spec,
        rootfs_mounts: &[RootfsMount],
    ) -> Result<SandboxPlan, RuntimeError> {
        plan::sandbox(self, id, spec, rootfs_mounts)
    }

    /// Decides how a container of this spec is made. `rootfs_mounts` are the engine's, to be
    /// mounted at `<bundle>/rootfs`.
    pub fn plan_container(
        &self,
        id: &str,
        spec: Spec,
        bundle: &Path,
        rootfs_mounts: Vec<RootfsMount>,
    ) -> Result<ContainerPlan, RuntimeError> {
        plan::container(self, id, spec, bundle, rootfs_mounts)
    }
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    }
}
