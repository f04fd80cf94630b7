//! Who executes the guest's instructions.

use crate::AcceleratorChoice;

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The processor, through the kernel.
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

/// Decides, and leaves one line in the log when the software emulation is second choice.
pub(crate) fn choose(choice: AcceleratorChoice, kvm_obstacle: Option<String>) -> Accelerator {
    match (choice, kvm_obstacle) {
        (AcceleratorChoice::Kvm, _) | (AcceleratorChoice::Auto, None) => Accelerator::Kvm,
        (AcceleratorChoice::Tcg, _) => Accelerator::Tcg,
        (AcceleratorChoice::Auto, Some(obstacle)) => {
            tracing::warn!("no KVM ({obstacle}): virtual machines run in software emulation");
            Accelerator::Tcg
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_choice_is_not_second_guessed() {
        let obstacle = || Some("none".to_owned());
        assert_eq!(choose(AcceleratorChoice::Kvm, obstacle()), Accelerator::Kvm);
        assert_eq!(choose(AcceleratorChoice::Tcg, None), Accelerator::Tcg);
        assert_eq!(choose(AcceleratorChoice::Auto, None), Accelerator::Kvm);
        assert_eq!(choose(AcceleratorChoice::Auto, obstacle()), Accelerator::Tcg);
    }
}
