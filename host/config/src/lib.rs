//! The administrator's configuration, read once, typed and checked.
//!
//! ```text
//!   KATA_CONF_FILE │ ConfigPath │ /etc │ <prefix>          annotations of the pod
//!            └─────────┬────────────────┘                          │
//!                  locate ──▶ HostConfig::load ──▶ HostConfig ──▶ with_annotations ──▶ HostConfig
//!                                  ▲                                                      │
//!                         config.d/*.toml                               sandbox_size ◀────┘
//! ```
//!
//! The keys are upstream Kata's. Each is in one of two tables: a key that does something is a field
//! of [`VmSettings`], [`Qemu`], [`Krun`], [`CloudHypervisor`], [`Firecracker`], [`Agent`] or
//! [`Runtime`], declared together with its default and its description; a key whose feature this
//! version lacks is accepted only with the value that means "off". Everything else is an error that
//! names file, line and key: a setting that is accepted and then ignored is a trap.

mod agent;
mod annotation;
mod annotation_names;
mod clh;
mod error;
mod files;
mod firecracker;
mod hypervisors;
mod krun;
mod load;
mod off;
mod qemu;
mod reference;
mod runtime;
mod section;
mod setting;
mod sizing;
mod tree;
mod verity;
mod virtio_fs;
mod vm;

pub use agent::Agent;
pub use clh::CloudHypervisor;
pub use error::{ConfigError, Origin};
pub use files::{candidates, companion, locate, prefix_of, variant_of};
pub use firecracker::{Firecracker, NoSharedFs};
pub use hypervisors::HypervisorName;
pub use krun::{InlineSharedFs, Krun};
pub use load::HostConfig;
pub use qemu::{BlockDeviceAio, MachineType, Qemu};
pub use reference::{default_file, reference_page};
pub use runtime::{AgentName, EmptyDirMode, InternetworkingModel, Runtime, RuntimeName, VfioMode};
pub use setting::{BindMount, LogLevel};
pub use sizing::{
    HostResources, MIN_GUEST_MEMORY_MIB, SandboxSize, SizeError, WorkloadLimits, sandbox_size,
    unlimited_vcpus,
};
pub use verity::VerityParams;
pub use virtio_fs::{SharedFs, VirtioFs, VirtioFsCache};
pub use vm::{Root, RootfsType, VmSettings};
