//! The contract with a driver without a machine.

use kata_driver_contract::{Fake, Subject, contract};

fn fake() -> Result<Subject, String> {
    Ok(Subject::new(Box::new(Fake { pause: true })).without_kernel())
}

contract!(fake);

/// And what a driver must refuse that cannot even pause.
mod that_cannot_pause {
    use super::*;

    fn fake() -> Result<Subject, String> {
        Ok(Subject::new(Box::new(Fake { pause: false })).without_kernel())
    }

    contract!(fake: paused_guest_stands_still_until_it_is_resumed);
}
