//! The contract with Cloud Hypervisor, where it is on `PATH` and KVM works.

use std::env;

use kata_cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use kata_driver_contract::{Subject, contract};
use kata_hypervisor::kvm_obstacle;

fn clh() -> Result<Subject, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut programs = env::split_paths(&path).map(|directory| directory.join("cloud-hypervisor"));
    let program = programs.find(|program| program.is_file());
    let program = program.ok_or("no `cloud-hypervisor` on PATH")?;
    match kvm_obstacle() {
        Some(obstacle) => Err(obstacle),
        None => {
            let settings = CloudHypervisorSettings { program, ..Default::default() };
            Ok(Subject::new(Box::new(CloudHypervisor::new(settings))))
        }
    }
}

contract!(clh);
