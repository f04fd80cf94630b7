//! The contract of hypervisor drivers (`host/hypervisor`), as tests. A driver's own tests are about
//! what is its own.
//!
//! ```text
//!   contract!(subject)  ──▶  a test for each promise  ──▶  promises::PROMISE(Subject)
//!                                                             │
//!   Subject: a driver, what it boots ── Bench: a spec ── boot ┴─▶ a VM, its agent
//! ```
//!
//! The guest is the installed one: its kernel, its initial ramdisk or image, its agent. What a
//! driver's capabilities deny must be refused as unsupported, and that is a promise, too. [`Fake`]
//! is a driver without a machine, which shows that the tests hold no more than they say.

mod bench;
mod cable;
mod fake;
pub mod promises;
mod subject;
mod traces;

pub use fake::Fake;
pub use subject::{Subject, program_on_path};

/// Makes a test of every promise for the driver that `$subject`, a `fn() -> Result<Subject,
/// String>`, makes; where it cannot, the tests say why and are skipped.
#[macro_export]
macro_rules! contract {
    ($subject:path) => {
        $crate::contract!(
            $subject:
            agent_is_reached,
            port_without_a_listener_is_refused,
            paused_guest_stands_still_until_it_is_resumed,
            stop_leaves_nothing,
            death_of_the_vmm_is_an_event,
            vm_that_is_dropped_leaves_nothing,
            panic_ends_the_vm_and_is_its_last_word,
            guest_is_as_large_as_it_is_to_be,
            files_are_shared,
            image_is_booted_from,
            disks_are_taken_as_the_capabilities_say,
            frames_pass_through_a_network_device,
            network_device_may_come_late,
            memory_may_come_and_go,
            virtual_cpus_may_come_and_go,
        );
    };
    ($subject:path: $($promise:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $promise() -> ::std::result::Result<(), $crate::Failure> {
                match $subject() {
                    Ok(subject) => $crate::promises::$promise(subject).await,
                    Err(obstacle) => {
                        $crate::skipped(stringify!($promise), &obstacle);
                        Ok(())
                    }
                }
            }
        )+
    };
}

/// Why a promise was not kept.
pub type Failure = anyhow::Error;

/// Tells whoever runs the tests, past the harness, which keeps what a test prints to itself.
pub fn skipped(promise: &str, obstacle: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("{promise}: skipped: {obstacle}\n").as_bytes());
}
