//! Where the time of a sandbox's start goes.
//!
//! Whoever ends a stage of a start leaves a stamp in a [`Recorder`], which costs a look at the
//! clock. The sandbox's owner writes the record down as the file [`FILE`] in the sandbox's
//! directory; whoever wants to know reads it as a [`Timeline`] and shows it as a table ([`table`])
//! or as a picture ([`svg`]).
//!
//! ```text
//!   stamp(stage) ──▶ Recorder ──save──▶ timeline.json ──load──▶ Timeline ──▶ table, svg
//!   guest's clock ──GuestClock──┘ (moments in the guest become moments of the host)
//! ```
//!
//! All moments are of the host's `CLOCK_MONOTONIC` (clock_gettime(2)), which its processes have in
//! common.

mod guest_clock;
mod moment;
mod picture;
mod recorder;
mod stage;
mod table;
mod timeline;

pub use guest_clock::GuestClock;
pub use moment::Moment;
pub use picture::svg;
pub use recorder::Recorder;
pub use stage::{Lane, Span, Stage};
pub use table::table;
pub use timeline::{FILE, Stamp, Timeline, TimelineError};
