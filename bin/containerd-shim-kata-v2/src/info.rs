//! `-info`: what this runtime can do, for containerd 2.

use std::io::{self, IsTerminal, Read};

use anyhow::Context;
use kata_shim_api::protobuf::Message;
use kata_shim_api::{Any, features_any, runtime_info};

use crate::{RUNTIME, VERSION};

/// More than any engine's options need.
const LARGEST_INPUT: u64 = 4 << 20;

/// Returns what is to be printed.
pub(crate) fn run() -> anyhow::Result<Vec<u8>> {
    let mut input = Vec::new();
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        stdin
            .lock()
            .take(LARGEST_INPUT)
            .read_to_end(&mut input)
            .context("cannot read standard input")?;
    }
    let options = if input.is_empty() {
        None
    } else {
        Some(
            Any::parse_from_bytes(&input)
                .context("cannot understand the options on standard input")?,
        )
    };
    let features =
        serde_json::to_vec(&kata_host_runtime::features()?).context("cannot write the features")?;
    runtime_info(RUNTIME, VERSION, features_any(features), options)
        .write_to_bytes()
        .context("cannot write the answer")
}
