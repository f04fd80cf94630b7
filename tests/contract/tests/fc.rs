//! The contract with Firecracker, where it is on `PATH` and KVM works; and in the cell of its
//! jailer, where that is there, too.

use kata_driver_contract::{Subject, contract, program_on_path};
use kata_firecracker::{Firecracker, FirecrackerSettings};
use kata_hypervisor::kvm_obstacle;

fn firecracker() -> Result<Subject, String> {
    subject(FirecrackerSettings { program: program_on_path("firecracker")?, ..Default::default() })
}

fn subject(settings: FirecrackerSettings) -> Result<Subject, String> {
    match kvm_obstacle() {
        Some(obstacle) => Err(obstacle),
        None => Ok(Subject::new(Box::new(Firecracker::new(settings)))),
    }
}

contract!(firecracker);

mod in_the_jailers_cell {
    use super::*;

    fn jailed() -> Result<Subject, String> {
        let program = program_on_path("firecracker")?;
        let jailer = Some(program_on_path("jailer")?);
        subject(FirecrackerSettings { program, jailer, ..Default::default() })
    }

    contract!(jailed);
}
