//! The one place where configuration, OCI spec and driver come together.
//!
//! A [`Runtime`] is a loaded configuration with the driver that it names. It turns a bundle into
//! plans (plain data), which `kata-sandbox` then carries out. Planning reads the host (the guest's
//! kernel and image, resolv.conf, the root file system) and changes nothing on it. Everything that
//! this version cannot do is refused here, before anything has started.

mod auto;
mod check;
mod disks;
mod driver;
mod environment;
mod features;
mod guest_spec;
mod plan;
mod role;
mod room;
mod runtime;
mod spec_devices;
mod template;

pub use check::check;
pub use driver::all as hypervisors;
pub use environment::Environment;
pub use features::features;
pub use guest_spec::{SpecError, process_for_guest, resources_for_guest};
pub use kata_hypervisor::{Finding, Outcome};
pub use plan::{RUN_DIR, run_dir_of};
pub use role::{ContainerRole, RoleError, are_of_cri_o, are_of_podman, make_single, role_of};
pub use runtime::{FirstContainer, Runtime, RuntimeError};
pub use template::TemplateError;
