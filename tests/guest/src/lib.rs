//! Fixtures for tests of the agent: a VM of one's own that boots the staged guest, and a client
//! that speaks the agent's protocol.
//!
//! ```text
//!   booted(First::Agent, |guest| async move {     QEMU, the staged kernel and initrd, and a root file system in memory
//!       guest.run("c1", sh("exit 42")).await?      CreateContainer, StartContainer, ReadStdout, WaitProcess, RemoveContainer
//!   })                                             DestroySandbox, after which the machine must end by itself
//! ```
//!
//! Nothing of the host's side of kata is involved, so that a test speaks as any host may, and says
//! what the guest does.

mod client;
mod control;
mod image;
mod machine;

pub use client::{Guest, Output, capabilities, context, process, read_until, sentence, sh};
pub use image::{First, image_with};
pub use machine::{Machine, Setup, booted};
