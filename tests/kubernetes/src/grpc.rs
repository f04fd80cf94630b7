//! Messages of CRI over gRPC, for tests that wait.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use http::uri::PathAndQuery;
use protobuf::Message;
use tokio::runtime::Runtime;

/// As many bytes as an answer may have.
const MAX_ANSWER: usize = 16 << 20;

/// A service that listens on a socket. Every call has a connection of its own, so that a service
/// that was started again is reached, too.
#[derive(Debug)]
pub(crate) struct Service {
    socket: PathBuf,
    path: &'static str,
    runtime: Runtime,
}

impl Service {
    /// The service `path`, like `runtime.v1.RuntimeService`. Nothing is connected yet.
    pub(crate) fn at(socket: &Path, path: &'static str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot wait for a service")?;
        Ok(Self { socket: socket.to_owned(), path, runtime })
    }

    /// Calls a method and waits for its answer, at most for `patience`. The error is what the
    /// service says.
    pub(crate) fn call<Answer: Message>(
        &self,
        method: &str,
        request: &impl Message,
        patience: Duration,
    ) -> Result<Answer> {
        let path = PathAndQuery::try_from(format!("/{}/{method}", self.path))?;
        let request = request.write_to_bytes().context("cannot write the request")?;
        let exchange = async {
            let exchange = kata_grpc::call(&self.socket, path, &request, MAX_ANSWER);
            let answer = tokio::time::timeout(patience, exchange).await;
            Ok::<_, anyhow::Error>(
                answer.with_context(|| format!("no answer within {patience:?}"))??,
            )
        };
        let answer = self.runtime.block_on(exchange).context(method.to_owned())?;
        Answer::parse_from_bytes(&answer).with_context(|| format!("{method}: unreadable answer"))
    }
}
