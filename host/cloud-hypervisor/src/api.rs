//! A client of the VMM's REST API over its unix socket.
//!
//! The API's description is published with the VMM (`vmm/src/api/openapi/cloud-hypervisor.yaml`). Here are the requests and fields
//! that a sandbox needs. Descriptors of taps go beside a request, which HTTP clients from the shelf cannot do.

mod connection;
mod http;
mod types;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use connection::{Connection, Response};
pub use http::ResponseError;
pub use types::*;

/// The longest reason that is kept of what the VMM says.
const MAX_REASON: usize = 1024;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The connection broke, which the VMM's end does, or did not carry HTTP.
    #[error("the API socket failed during `{request}`")]
    Broken {
        /// The request, like `vm.boot`.
        request: &'static str,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// The VMM said no.
    #[error("`{request}` was refused: {reason}")]
    Refused {
        /// The request.
        request: &'static str,
        /// The HTTP status.
        status: u16,
        /// The VMM's words, from the general to the particular.
        reason: String,
    },
    /// The answer is not what the description promises.
    #[error("the answer to `{request}` is not understood")]
    Malformed {
        /// The request.
        request: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// A connection to one VMM. Clones share it; requests go one after the other. A request that was sent is followed to its end, also when
/// its future is dropped.
///
/// All methods panic outside of a tokio runtime.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Arc<Mutex<Connection>>,
}

impl Client {
    /// Speaks over `stream`, a connection to the VMM's `--api-socket`.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { connection: Arc::new(Mutex::new(Connection::new(stream))) }
    }

    /// Asks who is there (`GET vmm.ping`).
    pub async fn ping(&self) -> Result<VmmPing, ApiError> {
        let request = "vmm.ping";
        let response = self.exchange(request, "GET", None, Vec::new()).await?;
        parse(request, &response.body)
    }

    /// Tells the state of the machine (`GET vm.info`). Refused before [`Client::create`].
    pub async fn info(&self) -> Result<VmInfo, ApiError> {
        let request = "vm.info";
        let response = self.exchange(request, "GET", None, Vec::new()).await?;
        parse(request, &response.body)
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
        request: &'static str,
        device: &T,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<PciDeviceInfo>, ApiError> {
        let response = self.put(request, device, fds).await?;
        match response.body.as_slice() {
            [] => Ok(None),
            body => parse(request, body).map(Some),
        }
    }

    async fn put<T: Serialize + Sync>(
        &self,
        request: &'static str,
        body: &T,
        fds: Vec<OwnedFd>,
    ) -> Result<Response, ApiError> {
        let body = serde_json::to_string(body)
            .map_err(|source| ApiError::Malformed { request, source })?;
        self.exchange(request, "PUT", Some(&body), fds).await
    }

    async fn act(&self, request: &'static str) -> Result<(), ApiError> {
        self.exchange(request, "PUT", None, Vec::new()).await.map(drop)
    }

    async fn exchange(
        &self,
        request: &'static str,
        method: &str,
        body: Option<&str>,
        fds: Vec<OwnedFd>,
    ) -> Result<Response, ApiError> {
        let bytes = http::render(method, &format!("/api/v1/{request}"), body);
        let connection = self.connection.clone();
        // In a task of its own: half an exchange would leave the connection useless.
        let exchange =
            tokio::spawn(async move { connection.lock().await.exchange(&bytes, &fds).await });
        let response = exchange
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|source| ApiError::Broken { request, source })?;
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        let reason = reason(&response);
        Err(ApiError::Refused { request, status: response.status, reason })
    }
}

fn parse<T: DeserializeOwned>(request: &'static str, body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|source| ApiError::Malformed { request, source })
}

/// What a refusal says, on one line and printable. It is a list of sentences, each the cause of the one before.
fn reason(response: &Response) -> String {
    let sentences = serde_json::from_slice::<Vec<String>>(&response.body).map_or_else(
        |_| String::from_utf8_lossy(&response.body).into_owned(),
        |all| all.join(": "),
    );
    let readable: String =
        sentences.chars().filter(|char| !char.is_control()).take(MAX_REASON).collect();
    if readable.is_empty() { format!("HTTP status {}", response.status) } else { readable }
}

#[cfg(test)]
mod tests;
