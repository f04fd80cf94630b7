//! The network at the first start, and what comes after it.

use std::sync::Arc;

use kata_network::Changes;

use super::{Shared, dns_relay};
use crate::{ResolvConf, SandboxError};

/// Before the first container starts: the last moment at which its engine may have given it a
/// network. Whether this was the first time.
pub(super) async fn settle_network(shared: &Arc<Shared>) -> Result<bool, SandboxError> {
    let mut network = shared.network.lock().await;
    let Some(network) = network.as_mut() else { return Ok(false) };
    if !network.settle() {
        return Ok(false);
    }
    let changes = Changes::of(network.namespace());
    tokio::select! {
        biased;
        joined = network.join_late(&shared.footprint, shared.vm.as_ref(), &shared.agent) => joined?,
        () = shared.until_gone() => return Err(shared.gone_error()),
    }
    if network.is_empty() {
        let namespace = network.namespace().path().display();
        tracing::info!(
            "sandbox {}: no interface but lo is in the network namespace {namespace}, so its containers have no network",
            shared.id
        );
    }
    if let Some(server) = shared.resolv_conf.as_ref().and_then(ResolvConf::server_on_host) {
        dns_relay::open(shared, network, server).await;
    }
    match changes {
        Ok(changes) => drop(tokio::spawn(watch_network(Arc::clone(shared), changes))),
        Err(error) => tracing::warn!("later network interfaces will not be noticed: {error}"),
    }
    Ok(true)
}

/// Tells of interfaces that came too late, each list of them once.
async fn watch_network(shared: Arc<Shared>, changes: Changes) {
    let mut told = None;
    loop {
        tokio::select! {
            () = shared.until_gone() => return,
            changed = changes.next() => if changed.is_err() { return },
        }
        let network = shared.network.lock().await;
        let Some(network) = network.as_ref() else { return };
        let strangers = network.strangers().await.unwrap_or_else(|error| {
            tracing::warn!(
                "sandbox {}: cannot look for new network interfaces: {error}",
                shared.id
            );
            None
        });
        if strangers.is_some() && strangers != told {
            let list = strangers.as_deref().unwrap_or_default();
            tracing::warn!(
                "sandbox {}: the network interface {list} came after the first container had started and is not connected; \
                 start the container anew to use it",
                shared.id
            );
        }
        told = strangers;
    }
}
