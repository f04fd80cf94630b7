//! `features`: what this runtime can do.

use anyhow::Result;

use super::print;

pub(super) fn run() -> Result<()> {
    let features = kata_host_runtime::features()?;
    print(&format!("{}\n", serde_json::to_string_pretty(&features)?))
}
