//! The contract with Cloud Hypervisor, where it is on `PATH` and KVM works.

use kata_cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use kata_driver_contract::{Subject, contract, program_on_path};
use kata_hypervisor::kvm_obstacle;

fn clh() -> Result<Subject, String> {
    let program = program_on_path("cloud-hypervisor")?;
    match kvm_obstacle() {
        Some(obstacle) => Err(obstacle),
        None => {
            let settings = CloudHypervisorSettings { program, ..Default::default() };
            Ok(Subject::new(Box::new(CloudHypervisor::new(settings))))
        }
    }
}

contract!(clh);
