//! A client of the VMM's REST API over its unix socket.
//!
//! The API's description is published with the VMM (`vmm/src/api/openapi/cloud-hypervisor.yaml`).
//! Here are the requests and fields that a sandbox needs.

mod types;

use std::os::fd::OwnedFd;

use kata_http::{Client as HttpClient, Request, Response};
use serde::Serialize;
use tokio::net::UnixStream;

pub use kata_http::ApiError;
pub use types::*;

/// A connection to one VMM. Clones share it; requests go one after the other. A request that was
/// sent is followed to its end, also when its future is dropped.
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

    /// Describes the machine, and makes the VMM shut itself in if the configuration says so
    /// (`vm.create`).
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

    /// Adds a network device on `taps`, one queue pair each (`vm.add-net`), to a machine that runs
    /// or will.
    pub async fn add_net(&self, nic: &NetConfig, taps: Vec<OwnedFd>) -> Result<(), ApiError> {
        self.put("vm.add-net", nic, taps).await.map(drop)
    }

    /// Adds a disk to a machine that runs (`vm.add-disk`). The guest finds it a moment later.
    pub async fn add_disk(&self, disk: &DiskConfig) -> Result<(), ApiError> {
        self.put("vm.add-disk", disk, Vec::new()).await.map(drop)
    }

    /// Asks the guest to let go of a device (`vm.remove-device`), which is gone when it has.
    pub async fn remove_device(&self, device: &DeviceRef) -> Result<(), ApiError> {
        self.put("vm.remove-device", device, Vec::new()).await.map(drop)
    }

    /// Asks for more or less of something (`vm.resize`). It is there, or gone, when the guest has
    /// done its part. Refused for memory that was asked for already, and with status 429 for
    /// another number of processors than there are while some of an earlier request go.
    pub async fn resize(&self, resize: VmResize) -> Result<(), ApiError> {
        self.put("vm.resize", &resize, Vec::new()).await.map(drop)
    }

    /// Asks what the machine has (`vm.info`).
    pub async fn info(&self) -> Result<VmInfo, ApiError> {
        self.http.ask(request("vm.info", "GET")).await
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
