//! Fixtures for end-to-end tests: a containerd of one's own, containers in it, and the check that
//! nothing is left.
//!
//! ```text
//!   scenario(|containerd| {                            a private daemon: directory, socket, namespace of its own
//!       containerd.run(["true"]).output()?             Run: one `ctr run` to be
//!       let web = containerd.run(["sleep", "1000"]).start()?   Container: a detached one
//!       web.exec(["id"]).output()?                     Exec: one `ctr task exec` to be
//!       web.remove()
//!   })                                                 the leak check, whatever happened before
//! ```
//!
//! Tests of one process, and several such processes, may run at the same time: whatever a fixture
//! makes carries its [`Mark`], and the leak check looks for that mark only.
//!
//! | variable | means |
//! |---|---|
//! | `KATA_E2E_PREFIX` | where the programs under test are installed; default: `build/stage/usr/local` of this checkout |
//! | `KATA_E2E_CONFIG` | the configuration file under test: another hypervisor, another guest kernel, ... |
//! | `KATA_E2E_RUNTIME=runc` | runs the tests under runc, to test the tests; what only a VM can show is left out |
//! | `KATA_E2E_LOG` | level of containerd's log, which also is the shims'; default `info` |
//! | `KATA_E2E_PATIENCE` | multiplies every deadline; default 1 |
//! | `KATA_E2E_SHORT_LIVED` | processes that print and exit at once, for each kind of them; default 20 to 100 |
//! | `KATA_E2E_STREAM_MIB` | size of the streams with checksums; default 64 |
//! | `KATA_E2E_BOOTS` | boots in a row under load; default 5 |
//! | `KATA_E2E_WRITE` | writes docs/reference/oci-command-line.md, in place of comparing with it |

mod client;
mod cni;
mod command_line;
mod configuration;
mod container;
mod containerd;
mod deadline;
mod engine;
mod events;
mod floor_ramdisk;
mod image;
mod json;
mod leaks;
mod mark;
mod measure;
mod name_server;
mod netns;
mod packages;
mod process;
mod pty;
mod run;
mod runtime;
mod scenario;
mod spec;
mod stream;
mod thin_pool;
mod watch;
mod wire;

pub use client::{Client, Input, Output};
pub use command_line::{CommandLine, IDLE, READS_COMMANDS, SERVER};
pub use configuration::{Configuration, hypervisor_under_test};
pub use container::{Container, Exec};
pub use containerd::{Containerd, Daemon};
pub use deadline::{Deadline, number_from};
pub use engine::{
    Engine, EngineRun, docker, docker_with_shim, docker_with_systemd, podman, podman_and_docker,
    podman_with_systemd,
};
pub use events::Events;
pub use floor_ramdisk::{floor_ramdisk, floor_ticks};
pub use image::Image;
pub use mark::Mark;
pub use measure::{Mapping, Share, Summary, let_it_settle};
pub use name_server::NameServer;
pub use netns::{dial_in, picture_of_this_machine};
pub use packages::{PackageRoot, Suite};
pub use process::{Part, Process, await_part, parts_of};
pub use pty::resize;
pub use run::Run;
pub use runtime::{
    GuestKernel, Installation, Runtime, checkout, guest_agent, kata_image, make, only_a_vm,
};
pub use scenario::{Scenario, scenario};
pub use spec::Spec;
pub use stream::{Stream, noise};
pub use thin_pool::{LoopDevice, ThinPool, has_loop_devices};
pub use watch::{await_link, await_path};
pub use wire::{Wire, has_macvtap};
