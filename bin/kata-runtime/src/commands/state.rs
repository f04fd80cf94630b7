//! `state`: what is known of a container, as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::{Host, print};
use crate::registry::Container;

/// The fields and their order are runc's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    oci_version: String,
    pub(super) id: String,
    pub(super) pid: u32,
    pub(super) status: &'static str,
    pub(super) bundle: PathBuf,
    rootfs: PathBuf,
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(super) owner: String,
}

impl State {
    pub(super) fn of(container: Container) -> Self {
        Self {
            pid: container.pid(),
            status: container.status().word(),
            oci_version: container.oci_version,
            id: container.id,
            bundle: container.bundle,
            rootfs: container.rootfs,
            created: container.created,
            annotations: container.annotations,
            owner: String::new(),
        }
    }
}

pub(super) fn run(host: &Host, id: &str) -> Result<()> {
    let state = State::of(host.registry.load(id)?);
    print(&serde_json::to_string_pretty(&state)?)
}
