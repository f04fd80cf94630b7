//! A client of the VMM's API over its unix socket.
//!
//! The API's description is published with the VMM (`src/firecracker/swagger/firecracker.yaml`).
//! Here are the requests and fields that a sandbox needs.

mod types;

use kata_http::{Client as HttpClient, Request};
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
    /// Speaks over `stream`, a connection to the VMM's `--api-sock`.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { http: HttpClient::new(stream) }
    }

    /// Asks who is there, and where its machine is in its life.
    pub async fn info(&self) -> Result<InstanceInfo, ApiError> {
        self.http.ask(Request::new("GET /", "GET", "/")).await
    }

    /// Sets the machine's size. Like all that follows it is refused once the machine has started,
    /// unless it says otherwise.
    pub async fn machine_config(&self, config: &MachineConfiguration) -> Result<(), ApiError> {
        self.put("machine-config", "/machine-config", config).await
    }

    /// Says what is booted.
    pub async fn boot_source(&self, source: &BootSource) -> Result<(), ApiError> {
        self.put("boot-source", "/boot-source", source).await
    }

    /// Adds a disk.
    pub async fn drive(&self, drive: &Drive) -> Result<(), ApiError> {
        self.put("drives", format!("/drives/{}", drive.drive_id), drive).await
    }

    /// Gives a disk of the running machine another file. Whether it can be written to stays as it
    /// was.
    pub async fn patch_drive(&self, drive: &PartialDrive) -> Result<(), ApiError> {
        let request = Request::new("PATCH drives", "PATCH", format!("/drives/{}", drive.drive_id));
        self.http.send(request.with(drive)?).await.map(drop)
    }

    /// Adds a network device.
    pub async fn network_interface(&self, nic: &NetworkInterface) -> Result<(), ApiError> {
        self.put("network-interfaces", format!("/network-interfaces/{}", nic.iface_id), nic).await
    }

    /// Adds the socket device, and makes its socket on the host.
    pub async fn vsock(&self, vsock: &Vsock) -> Result<(), ApiError> {
        self.put("vsock", "/vsock", vsock).await
    }

    /// Adds the source of random numbers.
    pub async fn entropy(&self, entropy: EntropyDevice) -> Result<(), ApiError> {
        self.put("entropy", "/entropy", &entropy).await
    }

    /// Boots the machine, or writes out the metrics of one that runs.
    pub async fn act(&self, action_type: ActionType) -> Result<(), ApiError> {
        self.put("actions", "/actions", &InstanceActionInfo { action_type }).await
    }

    /// Stops the processors of the running machine, or lets them run again.
    pub async fn go(&self, state: TargetState) -> Result<(), ApiError> {
        let request = Request::new("vm", "PATCH", "/vm").with(&Vm { state })?;
        self.http.send(request).await.map(drop)
    }

    async fn put(
        &self,
        name: &'static str,
        path: impl Into<String>,
        document: &(impl Serialize + Sync),
    ) -> Result<(), ApiError> {
        let request = Request::new(name, "PUT", path).with(document)?;
        self.http.send(request).await.map(drop)
    }
}
