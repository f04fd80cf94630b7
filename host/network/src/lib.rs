//! The network namespace of a sandbox, and how its interfaces reach the VM.
//!
//! ```text
//!   Namespace ── scan() ──▶ Snapshot ── plan() ──▶ Plan ── join() ──▶ a Nic for each interface
//!                           (plain data)   (pure)                      │
//!                                                                      ▼
//!             engine's side         the namespace                  the VMM's
//!              vethX ════════ eth0 ◀─┬─▶ tapN_kata ═══ descriptor ═══ virtio-net ═══ eth0 in the guest
//!                                    └ tcfilter: whatever comes in at one goes out at the other
//!
//!              vethX ════════ eth0 ◀──── tapN_kata ═══ descriptor ═══ virtio-net
//!                                    └ macvtap (passthru): whatever comes in at eth0 is the tap's
//! ```
//!
//! The guest's interface has name, MAC, MTU, addresses, routes and neighbours of the one in the
//! namespace, which keeps them all: nothing that the engine has made is changed, and [`leave`]
//! takes away what [`join`] has added. Most of that goes by itself: a tap goes with the last
//! descriptor for it. An ingress qdisc (tc(8)) and a macvtap do not.
//!
//! All work is done by threads that enter the namespace and end there (setns(2) moves a thread), so
//! that no other work of the process can ever find itself in it.

mod changes;
mod error;
mod join;
mod loopback;
mod namespace;
mod own_traffic;
mod plan;
mod program;
mod scan;
mod snapshot;
mod sockets;
mod tap;

pub use changes::Changes;
pub use error::NetworkError;
pub use join::{Model, Nic, join, leave, leave_blocking, leave_tap};
pub use loopback::Loopback;
pub use namespace::{Namespace, NamespaceId};
pub use own_traffic::share_with_sockets;
pub use plan::{Plan, PlannedRoute, in_use, plan, plan_again};
pub use scan::{scan, scan_blocking};
pub use snapshot::{Interface, Link, Mac, Neighbour, Prefix, Route, Snapshot};
pub use tap::{has_vhost, tap_obstacle};
