//! The contract with a driver without a machine.

use kata_driver_contract::{Fake, Subject, contract};
use kata_hypervisor::Pause;

fn fake() -> Result<Subject, String> {
    Ok(Subject::new(Box::new(Fake { pause: Pause::Always })).without_kernel())
}

contract!(fake);

/// And what a driver must refuse that cannot even pause.
mod that_cannot_pause {
    use super::*;

    fn fake() -> Result<Subject, String> {
        Ok(Subject::new(Box::new(Fake { pause: Pause::Never })).without_kernel())
    }

    contract!(fake: paused_guest_stands_still_until_it_is_resumed);
}

/// Nor one whose VMM happens to be of the version that cannot.
mod whose_version_cannot_pause {
    use super::*;

    fn fake() -> Result<Subject, String> {
        let pause = Pause::Except("1.16");
        Ok(Subject::new(Box::new(Fake { pause })).without_kernel())
    }

    contract!(fake: paused_guest_stands_still_until_it_is_resumed);
}
