//! A client of the VMM's REST API over its unix socket.
//!
//! The API's description is published with the VMM (`vmm/src/api/openapi/cloud-hypervisor.yaml`). Here are the requests and fields
//! that a sandbox needs.

mod types;

use std::os::fd::OwnedFd;

use kata_http::{Client as HttpClient, Request, Response};
use serde::Serialize;
use tokio::net::UnixStream;

pub use kata_http::ApiError;
pub use types::*;

/// A connection to one VMM. Clones share it; requests go one after the other. A request that was sent is followed to its end, also when
/// its future is dropped.
///
/// All methods panic outside of a tokio runtime.
#[derive(Debug, Clone)]
pub struct Client {
    http: HttpClient,
}

impl Client {
    /// Speaks over `stream`, a connection to the VMM's `--api-socket`.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { http: HttpClient::new(stream) }
    }

    /// Asks who is there (`GET vmm.ping`).
    pub async fn ping(&self) -> Result<VmmPing, ApiError> {
        self.http.ask(request("vmm.ping", "GET")).await
    }

    /// Tells the state of the machine (`GET vm.info`). Refused before [`Client::create`].
    pub async fn info(&self) -> Result<VmInfo, ApiError> {
        self.http.ask(request("vm.info", "GET")).await
    }

    /// Describes the machine, and makes the VMM shut itself in if the configuration says so (`vm.create`).
    pub async fn create(&self, config: &VmConfig) -> Result<(), ApiError> {
        self.put("vm.create", config, Vec::new()).await.map(drop)
    }

    /// Starts the machine (`vm.boot`). The guest is running when this resolves.
    pub async fn boot(&self) -> Result<(), ApiError> {
        self.act("vm.boot").await
    }

    /// Stops the processors (`vm.pause`).
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.act("vm.pause").await
    }

    /// Lets the processors run again (`vm.resume`).
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.act("vm.resume").await
    }

    /// Ends the machine without asking the guest; its VMM stays (`vm.shutdown`).
    pub async fn shutdown(&self) -> Result<(), ApiError> {
        self.act("vm.shutdown").await
    }

    /// Changes the size of a running machine (`vm.resize`). Processors that are taken are given up by the guest later, or never.
    pub async fn resize(&self, size: &VmResize) -> Result<(), ApiError> {
        self.put("vm.resize", size, Vec::new()).await.map(drop)
    }

    /// Adds a disk (`vm.add-disk`). Like the other devices: `None` when the machine has not been booted yet.
    pub async fn add_disk(&self, disk: &DiskConfig) -> Result<Option<PciDeviceInfo>, ApiError> {
        self.add("vm.add-disk", disk, Vec::new()).await
    }

    /// Adds a network device on `taps`, one queue pair each (`vm.add-net`).
    pub async fn add_net(
        &self,
        nic: &NetConfig,
        taps: Vec<OwnedFd>,
    ) -> Result<Option<PciDeviceInfo>, ApiError> {
        self.add("vm.add-net", nic, taps).await
    }

    /// Adds a file share (`vm.add-fs`).
    pub async fn add_fs(&self, share: &FsConfig) -> Result<Option<PciDeviceInfo>, ApiError> {
        self.add("vm.add-fs", share, Vec::new()).await
    }

    async fn add<T: Serialize + Sync>(
        &self,
        name: &'static str,
        device: &T,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<PciDeviceInfo>, ApiError> {
        let response = self.put(name, device, fds).await?;
        if response.body.is_empty() { Ok(None) } else { response.document(name).map(Some) }
    }

    async fn put<T: Serialize + Sync>(
        &self,
        name: &'static str,
        body: &T,
        fds: Vec<OwnedFd>,
    ) -> Result<Response, ApiError> {
        let request = request(name, "PUT").with(body)?;
        self.http.send(Request { fds, ..request }).await
    }

    async fn act(&self, name: &'static str) -> Result<(), ApiError> {
        self.http.send(request(name, "PUT")).await.map(drop)
    }
}

fn request(name: &'static str, method: &'static str) -> Request {
    Request::new(name, method, format!("/api/v1/{name}"))
}

#[cfg(test)]
mod tests;
