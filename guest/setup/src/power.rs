//! Ending the virtual machine.

use rustix::system::RebootCommand;

/// How this machine is made to end. Which one works depends on the hypervisor, so its driver says
/// it with `agent.power=off|reset` on the kernel command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerOff {
    /// ACPI power-off, or a halt where there is no ACPI: QEMU, Cloud Hypervisor.
    Off,
    /// A reset, which krun and Firecracker take as the guest's end.
    Reset,
}

/// Writes out what is cached and ends the machine. Returns only if the kernel refuses, which it
/// does to anybody without `CAP_SYS_BOOT`, and the caller should then exit.
pub fn end(how: PowerOff) {
    rustix::fs::sync();
    let command = match how {
        PowerOff::Off => RebootCommand::PowerOff,
        PowerOff::Reset => RebootCommand::Restart,
    };
    if let Err(errno) = rustix::system::reboot(command) {
        tracing::error!(%errno, ?how, "the kernel refuses to end the machine");
    }
}
