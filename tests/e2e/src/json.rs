//! Reading what `ctr` prints as JSON.

use anyhow::{Context, Result};
use serde_json::Value;

/// The JSON value at the end of a text that may begin with other lines.
pub(crate) fn last_value(text: &str) -> Result<Value> {
    let start = text.find(['{', '[']).with_context(|| format!("there is no JSON in {text:?}"))?;
    serde_json::from_str(&text[start..]).with_context(|| format!("not JSON: {text:?}"))
}
