//! Builds the guest's own kernel: configuration from fragments, source from a Debian package with a
//! few lines of ours, result in a cache.
//!
//! ```text
//!   Configuration::merged() ─────────────┐
//!   Source::find() ── version ──┐        │
//!   compiler's version ─────────┴─▶ cache::key() ──▶ in the cache already? ── yes ──▶ Kernel
//!                                                          │ no
//!                                 fetch, unpack, add, configure, check, compile, strip
//! ```
//!
//! Nothing here needs root, and the same input gives the same bytes.

mod additions;
mod cache;
mod compile;
mod configuration;
mod source;

pub use cache::{CacheError, cache_directory};
pub use compile::{BuildError, Kernel, KernelOptions, build_kernel};
pub use configuration::{Configuration, ConfigurationError};
pub use source::{Source, SourceError};
