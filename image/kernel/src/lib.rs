//! Builds the guest's own kernel: configuration from fragments, source from a Debian package with a
//! few lines of ours, result in a cache.
//!
//! ```text
//!   Configuration::merged() ─────────────┐
//!   Source::find() ── version ──┐        ▼
//!   compiler's version ─────────┴─▶ Inputs::key() ──▶ in the cache already? ── yes ──▶ Kernel
//!                                                          │ no
//!                                 fetch, unpack, add, configure, check, compile, strip
//! ```
//!
//! Nothing here needs root, and the same input gives the same bytes.

mod additions;
mod cache;
mod cached;
mod compile;
mod configuration;
mod inputs;
mod source;

pub use cache::{CacheError, Kernel, cache_directories, cache_directory};
pub use cached::{CachedKernel, cached_kernel};
pub use compile::{BuildError, KernelOptions, build_kernel};
pub use configuration::{Configuration, ConfigurationError};
pub use source::{Source, SourceError};
