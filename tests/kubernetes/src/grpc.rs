//! gRPC over a unix socket, as much of it as a call takes that has one request and one answer ("gRPC over HTTP2").

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, Request, header};
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// The flag of a message that is not compressed, and its length, before the message.
const PREFIX: usize = 5;

/// A service that listens on a socket. Every call has a connection of its own, so that a service that was started again is reached, too.
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

    /// Calls a method and waits for its answer, at most for `patience`. The error is what the service says.
    pub(crate) fn call<Answer: Message>(
        &self,
        method: &str,
        request: &impl Message,
        patience: Duration,
    ) -> Result<Answer> {
        let path = format!("http://localhost/{}/{method}", self.path);
        let bytes = framed(request)?;
        let exchange = async {
            let exchange = exchange(&self.socket, &path, bytes);
            let answer = tokio::time::timeout(patience, exchange).await;
            answer.with_context(|| format!("no answer within {patience:?}"))?
        };
        let answer = self.runtime.block_on(exchange).context(method.to_owned())?;
        Answer::parse_from_bytes(&answer).with_context(|| format!("{method}: unreadable answer"))
    }
}

fn framed(message: &impl Message) -> Result<Bytes> {
    let message = message.write_to_bytes().context("cannot write the request")?;
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len().try_into().context("the request is too long")?);
    framed.put_slice(&message);
    Ok(framed.freeze())
}

async fn exchange(socket: &Path, path: &str, request: Bytes) -> Result<Bytes> {
    let stream = UnixStream::connect(socket).await.context("nobody listens")?;
    let (client, connection) = h2::client::handshake(stream).await?;
    let call = async {
        let mut client = client.ready().await?;
        let head = Request::post(path)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(())?;
        let (answer, mut body) = client.send_request(head, false)?;
        body.send_data(request, true)?;
        let answer = answer.await?;
        // An answer without a body has its status in the head.
        succeeded(answer.headers())?;
        message_of(answer.into_body()).await
    };
    tokio::select! {
        biased;
        message = call => message,
        ended = connection => {
            ended?;
            bail!("the service has hung up")
        }
    }
}

async fn message_of(mut body: RecvStream) -> Result<Bytes> {
    let mut received = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        received.extend_from_slice(&data);
    }
    succeeded(&body.trailers().await?.unwrap_or_default())?;
    ensure!(received.len() >= PREFIX, "the answer has no message");
    received.advance(PREFIX);
    Ok(received.freeze())
}

fn succeeded(headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(status) => {
            bail!("{} (gRPC status {status})", text("grpc-message").unwrap_or_default())
        }
    }
}
