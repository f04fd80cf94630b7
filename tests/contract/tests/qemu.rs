//! The contract with QEMU, under KVM where that works.

use kata_driver_contract::{Subject, contract};
use kata_qemu::{Qemu, QemuSettings};

fn qemu() -> Result<Subject, String> {
    Ok(Subject::new(Box::new(Qemu::new(QemuSettings::default()))))
}

contract!(qemu);

/// The machine that takes devices while it runs, where it is not the one of the contract above.
mod on_q35 {
    use kata_qemu::MachineChoice;

    use super::*;

    fn q35() -> Result<Subject, String> {
        if kata_hypervisor::kvm_obstacle().is_none() {
            return Err("KVM works, with which the machine is a q35 anyhow".to_owned());
        }
        let settings = QemuSettings { machine: MachineChoice::Q35, ..QemuSettings::default() };
        Ok(Subject::new(Box::new(Qemu::new(settings))))
    }

    contract!(
        q35: agent_is_reached, paused_guest_stands_still_until_it_is_resumed, stop_leaves_nothing, files_are_shared,
        image_is_booted_from, frames_pass_through_a_network_device, virtual_cpus_may_come_and_go,
    );
}
