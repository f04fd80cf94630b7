//! The network that CNI gives to containers of the tests.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Makes `directory`, and writes `bridge.conflist` into it: the plugin `bridge` makes the bridge
/// 10.98.0.1, whose leases are in `leases` beside it.
pub(crate) fn write_bridge(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).context("cannot make a directory for CNI")?;
    let text = bridge(&directory.join("leases"));
    fs::write(directory.join("bridge.conflist"), text).context("cannot write CNI's configuration")
}

fn bridge(leases: &Path) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "kata-e2e",
        "plugins": [{
            "type": "bridge",
            "bridge": "br0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": leases,
                "ranges": [[{ "subnet": "10.98.0.0/24" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
    .to_string()
}
