//! The connection and how a request travels over it.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kata_agent_api::agent_ttrpc::AgentServiceClient;
use kata_agent_api::health_ttrpc::HealthClient;
use kata_channel::ChannelStream;
use oci_spec::runtime::{LinuxResources, Process};
use protobuf::Message;
use tokio::time::Instant;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{self, Context};

use crate::AgentError;

/// The longest deadline that the protocol can tell the agent, some 292 years.
const LONGEST: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());

/// What is left of a message for the envelope around the request (method, deadline, lengths).
const MAX_REQUEST: u64 = ttrpc::proto::MESSAGE_LENGTH_MAX as u64 - 4096;

/// What a kubelet asks for with every container of a host with version 2 of cgroups: that all of
/// its processes are killed when one is for want of memory, and that none is swapped out, which no
/// guest does by itself.
const KUBELETS: [&str; 2] = ["memory.oom.group", "memory.swap.max"];

/// The agent in one guest. Clones share one connection, on which requests run side by side; it is
/// closed when the last clone is gone.
#[derive(Clone)]
pub struct AgentClient {
    pub(crate) agent: AgentServiceClient,
    pub(crate) health: HealthClient,
    deadline: Duration,
    /// Set once the agent has shown that it knows what this project adds to the protocol.
    knows_additions: Arc<OnceLock<()>>,
}

impl fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClient").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// Calls a method of a generated client with a message that the call owns.
///
/// `request!(self, agent.start_container, "StartContainer", message)` has the client's deadline,
/// `request!(self, agent.wait_process, "WaitProcess", message, forever)` has none.
macro_rules! request {
    ($client:expr, $service:ident . $method:ident, $name:literal, $message:expr) => {
        $crate::client::request!(@ $client, $service.$method, $name, $message, $client.deadline())
    };
    ($client:expr, $service:ident . $method:ident, $name:literal, $message:expr, forever) => {
        $crate::client::request!(
            @ $client, $service.$method, $name, $message, ::std::time::Duration::ZERO
        )
    };
    (@ $client:expr, $service:ident . $method:ident, $name:literal, $message:expr, $wait:expr) => {
        async {
            let message = $message;
            $crate::client::check_length($name, &message)?;
            let service = $client.$service.clone();
            $crate::client::run($name, $wait, move |context| async move {
                service.$method(context, &message).await
            })
            .await
        }
        .await
    };
}
pub(crate) use request;

impl AgentClient {
    /// Takes over a stream to the agent's port. Nothing is sent.
    ///
    /// `request_deadline` is the longest that a request may take, zero sets no limit; requests
    /// that wait for the guest by their nature do not have it.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime: the connection is served by tasks.
    pub fn new(stream: ChannelStream, request_deadline: Duration) -> Self {
        let client = Client::new(Socket::new(stream));
        Self {
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client),
            deadline: request_deadline.min(LONGEST),
            knows_additions: Arc::default(),
        }
    }

    /// The same client with another deadline for requests; zero sets no limit.
    #[must_use]
    pub fn with_deadline(&self, request_deadline: Duration) -> Self {
        Self { deadline: request_deadline.min(LONGEST), ..self.clone() }
    }

    /// From now on the agent is trusted to know this project's additions to the protocol.
    pub(crate) fn knows_additions(&self) {
        self.knows_additions.get_or_init(|| ());
    }

    /// Whether the agent is known to have this project's additions to the protocol. Not before the
    /// sandbox has been made.
    #[must_use]
    pub fn has_additions(&self) -> bool {
        self.knows_additions.get().is_some()
    }

    /// Refuses a process with a umask where the agent would not read it: the process would share
    /// its files with more than it says.
    pub(crate) fn check_umask(
        &self,
        method: &'static str,
        process: &Process,
    ) -> Result<(), AgentError> {
        match process.user().umask() {
            Some(mask) if !self.has_additions() => {
                let message = format!(
                    "the guest's agent does not set a umask ({mask:03o} is asked for, process.user.umask); \
                     use the guest image of this version, or leave the umask at 022"
                );
                Err(AgentError::InvalidArgument { method, message })
            }
            _ => Ok(()),
        }
    }

    /// Refuses limits that the agent would not read, but for those of which a container loses
    /// little and without which no kubelet's would start.
    pub(crate) fn check_unified(
        &self,
        method: &'static str,
        resources: &LinuxResources,
    ) -> Result<(), AgentError> {
        if self.has_additions() {
            return Ok(());
        }
        // The first by name, for the same words every time.
        let files = resources.unified().iter().flat_map(|files| files.keys());
        match files.filter(|file| !KUBELETS.contains(&file.as_str())).min() {
            None => Ok(()),
            Some(file) => {
                let message = format!(
                    "the guest's agent does not set {file} (linux.resources.unified); \
                     use the guest image of this version, or remove it"
                );
                Err(AgentError::InvalidArgument { method, message })
            }
        }
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }
}

/// Refuses what the transport would not send.
pub(crate) fn check_length(method: &'static str, message: &impl Message) -> Result<(), AgentError> {
    let length = message.compute_size();
    if length <= MAX_REQUEST {
        return Ok(());
    }
    let message = format!(
        "a {method} request of {length} bytes does not fit a message to the guest's agent, which \
         holds {MAX_REQUEST}"
    );
    Err(AgentError::InvalidArgument { method, message })
}

/// Runs a request to its end, whether or not somebody still waits for it: the transport closes
/// the connection when a request is dropped while its bytes are being written.
pub(crate) async fn run<T, F, Fut>(
    method: &'static str,
    deadline: Duration,
    call: F,
) -> Result<T, AgentError>
where
    T: Send + 'static,
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = ttrpc::Result<T>> + Send + 'static,
{
    let start = Instant::now();
    let answer = match tokio::spawn(call(context::with_duration(deadline))).await {
        Ok(answer) => answer,
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        // The runtime is shutting down.
        Err(_) => return Err(AgentError::Disconnected { method }),
    };
    answer.map_err(|error| {
        let late = !deadline.is_zero() && start.elapsed() >= deadline;
        AgentError::from_transport(method, deadline, late, error)
    })
}
